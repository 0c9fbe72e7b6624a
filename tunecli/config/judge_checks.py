"""What the `judge` group gets wrong although every value has the right type; see `tunecli.config.checks`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tunecli.config.data_files import is_local
from tunecli.config.errors import Problem, UserError
from tunecli.config.judge import (
    JudgeConfig,
    LanguageJudgeConfig,
    LocalJudgeConfig,
    Mode,
    OpenAIJudgeConfig,
    Read,
    RewardModelJudgeConfig,
)
from tunecli.config.judge_files import constitution_of, template_of
from tunecli.config.model_path import is_folder_name
from tunecli.config.nearest import did_you_mean
from tunecli.config.paths import judging_file, judging_names

POSITIVE = (
    *("num_votes", "max_new_tokens", "batch_tokens", "max_length", "num_principles"),
    *("timeout_seconds", "max_wait_seconds", "parallel_requests", "requests_per_minute"),
)
NOT_NEGATIVE = ("num_examples", "retries", "temperature", "max_retries", "price_input", "price_output")
OURS = ("model", "messages", "temperature", "logprobs", "top_logprobs", "seed", "n", "stream")
"""Fields of a request that follow from the rest of the configuration."""


def judge_problems(judge: JudgeConfig) -> Iterator[Problem]:
    """Everything that is wrong with the judge. Reads whether variables of the environment are set, never writes what
    they hold."""
    for key in POSITIVE:
        yield from _number(judge, key, "greater than 0", lambda value: value > 0)
    for key in NOT_NEGATIVE:
        yield from _number(judge, key, "0 or greater", lambda value: value >= 0)
    yield from _number(judge, "tie_margin", "at least 0 and below 0.5", lambda value: 0 <= value < 0.5)
    if isinstance(judge, LanguageJudgeConfig):
        yield from _asked(judge)
        yield from _drawn(judge)
    if isinstance(judge, LocalJudgeConfig | RewardModelJudgeConfig):
        yield from _path(judge.path)
        if judge.revision is not None and is_local(judge.path):
            yield Problem("judge.revision", "is of a model on the Hub, and judge.path is here", "judge.revision=null")
    if isinstance(judge, OpenAIJudgeConfig):
        yield from _server(judge)


def _number(judge: JudgeConfig, key: str, demand: str, holds: Callable[[float], bool]) -> Iterator[Problem]:
    value = getattr(judge, key, None)
    if value is not None and not (math.isfinite(value) and holds(value)):
        yield Problem(f"judge.{key}", f"is {value}", f"a number {demand}")


def _asked(judge: LanguageJudgeConfig) -> Iterator[Problem]:
    unknown = [*_file("template", judge.template), *_file("constitution", judge.constitution)]
    yield from unknown or _contents(judge)
    if judge.mode is Mode.principles:
        return
    if judge.constitution is not None:
        yield Problem(
            "judge.constitution",
            f"does nothing with judge.mode={judge.mode.value}",
            "judge.mode=principles, or judge.constitution=null",
        )
    if judge.num_principles != 1:
        yield Problem(
            "judge.num_principles", f"does nothing with judge.mode={judge.mode.value}", "judge.num_principles=1"
        )


def _file(key: str, name: str | None) -> Iterator[Problem]:
    """Of a shipped YAML that is named, or one of the user's."""
    if name is None or judging_file(f"{key}s", name).is_file():
        return
    names = judging_names(f"{key}s")
    fix = f"{did_you_mean(name, names)}one of {', '.join(names)}, or a YAML file of your own"
    yield Problem(f"judge.{key}", f"there is no {key} {name!r}", fix)


def _contents(judge: LanguageJudgeConfig) -> Iterator[Problem]:
    try:
        template_of(judge)
        number = len(constitution_of(judge.constitution)) if judge.mode is Mode.principles else judge.num_principles
    except UserError as error:
        yield Problem(error.where, error.what, error.fix)
        return
    if judge.num_principles > number:
        what = f"is {judge.num_principles}, and the constitution has {number}"
        yield Problem("judge.num_principles", what, f"judge.num_principles={number}")


