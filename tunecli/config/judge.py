"""The `judge` group: who says which of two answers is better, or how good one is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from tunecli.config.model import Attention, DType, ModelConfig, Quantization
from tunecli.config.paths import shipped_asset


class Mode(Enum):
    """`pairwise`: which of two answers is better. `principles`: the same by a principle that is drawn for each
    comparison. `score`: how good one answer is, from 1 to 10."""

    pairwise = "pairwise"
    score = "score"
    principles = "principles"


class Read(Enum):
    """`logprobs`: how likely each possible answer is as the next token. `votes`: answers are drawn and counted.
    `auto`: the first where the judge tells, else the second."""

    auto = "auto"
    logprobs = "logprobs"
    votes = "votes"


@dataclass(kw_only=True, slots=True)
class JudgeConfig:
    backend: str = MISSING
    cache: str | None = None
    """SQLite file in which judgments are kept, so that none is made twice; empty: one for all, in `TUNECLI_CACHE`."""
    tie_margin: float = 0.0
    """A comparison is a tie where the probability is at most this far from one half."""


@dataclass(kw_only=True, slots=True)
class LanguageJudgeConfig(JudgeConfig):
    """A language model that is asked in words."""

    mode: Mode = Mode.pairwise
    template: str | None = None
    """What it is asked: the name of a shipped template, or a YAML file; empty: the usual one of the mode."""
    num_examples: int = 0
    """Judged examples of the template that are shown before the question (few-shot)."""
    chain_of_thought: bool = False
    """Let it give reasons before its verdict; they are kept."""
    constitution: str | None = None
    """With `mode: principles`: the name of a shipped constitution, or a YAML file; empty: helpful_harmless."""
    num_principles: int = 1
    """With `mode: principles`: how many are drawn for each comparison; the answers to them are averaged."""
    read: Read = Read.auto
    """How a verdict is read."""
    num_votes: int = 4
    """Answers to each question that are drawn and averaged, where verdicts are votes or follow reasons."""
    temperature: float = 1.0
    """Of what is drawn: votes and reasons."""
    max_new_tokens: int = 256
    """Longest answer that is written out: reasons, or a vote."""
    retries: int = 2
    """How often a question is asked again, each time with another seed, where the answer cannot be read."""


@dataclass(kw_only=True, slots=True)
class LocalJudgeConfig(LanguageJudgeConfig):
    """A causal language model on this machine."""

    backend: str = "local"
    path: str = MISSING
    """A run directory, an adapter, a model folder, a Hub id, or `builtin:tiny_llama`."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    dtype: DType = DType.auto
    """How weights are stored; auto: as they were trained, or as they are stored."""
    quantization: Quantization = Quantization.none
    """Load a model that was not trained quantised in 4 or 8 bits."""
    attention: Attention = Attention.auto
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables that its chat template reads: `{enable_thinking: false}`."""
    batch_tokens: int = 8192
    """Tokens of questions in one forward."""


@dataclass(kw_only=True, slots=True)
class OpenAIJudgeConfig(LanguageJudgeConfig):
    """A model behind a server that speaks the chat completions of OpenAI: vLLM, llama.cpp, Ollama and many more."""

    backend: str = "openai"
    model: str = MISSING
    """As the server calls it."""
    base_url: str = "https://api.openai.com/v1"
    """Up to, but without, /chat/completions."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key. The key itself is written nowhere. null: none is sent."""
    timeout_seconds: float = 60.0
    """For one whole answer."""
    max_retries: int = 6
    """How often a request is sent again after an error that may pass."""
    max_wait_seconds: float = 60.0
    """Longest pause between two attempts. They double from one second, or are as long as the server says; one that
    asks for more ends the run, which can be started again later."""
    parallel_requests: int = 8
    requests_per_minute: float | None = None
    """Empty: no limit of ours."""
    price_input: float | None = None
    """Of a million prompt tokens, in any currency; with `price_output`, what was spent is said."""
    price_output: float | None = None
    """Of a million tokens that the model writes."""
    max_tokens_name: str = "max_tokens"
    """What the server calls the limit of an answer; newer models of OpenAI: max_completion_tokens."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More fields of each request: `{chat_template_kwargs: {enable_thinking: false}}`."""


@dataclass(kw_only=True, slots=True)
class RewardModelJudgeConfig(JudgeConfig):
    """A classifier or a reward model: how sure it is of a label, or the number that it gives."""

    backend: str = "reward_model"
    path: str = MISSING
    """A run of `stage=classify`, or a model folder or Hub id with such a head."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    label: str | None = None
    """The label that good answers have; empty: the model gives one number."""
    max_length: int = 512
    """Longest text in tokens; longer ones lose their beginning."""
    batch_tokens: int = 8192
    """Tokens in one forward."""


JUDGE_SCHEMAS: dict[str, type[JudgeConfig]] = {
    "local": LocalJudgeConfig,
    "openai": OpenAIJudgeConfig,
    "reward_model": RewardModelJudgeConfig,
}
"""backend -> schema"""


def model_of(judge: LocalJudgeConfig | RewardModelJudgeConfig) -> ModelConfig:
    """The model behind it, as the loaders take it."""
    stored = ModelConfig(path=judge.path, revision=judge.revision, trust_remote_code=judge.trust_remote_code)
    if isinstance(judge, RewardModelJudgeConfig):
        return stored
    return replace(stored, dtype=judge.dtype, quantization=judge.quantization, attention=judge.attention)


def with_shipped(judge: JudgeConfig) -> JudgeConfig:
    """With `assets/...` of the checkout, where the current folder has no such thing."""
    path = getattr(judge, "path", None)
    return judge if path is None else replace(judge, path=shipped_asset(path))  # type: ignore[call-arg]


def with_paths(judge: JudgeConfig, absolute: Callable[[str], str]) -> JudgeConfig:
    """With what lies on this machine named by `absolute`."""
    names = [name for name in ("path", "template", "constitution") if getattr(judge, name, None) is not None]
    paths: dict[str, Any] = {name: absolute(getattr(judge, name)) for name in names}
    if judge.cache is not None:
        paths["cache"] = str(Path(judge.cache).expanduser().absolute())
    return replace(judge, **paths)
