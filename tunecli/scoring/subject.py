"""What is scored: a run's result, an adapter or a model of somebody else's, told by what is stored with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from omegaconf import MISSING
from transformers import PreTrainedTokenizerBase

from tunecli.assembly.data import encoding_of
from tunecli.config.data import DataConfig, training_sources
from tunecli.config.errors import UserError
from tunecli.config.run import RunConfig
from tunecli.config.stage import STAGE_SCHEMAS, ProblemType, StageConfig, Task
from tunecli.config.train import Precision
from tunecli.data.labels import Labels
from tunecli.data.mixture import labels as source_names
from tunecli.data.tokens import Encoding
from tunecli.engine.precision import resolve_precision
from tunecli.evaluation.kinds import Kind, kind_of
from tunecli.models.policy import ONEDNN_MULTIPLE
from tunecli.models.self_test import Wrapped, choose_policy
from tunecli.peft_methods.by_row import route_rows
from tunecli.peft_methods.injection import adapter_name, leave_casts_to_autocast
from tunecli.peft_methods.loading import dtype_of, head_of, load_base, stored_config, tokenizer_of
from tunecli.peft_methods.saving import load_adapters
from tunecli.peft_methods.source import Source, find_source
from tunecli.peft_methods.token_ids import places_in_saved

STAGE_OF = {
    "SequenceClassification": "classify",
    "TokenClassification": "tag",
    "CausalLM": "sft",
    "LMHeadModel": "sft",
}
"""End of the name of a model's class -> the stage that scores it."""
STAGES = tuple(dict.fromkeys(STAGE_OF.values()))


@dataclass(frozen=True, slots=True)
class Subject:
    source: Source
    config: RunConfig
    """how it was trained; of what we did not train, what a run would begin with"""
    tokenizer: PreTrainedTokenizerBase
    labels: Labels | None
    """of a model with a head for them"""

    @property
    def kind(self) -> Kind:
        return kind_of(self.config.stage)

    @property
    def trained(self) -> bool:
        """By us, so that its data are known."""
        return self.source.run is not None

    def precision(self, config: RunConfig) -> Precision:
        """As in training; what we did not train and is stored in fp32 computes in that."""
        frozen = bool(self.config.peft) or not self.trained
        if not self.trained and config.train.precision is Precision.auto and dtype_of(self.source) is torch.float32:
            return Precision.fp32
        return resolve_precision(config.train.precision, cpu=not torch.cuda.is_available(), frozen_base=frozen)

    def encoding(self, config: RunConfig) -> Encoding:
        """How rows are read for it."""
        encoding = encoding_of(config, self.tokenizer)
        if config.data.adapter_column is not None:
            return encoding
        return replace(encoding, **places_in_saved(self.source.adapters, self.tokenizer))


def find_subject(path: str, stage: str | None = None) -> Subject:
    """
    Args:
        path: run directory, adapter, model folder, Hub id or builtin model.
        stage: what a model of unknown class is to be scored as; None: told from its class.

    Raises:
        UserError: there is no such model, or it has no head that fits.
    """
    if stage is not None and stage not in STAGES:
        raise UserError(f"there is no stage {stage!r} to score", where="stage", fix=f"one of {', '.join(STAGES)}")
    source = find_source(path)
    if source.run is not None:
        own = source.run.stage.name
        if stage not in (None, own):
            raise UserError(f"was trained as {own}", where=path, fix=f"leave out stage={stage}")
        return _subject(source, source.run)
    found = _stage_of(source, stage)
    config = RunConfig(recipe="eval", model=source.base, data=DataConfig(path=MISSING), stage=found)
    return _subject(source, config)


def _subject(source: Source, config: RunConfig) -> Subject:
    labels = None
    if config.stage.task.has_labels:
        stored = stored_config(source)
        if stored is None:
            raise UserError(
                "its base model cannot be found", where=source.path, fix="check model.path in config.yaml"
            )
        tasks = source_names(training_sources(config.data)) if source.run is not None else []
        labels = labels_of(head_of(stored).labels, tasks)
    return Subject(source, config, tokenizer_of(source), labels)


def _stage_of(source: Source, wanted: str | None) -> StageConfig:
    """Of a model that we did not train.

    Raises:
        UserError: its class has no head that `wanted` could be read off.
    """
    stored = stored_config(source)
    if stored is None:
        return STAGE_SCHEMAS[wanted or "sft"]()  # loading it says in one line what is wrong
    name = next(iter(stored.architectures or ()), "")
    own = next((stage for end, stage in STAGE_OF.items() if name.endswith(end)), None)
    if own is None and wanted in ("classify", "tag"):
        own = "none"
    if own is None and wanted is None:
        raise _headless(source, name)
    if wanted is not None and own not in (None, wanted):
        if own == "none" or wanted in ("classify", "tag"):
            raise _headless(source, name, wanted)
        raise UserError(f"is a {name}, which stage={wanted} cannot score", where=source.path, fix=f"stage={own}")
    config = STAGE_SCHEMAS[own or wanted or "sft"]()
    if config.task is Task.sequence_classification:
        return replace(config, problem_type=head_of(stored).problem_type)  # type: ignore[call-arg]
    return config


def _headless(source: Source, name: str, wanted: str = "") -> UserError:
    what = {"classify": "labels of texts", "tag": "labels of words"}.get(wanted, "labels or next tokens")
    return UserError(
        f"is a {name or 'model'} without a head for {what}",
        where=source.path,
        fix=f"train one: tune run recipe=NAME model=path model.path={source.path} stage={wanted or 'classify'}",
    )


def labels_of(names: list[str], tasks: Iterable[str]) -> Labels:
    """The labels that a stored model names; of several tasks each begins with that of its task."""
    tasks = list(dict.fromkeys(tasks))
    by_task = {
        task: [name.removeprefix(f"{task}: ") for name in names if name.startswith(f"{task}: ")] for task in tasks
    }
    if len(tasks) > 1 and sum(map(len, by_task.values())) == len(names) and all(by_task.values()):
        return Labels(by_task)
    return Labels({"": names})


def load_wrapped(subject: Subject, config: RunConfig, accelerator: Accelerator) -> tuple[Wrapped, str]:
    """The model in eval mode behind the fastest exact forward, as in training; and what a user should know."""
    source, task = subject.source, config.stage.task
    lm = load_base(source)
    if missing := _missing_head(lm.new_weights, source):
        raise UserError(
            f"its head has no weights ({missing})", where=source.path, fix="a model whose head was trained and saved"
        )
    if task.has_labels:
        lm.config.pad_token_id = subject.tokenizer.pad_token_id
    verdict = choose_policy(lm, config.model.attention, task)
    names = load_adapters(lm, source.adapters)
    if config.data.adapter_column is not None:
        route_rows(lm, [adapter_name(name) for name in names])
    if subject.precision(config) is not Precision.fp32:
        leave_casts_to_autocast(lm)
        verdict.policy.multiple = ONEDNN_MULTIPLE if lm.device.type == "cpu" else 1
    verdict.policy.eval()
    return verdict.policy, verdict.note


def _missing_head(new_weights: list[str], source: Source) -> str:
    """A head that was drawn at random: no file had it, and no adapter brings it."""
    return "" if source.adapters else next(iter(new_weights), "")


def is_regression(config: StageConfig) -> bool:
    return getattr(config, "problem_type", None) is ProblemType.regression
