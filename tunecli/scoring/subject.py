"""What is scored: a run's result, an adapter or a model of somebody else's, told by what is stored with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from omegaconf import MISSING
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tunecli.assembly.data import encoding_of
from tunecli.config.data import DataConfig, training_sources
from tunecli.config.errors import UserError
from tunecli.config.evaluation import EvaluationConfig
from tunecli.config.run import RunConfig
from tunecli.config.scored import OF_READING
from tunecli.config.stage import (
    STAGE_SCHEMAS,
    ClassifyConfig,
    LanguageModel,
    Objective,
    PretrainConfig,
    ProblemType,
    RewardConfig,
    StageConfig,
    Task,
    VerbalizeConfig,
)
from tunecli.config.train import Precision
from tunecli.data.labels import UNNAMED, Labels
from tunecli.data.mixture import labels as source_names
from tunecli.data.tokens import Encoding
from tunecli.engine.precision import resolve_precision
from tunecli.evaluation.kinds import Kind, kind_of
from tunecli.models.load import pad_apart, stop_tokens
from tunecli.models.policy import ONEDNN_MULTIPLE
from tunecli.models.self_test import Wrapped, choose_policy
from tunecli.peft_methods.by_row import route_rows
from tunecli.peft_methods.injection import adapter_name, leave_casts_to_autocast
from tunecli.peft_methods.loading import dtype_of, head_of, load_base, stored_config, tokenizer_of
from tunecli.peft_methods.saving import load_adapters
from tunecli.peft_methods.source import Source, find_source
from tunecli.peft_methods.token_ids import places_in_saved

TASK_OF = {
    "SequenceClassification": Task.sequence_classification,
    "TokenClassification": Task.token_classification,
    "CausalLM": Task.causal_lm,
    "LMHeadModel": Task.causal_lm,
    "MaskedLM": Task.masked_lm,
}
"""End of the name of a model's class -> what it is for. Encoder-decoders have names of all kinds."""
STAGES_OF = {
    Task.sequence_classification: ("classify", "reward"),
    Task.token_classification: ("tag",),
    Task.causal_lm: ("sft", "pretrain", "verbalize"),
    Task.masked_lm: ("pretrain", "verbalize"),
    Task.seq2seq_lm: ("seq2seq", "pretrain"),
}
"""The stages that score a model for this; the first where none is named."""
STAGES = tuple(dict.fromkeys(stage for stages in STAGES_OF.values() for stage in stages))


