"""A trained classifier as a reward: each answer is read with its prompt through the classifier's own tokenizer and
chat template, exactly as in its training; its weights are frozen and in the precision of its training.

Of one logit that is the score. Of several labels it is the log-odds of one of them, log p - log (1 - p), which is the
difference of the logits where there are two, and has no upper bound at which nothing more could be learnt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tunecli.config.data import Overlong, Side
from tunecli.config.errors import UserError
from tunecli.config.model import Attention
from tunecli.config.nearest import did_you_mean
from tunecli.config.reward import Reads, RewardEntry, RewardModelConfig
from tunecli.config.stage import ProblemType, Rows, Task
from tunecli.data.batching import Batching, microbatches
from tunecli.data.encoded import Encoded
from tunecli.data.examples import Example, Labelled, Messages, PromptCompletion, Scored, Unusable
from tunecli.data.feed import Window
from tunecli.data.reading import Place, WholeAnswers
from tunecli.data.tokenize import tokenize_many
from tunecli.data.tokens import Encoding
from tunecli.models.classifier import Classifier
from tunecli.models.policy import ONEDNN_MULTIPLE
from tunecli.models.positions import readable
from tunecli.models.self_test import choose_policy
from tunecli.peft_methods.injection import leave_casts_to_autocast
from tunecli.peft_methods.loading import dtype_of, load_base, require_one, stored_config, tokenizer_of
from tunecli.peft_methods.saving import load_adapters
from tunecli.peft_methods.source import Source, find_source
from tunecli.peft_methods.token_ids import places_in_saved

BATCH_TOKENS = 4096
"""Tokens that are scored together."""
NOTHING = " "
"""Stands in for an answer without text where the classifier cannot read none."""


@dataclass(frozen=True, slots=True)
class RewardModel:
    classifier: Classifier
    tokenizer: PreTrainedTokenizerBase
    encoding: Encoding
    reads: Reads
    label: int | None
    """of several labels; None: there is one logit"""
    where: str
    """its place in the configuration"""

    def __call__(self, prompts: list[Any], completions: list[str], columns: list[dict[str, Any]]) -> list[float]:
        if not completions:
            return []
        items = [self._item(prompt, said) for prompt, said in zip(prompts, completions, strict=True)]
        found = tokenize_many(items, self.tokenizer, self.encoding)
        window = Window(["answers"])
        for i, tokens in enumerate(found):
            if isinstance(tokens, Unusable):
                tokens = self._again(prompts[i], completions[i])
            (own,) = tokens
            window.examples.append(
                Encoded.of(
                    torch.tensor(own.input_ids).numpy(),
                    torch.tensor(own.spans, dtype=torch.int32).numpy(),
                    parts=own.parts,
                    numbers=(0.0,),
                )
            )
            window.sources.append(0)
            window.origins.append(f"answer {i + 1}")
            window.adapters.append(-1)
        return self._scores(window)

    def _item(self, prompt: Any, completion: str) -> Example:
        if self.reads is Reads.completion:
            return Labelled(completion, labels=("0",))
        if isinstance(prompt, str):
            return Scored(PromptCompletion(prompt, completion), 0.0)
        answer = {"role": "assistant", "content": completion}
        return Scored(Messages([*prompt, answer], context=len(prompt)), 0.0)

    def _again(self, prompt: Any, completion: str) -> list[Any]:
        (found,) = tokenize_many([self._item(prompt, completion.strip() or NOTHING)], self.tokenizer, self.encoding)
        if isinstance(found, Unusable):
            raise UserError(f"an answer cannot be read: {found.what}", where=self.where, fix=found.fix)
        return found

    @torch.no_grad()
    def _scores(self, window: Window) -> list[float]:
        batching = Batching(
            num_processes=1,
            process_index=0,
            rows=None,
            tokens=max(BATCH_TOKENS, self.encoding.max_length),
            packed=self.classifier.packed,
            pad_token_id=self.tokenizer.pad_token_id or 0,
            read=WholeAnswers(
                place=Place.last if self.classifier.looks_at_last else Place.first,
                token_types=getattr(self.classifier.lm.config, "type_vocab_size", 0) > 1,
            ),
        )
        lm = self.classifier.lm
        scores = torch.zeros(len(window))
        half = lm.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(lm.device.type, dtype=lm.dtype if half else None, enabled=half):
            for batch in microbatches(window, range(len(window)), batching):
                scores[list(batch.rows)] = self._of_logits(self.classifier(batch.to(lm.device)).float()).cpu()
        return scores.tolist()

    def _of_logits(self, logits: Tensor) -> Tensor:
        """[answers], from [answers, labels]"""
        if self.label is None:
            return logits[:, 0]
        others = torch.arange(logits.shape[1], device=logits.device) != self.label
        return logits[:, self.label] - logits[:, others].logsumexp(1)


def check(name: str, config: RewardEntry, *, chats: bool) -> None:
    """Read what the classifier says of itself; no weight is loaded.

    Args:
        chats: whether prompts are messages, which need a chat template.

    Raises:
        UserError: it is no classifier, has no such label or several where none is named, or no chat template.
    """
    assert isinstance(config, RewardModelConfig)
    source, stored = _source(name, config)
    if stored is not None:
        _label_number(name, config, stored)
    tokenizer = tokenizer_of(source)
    # An encoder reads two plain texts, see `tunecli.data.tokenize`.
    if chats and config.reads is Reads.conversation and not tokenizer.chat_template and not tokenizer.sep_token:
        raise UserError(
            f"the prompts are messages, and {config.path} has no chat template to read them with",
            where=f"reward.{name}.path",
            fix=f"reward.{name}.reads=completion shows it the answer alone; or another reward model",
        )


def build(name: str, config: RewardEntry) -> RewardModel:
    """Load it, frozen. Raises UserError as `check`."""
    assert isinstance(config, RewardModelConfig)
    source, _ = _source(name, config)
    lm = load_base(source)
    tokenizer = tokenizer_of(source)
    if lm.config.pad_token_id is None:
        lm.config.pad_token_id = tokenizer.pad_token_id
    classifier = choose_policy(lm, Attention.auto, Task.sequence_classification).policy
    assert isinstance(classifier, Classifier)
    load_adapters(lm, source.adapters)
    lm.eval().requires_grad_(False)
    if dtype_of(source) is torch.bfloat16:
        leave_casts_to_autocast(lm)
        classifier.multiple = ONEDNN_MULTIPLE if lm.device.type == "cpu" else 1
    return RewardModel(
        classifier,
        tokenizer,
        _encoding(config, source, tokenizer),
        config.reads,
        _label_number(name, config, lm.config),
        f"reward.{name}",
    )


def _source(name: str, config: RewardModelConfig) -> tuple[Source, PretrainedConfig | None]:
    where = f"reward.{name}.path"
    try:
        source = find_source(config.path)
        require_one(source)
    except UserError as error:
        raise UserError(f"{config.path}: {error.what}", where=where, fix=error.fix) from error
    stored = stored_config(source)
    class_name = next(iter(getattr(stored, "architectures", None) or ()), "")
    if stored is not None and not class_name.endswith("ForSequenceClassification"):
        raise UserError(
            f"{config.path} is no classifier of texts ({class_name or 'it does not say what it is'})",
            where=where,
            fix="a run of stage=reward or stage=classify, or a model with a head for labels",
        )
    return source, stored


def _label_number(name: str, config: RewardModelConfig, stored: PretrainedConfig) -> int | None:
    """The number of `label`; None of a model with one logit."""
    where, labels = f"reward.{name}.label", [stored.id2label[i] for i in range(stored.num_labels)]
    if len(labels) == 1:
        if config.label is not None:
            raise UserError(f"{config.path} has one logit, which is its score", where=where, fix=f"{where}=null")
        return None
    if config.label is None:
        fix = f"{where}={labels[-1]}; it has {', '.join(labels)}"
        raise UserError(f"{config.path} has {len(labels)} labels, and none is named", where=where, fix=fix)
    if config.label not in labels:
        fix = f"{did_you_mean(config.label, labels)}one of {', '.join(labels)}"
        raise UserError(f"{config.path} has no label {config.label!r}", where=where, fix=fix)
    return labels.index(config.label)


def _encoding(config: RewardModelConfig, source: Source, tokenizer: PreTrainedTokenizerBase) -> Encoding:
    """As in its training, but that a long text loses its start, not what is to be scored."""
    encoding = Encoding(
        task=Task.sequence_classification,
        rows=Rows.judged if config.reads is Reads.conversation else None,
        problem_type=ProblemType.regression,
        max_length=readable(config.max_length, source.base),
        overlong=Overlong.truncate,
        truncation_side=Side.left,
        **places_in_saved(source.adapters, tokenizer),
    )
    run = source.run
    if run is None:
        return encoding
    return replace(
        encoding,
        system=run.data.system,
        system_prompt=run.data.system_prompt,
        thinking=run.data.thinking,
        chat_template_kwargs=dict(run.data.chat_template_kwargs),
    )