def _drawn(judge: LanguageJudgeConfig) -> Iterator[Problem]:
    """Values that count only where answers are drawn."""
    if judge.temperature == 0 and judge.num_votes > 1 and is_drawn(judge):
        what = f"is {judge.num_votes}, and judge.temperature=0 gives the same answer each time"
        yield Problem("judge.num_votes", what, "judge.num_votes=1, or judge.temperature=1")
    written = isinstance(judge, OpenAIJudgeConfig)
    if is_drawn(judge) or (written and judge.read is Read.auto):
        return
    usual = LanguageJudgeConfig()
    for key in ("num_votes",) if written else ("num_votes", "temperature", "max_new_tokens", "retries"):
        if getattr(judge, key) != getattr(usual, key):
            what = "does nothing where verdicts are read off log-probabilities without reasons"
            fix = f"judge.chain_of_thought=true or judge.read=votes, or judge.{key}={getattr(usual, key)}"
            yield Problem(f"judge.{key}", what, fix)


def is_drawn(judge: LanguageJudgeConfig) -> bool:
    """Whether answers are drawn for certain, hence several to each question."""
    return judge.chain_of_thought or judge.read is Read.votes


def _path(path: str) -> Iterator[Problem]:
    named = is_local(path) or (not path.startswith("builtin:") and is_folder_name(path))
    if named and not Path(path).expanduser().exists():
        fix = "judge.path=PATH of what exists"
        if "assets/" in path:
            fix = "python scripts/fetch_assets.py"
        yield Problem("judge.path", f"{path} does not exist", fix)


def _server(judge: OpenAIJudgeConfig) -> Iterator[Problem]:
    yield from _address(judge.base_url)
    yield from _key(judge.api_key_env)
    if (judge.price_input is None) != (judge.price_output is None):
        missing = "input" if judge.price_input is None else "output"
        yield Problem(f"judge.price_{missing}", "is not set, and the other price is", "both, or neither")
    for name in judge.extra:
        if name in (*OURS, judge.max_tokens_name):
            what = "follows from the other values of the judge"
            yield Problem(f"judge.extra.{name}", what, "leave it out of judge.extra")
        elif "key" in name.lower() or "authorization" in name.lower():
            what = "would be written into the run directory"
            yield Problem(f"judge.extra.{name}", what, "judge.api_key_env=NAME of a variable that holds the key")


def _address(url: str) -> Iterator[Problem]:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.username is not None or parts.password is not None or parts.query:
        # Not shown: it may hold the key.
        what = "holds a user, a password or a query, which would be written into the run directory"
        yield Problem("judge.base_url", what, "judge.api_key_env=NAME of a variable that holds the key")
    elif parts.scheme not in ("http", "https") or not host:
        yield Problem("judge.base_url", f"is {url!r}", "an address such as http://localhost:8000/v1")
    elif parts.path.rstrip("/").endswith("/chat/completions"):
        yield Problem("judge.base_url", "ends with /chat/completions", "leave that out: it is added")


def _key(variable: str | None) -> Iterator[Problem]:
    if variable is None:
        return
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        # Not shown: somebody may have put the key itself here.
        what = "is no name of an environment variable; a key itself would be written into the run directory"
        yield Problem("judge.api_key_env", what, "export MY_KEY=..., then judge.api_key_env=MY_KEY")
    elif (key := os.environ.get(variable, "").strip()) and not (
        key.isascii() and key.isprintable() and " " not in key
    ):
        yield Problem(
            "judge.api_key_env", f"{variable} holds blanks or signs that no key has", f"export {variable}=..."
        )
    elif not key:
        fix = f"export {variable}=..., or judge.api_key_env=null for a server that wants none"
        yield Problem("judge.api_key_env", f"the environment has no {variable}", fix)