@dataclass(frozen=True, slots=True)
class Subject:
    source: Source
    config: RunConfig
    """how it was trained; of what we did not train, what a run would begin with"""
    tokenizer: PreTrainedTokenizerBase
    labels: Labels | None
    """of a model with a head for them, or with words that are known without looking at rows"""
    trained: bool = True
    """by us, for this stage, so that its data are known"""

    @property
    def kind(self) -> Kind:
        return kind_of(self.config.stage)

    def precision(self, config: RunConfig) -> Precision:
        """As in training; what we did not train and is stored in fp32 computes in that."""
        ours = self.source.run is not None
        frozen = bool(self.config.peft) or not ours
        if not ours and config.train.precision is Precision.auto and dtype_of(self.source) is torch.float32:
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
        stage: what it is to be scored as; None: as it was trained, or told from its class.

    Raises:
        UserError: there is no such model, or it has no head that fits.
    """
    if stage is not None and stage not in STAGES:
        raise UserError(f"there is no stage {stage!r} to score", where="stage", fix=f"one of {', '.join(STAGES)}")
    source = find_source(path)
    if source.run is not None:
        config = as_stage(source.run, stage, path)
        return _subject(source, config, trained=config is source.run)
    found = _stage_of(source, stage)
    config = RunConfig(recipe="eval", model=source.base, data=DataConfig(path=MISSING), stage=found)
    return _subject(source, config, trained=False)


def base_subject(run: RunConfig, stage: str | None = None) -> Subject:
    """What a run starts from, asked as the run's result is.

    Raises:
        UserError: `stage` is not for such a model.
    """
    config = as_stage(run, stage, "stage")
    return _subject(Source(run.model.path, run.model, run=run), config, trained=config is run)


def base_has_head(run: RunConfig) -> bool:
    """Whether what a run starts from could give labels before training, if that is what the run is for."""
    stored = stored_config(Source(run.model.path, run.model, run=run)) if run.stage.task.has_labels else None
    return stored is None or _task_of(next(iter(stored.architectures or ()), ""), stored) is run.stage.task


def as_stage(run: RunConfig, name: str | None, where: str) -> RunConfig:
    """`run` as it is scored as stage `name`; None: as it was trained, which is `run` itself.

    Raises:
        UserError: the stage is not for such a model.
    """
    own = run.stage
    if name in (None, own.name):
        return run
    if name not in STAGES_OF[own.task]:
        raise UserError(f"was trained as {own.name}", where=where, fix=f"leave out stage={name}")
    read = {each: getattr(run.data, each) for each in OF_READING if each != "overlong"}
    data = DataConfig(path=MISSING, **read)
    return replace(run, stage=stage_for(name, own.task), data=data, evaluation=EvaluationConfig())


def stage_for(name: str, task: Task) -> StageConfig:
    """The stage `name` as it scores a model for `task`."""
    config = STAGE_SCHEMAS[name]()
    if isinstance(config, VerbalizeConfig):
        return replace(config, language_model=LanguageModel(task.value))
    if isinstance(config, PretrainConfig):
        usual = Objective.span_corruption if task is Task.seq2seq_lm else Objective(task.value)
        return replace(config, objective=usual)
    return config


def _subject(source: Source, config: RunConfig, *, trained: bool = True) -> Subject:
    labels = None
    if config.stage.task.has_labels:
        stored = stored_config(source)
        if stored is None:
            raise UserError(
                "its base model cannot be found", where=source.path, fix="check model.path in config.yaml"
            )
        tasks = source_names(training_sources(config.data)) if source.run is not None else []
        labels = labels_of(head_of(stored).labels, tasks)
    tokenizer = tokenizer_of(source)
    if isinstance(config.stage, RewardConfig):
        assert labels is not None
        if len(labels.names) != 1:
            what = f"gives {len(labels.names)} numbers for a text, and a reward model gives one"
            raise UserError(what, where=source.path, fix="a model with one label; tune eval RUN stage=classify")
        pad_apart(tokenizer, stop_tokens(source.base))
    return Subject(source, config, tokenizer, labels, trained)


def asked_as(subject: Subject, config: RunConfig) -> Subject:
    """The subject with what `config` says about its stage: other objectives, templates and words for labels.

    Raises:
        UserError: it is no model for that.
    """
    own, stage = subject.config.stage, config.stage
    if stage.task is not own.task:
        fix = f"an objective for a {own.task.value} model"
        raise UserError(f"is no model for a {stage.task.value} objective", where=subject.source.path, fix=fix)
    labels = subject.labels
    if isinstance(stage, VerbalizeConfig) and stage.labels:
        labels = Labels({UNNAMED: stage.labels})
    return replace(subject, config=replace(subject.config, stage=stage), labels=labels)


def _stage_of(source: Source, wanted: str | None) -> StageConfig:
    """Of a model that we did not train.

    Raises:
        UserError: its class has no head that `wanted` could be read off.
    """
    stored = stored_config(source)
    if stored is None:
        return STAGE_SCHEMAS[wanted or "sft"]()  # loading it says in one line what is wrong
    name = next(iter(stored.architectures or ()), "")
    task = _task_of(name, stored)
    if task is None or (wanted not in (None, *STAGES_OF[task]) and wanted in ("classify", "tag")):
        raise _headless(source, name, wanted)
    if wanted not in (None, *STAGES_OF[task]):
        fix = " or ".join(f"stage={stage}" for stage in STAGES_OF[task])
        raise UserError(f"is a {name}, which stage={wanted} cannot score", where=source.path, fix=fix)
    config = stage_for(wanted or STAGES_OF[task][0], task)
    if isinstance(config, ClassifyConfig):
        return replace(config, problem_type=head_of(stored).problem_type)  # type: ignore[call-arg]
    return config


def _task_of(name: str, config: PretrainedConfig) -> Task | None:
    """Of a model's class; None of one without a head that anything could be read off."""
    if config.is_encoder_decoder and name.endswith(("ConditionalGeneration", "LMHeadModel")):
        return Task.seq2seq_lm
    return next((task for end, task in TASK_OF.items() if name.endswith(end)), None)


def _headless(source: Source, name: str, wanted: str | None) -> UserError:
    needed = {
        "classify": "labels of texts",
        "tag": "labels of words",
        "verbalize": "words",
        "pretrain": "words",
    }.get(wanted or "", "labels or words")
    stage = wanted if wanted in ("classify", "tag") else "classify"
    return UserError(
        f"is a {name or 'model'} without a head for {needed}",
        where=source.path,
        fix=f"train one: tune run recipe=NAME model=path model.path={source.path} stage={stage}",
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
