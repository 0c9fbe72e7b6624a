"""What a configuration gets wrong although every value has the right type. All problems at once, each with its
fix, before any weight is loaded; neither torch nor the network is touched."""

from __future__ import annotations

import importlib.util
import math
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunecli.config.begun import has_begun
from tunecli.config.compose import load_config
from tunecli.config.counted import counted
from tunecli.config.data_checks import data_problems
from tunecli.config.data_files import is_local
from tunecli.config.errors import Problem
from tunecli.config.idle import idle_problems
from tunecli.config.label_checks import label_problems
from tunecli.config.language_checks import language_problems
from tunecli.config.launch import Strategy
from tunecli.config.model_path import is_folder_name
from tunecli.config.nearest import did_you_mean
from tunecli.config.peft import choosing
from tunecli.config.peft_checks import missing_starts, peft_problems
from tunecli.config.ppo_checks import ppo_problems
from tunecli.config.preference_checks import preference_problems
from tunecli.config.reward_checks import reward_problems
from tunecli.config.run import RunConfig
from tunecli.config.stage import (
    LabelConfig,
    PPOConfig,
    PreferenceConfig,
    ProblemType,
    RewardConfig,
    StageConfig,
    Task,
    VerbalizeConfig,
)
from tunecli.config.stage_checks import stage_problems
from tunecli.config.train import Precision, TrainConfig

POSITIVE = (
    "data.max_length",
    "data.num_workers",
    "data.shuffle_buffer",
    "data.shots",
    "train.num_epochs",
    "train.global_batch_size",
    "train.micro_batch_size",
    "train.micro_batch_tokens",
    "train.learning_rate",
    "train.adam_epsilon",
    "train.log_every",
    "train.eval_every",
    "train.save_every",
    "train.keep_last",
    "train.max_minutes",
    "train.early_stopping",
    "evaluation.max_new_tokens",
    "evaluation.num_beams",
    "launch.num_processes",
)
NOT_NEGATIVE = (
    *("seed", "train.max_steps", "train.warmup_steps", "train.weight_decay", "train.pull_to_start"),
    "train.max_grad_norm",
    *("evaluation.exact_match", "evaluation.rouge", "evaluation.bleu", "evaluation.chrf", "evaluation.temperature"),
)
GENERATED = {
    "eval/exact_match": "exact_match",
    **dict.fromkeys(("eval/rouge1", "eval/rouge2", "eval/rougeL"), "rouge"),
    "eval/bleu": "bleu",
    "eval/chrf": "chrf",
}
"""Metrics of generated answers -> which number of `evaluation` gives them."""
METRICS = {
    "text": ("loss", "perplexity", "choice_accuracy", *(name.removeprefix("eval/") for name in GENERATED)),
    "preferences": ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "logps/chosen"),
    "answers": ("score", "kl", "response_length", "eos_share", "perplexity"),
    "tags": ("loss", "f1", "precision", "recall", "accuracy"),
    ProblemType.single_label.value: ("loss", "accuracy", "f1_macro", "mcc", "ece"),
    ProblemType.multi_label.value: ("loss", "exact_match", "f1_micro", "f1_macro"),
    ProblemType.regression.value: ("loss", "mse", "pearson", "spearman"),
    "reward": ("loss", "accuracy", "margin", "ece", "mse", "pearson", "spearman"),
}
"""What an evaluation gives, by what the model does; behind `eval/`, and of several sources each with `/NAME` too."""
BLEU_TOKENIZERS = ("auto", "13a", "zh", "char", "intl", "none")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
FRACTION = ("train.adam_beta1", "train.adam_beta2")
"""From 0 up to, but without, 1."""


def find_problems(config: RunConfig, *, new_run: bool = False) -> list[Problem]:
    """Everything that is wrong with `config`. A `new_run` may not take over a directory that holds one."""
    return [
        *_numbers(config),
        *_batch(config),
        *_schedule(config),
        *_pull(config),
        *_evaluation(config),
        *_trackers(config.train.trackers),
        *peft_problems(config),
        *idle_problems(config),
        *_launch(config),
        *_model_path(config),
        *data_problems(config),
        *stage_problems(config),
        *ppo_problems(config),
        *reward_problems(config),
        *language_problems(config),
        *preference_problems(config),
        *label_problems(config),
        *([*missing_starts(config), *_output_dir(config)] if new_run else []),
    ]


def _numbers(config: RunConfig) -> Iterator[Problem]:
    for key in POSITIVE:
        yield from _number(key, operator.attrgetter(key)(config), "greater than 0", lambda value: value > 0)
    for key in NOT_NEGATIVE:
        yield from _number(key, operator.attrgetter(key)(config), "0 or greater", lambda value: value >= 0)
    for key in FRACTION:
        yield from _number(
            key, operator.attrgetter(key)(config), "at least 0 and below 1", lambda value: 0 <= value < 1
        )


def _number(key: str, value: float | None, demand: str, holds: Any) -> Iterator[Problem]:
    if value is not None and not (math.isfinite(value) and holds(value)):
        yield Problem(key, f"is {value}", f"a number {demand}")


def _batch(config: RunConfig) -> Iterator[Problem]:
    train, processes = config.train, config.launch.num_processes or 1
    if train.micro_batch_size is not None and train.micro_batch_tokens is not None:
        yield Problem(
            "train",
            "micro_batch_size and micro_batch_tokens are both set",
            "keep one: train.micro_batch_size=null or train.micro_batch_tokens=null",
        )
    if 0 < train.global_batch_size < processes:
        yield Problem(
            "train.global_batch_size",
            f"{counted(train.global_batch_size, 'example')} per step cannot give each of {processes} processes one",
            f"train.global_batch_size={processes} or launch.num_processes={train.global_batch_size}",
        )


def _schedule(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if train.max_steps == 0 and config.data.validation is None and not config.evaluation.prompts:
        yield Problem(
            "train.max_steps",
            "is 0, which evaluates the model as it is, and there is nothing to evaluate it on",
            "data.validation=0.05 holds out a share of the rows",
        )
    if train.warmup_steps > 1 and train.warmup_steps != int(train.warmup_steps):
        fix = f"train.warmup_steps={int(train.warmup_steps)}, or a share of all steps such as 0.03"
        yield Problem("train.warmup_steps", f"is {train.warmup_steps}, which is no number of steps", fix)
    if train.max_steps is not None and 0 < train.max_steps <= train.warmup_steps:
        yield Problem(
            "train.warmup_steps",
            f"{counted(int(train.warmup_steps), 'step')} of warm-up, train.max_steps={train.max_steps}: none left",
            f"train.warmup_steps={train.max_steps // 10}",
        )


def _pull(config: RunConfig) -> Iterator[Problem]:
    rate, pull = config.train.learning_rate, config.train.pull_to_start
    if rate * pull > 1:
        what = f"{pull:g} times train.learning_rate={rate:g} goes beyond the start in one step"
        yield Problem("train.pull_to_start", what, f"train.pull_to_start={0.01 / rate:.0f} goes back by 1 % in each")


def _evaluation(config: RunConfig) -> Iterator[Problem]:
    train, evaluation = config.train, config.evaluation
    if evaluation.retain and train.max_steps == 0:
        fix = "evaluation.retain=[]; tune eval scores a model as it is"
        yield Problem("evaluation.retain", "is set, but nothing is trained (train.max_steps=0)", fix)
    held_out = "data.validation=0.05 holds out a share of the rows"
    if config.data.validation is None:
        if train.eval_every is not None and not evaluation.prompts:
            yield Problem("train.eval_every", "is set, but there is no validation data", f"{held_out}; or null")
        for key in (*dict.fromkeys(GENERATED.values()), "choices"):
            if getattr(evaluation, key):
                yield Problem(f"evaluation.{key}", "is set, but there is no validation data", held_out)
    if evaluation.num_beams > 1 and not evaluation.generated:
        fix = "evaluation.rouge=100, say, or evaluation.num_beams=1"
        yield Problem("evaluation.num_beams", "is set, but no answer to a validation example is generated", fix)
    if evaluation.bleu_tokenize not in BLEU_TOKENIZERS:
        fix = f"{did_you_mean(evaluation.bleu_tokenize, BLEU_TOKENIZERS)}one of {', '.join(BLEU_TOKENIZERS)}"
        yield Problem("evaluation.bleu_tokenize", f"there is no {evaluation.bleu_tokenize!r}", fix)
    elif evaluation.bleu_tokenize != "auto" and not evaluation.bleu:
        fix = "evaluation.bleu=100, say, or evaluation.bleu_tokenize=auto"
        yield Problem("evaluation.bleu_tokenize", "is set, but BLEU is not measured", fix)
    if evaluation.choices and len(set(evaluation.choices)) < max(len(evaluation.choices), 2):
        yield Problem("evaluation.choices", f"are {evaluation.choices}", "two or more different answers")
    if evaluation.temperature and not evaluation.prompts:
        yield Problem("evaluation.temperature", "is set, but there are no prompts", "evaluation.prompts=['...']")
    for key, by_best in (("keep_best", train.keep_best), ("early_stopping", train.early_stopping is not None)):
        if by_best and (train.eval_every is None or config.data.validation is None):
            yield Problem(f"train.{key}", "needs evaluations to go by", f"train.eval_every=50, and {held_out}")
    yield from _best_metric(config)


def _best_metric(config: RunConfig) -> Iterator[Problem]:
    metric, evaluation = config.train.best_metric, config.evaluation
    if metric == TrainConfig().best_metric and not config.train.keep_best and config.train.early_stopping is None:
        return  # nobody asked for it, and nobody reads it
    known = metrics_of(config.stage)
    chosen = {name: getattr(evaluation, key) > 0 for name, key in GENERATED.items()}
    chosen["eval/choice_accuracy"] = bool(evaluation.choices)
    given_by = {} if "eval/accuracy" in known else chosen
    # Of the sources, whose names are not known here, each has some of the same.
    if metric not in known and not metric.startswith(tuple(f"{name}/" for name in known)):
        fix = f"{did_you_mean(metric, known)}one of {', '.join(known)}"
        what = f"{metric!r} is no metric of an evaluation of stage={config.stage.name}"
        yield Problem("train.best_metric", what, fix)
    elif not given_by.get(metric, True):
        fix = f"evaluation.{GENERATED[metric]}=100" if metric in GENERATED else "evaluation.choices=[yes,no], say"
        yield Problem("train.best_metric", f"no evaluation gives {metric}", fix)


def metrics_of(stage: StageConfig) -> tuple[str, ...]:
    """The names under which an evaluation of this stage gives what it measures."""
    kind = "answers" if isinstance(stage, PPOConfig) else "text"
    if stage.task is Task.token_classification:
        kind = "tags"
    elif isinstance(stage, PreferenceConfig):
        kind = "preferences"
    elif isinstance(stage, RewardConfig):
        kind = "reward"
    elif stage.task is Task.sequence_classification or isinstance(stage, VerbalizeConfig):
        kind = getattr(stage, "problem_type", ProblemType.single_label).value
    return tuple(f"eval/{name}" for name in METRICS[kind])


def _trackers(names: list[str]) -> Iterator[Problem]:
    for name in names:
        if name not in TRACKERS:
            fix = f"{did_you_mean(name, TRACKERS)}one or more of {', '.join(TRACKERS)}"
            yield Problem("train.trackers", f"there is no tracker {name!r}", fix)
        elif not _installed(name):
            yield Problem("train.trackers", f"{name} is not installed", f'pip install "tunecli[{name}]"')


def _installed(package: str) -> bool:
    """A folder of that name, which some trackers leave behind where they run, is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _launch(config: RunConfig) -> Iterator[Problem]:
    launch = config.launch
    if config.model.device_map is not None and (launch.num_processes or 1) > 1:
        yield Problem(
            "model.device_map",
            f"spreads one model over the GPUs of one process, but launch.num_processes is {launch.num_processes}",
            "launch.num_processes=1, or model.device_map=null",
        )
    if launch.strategy is not Strategy.cpu:
        return
    if config.model.device_map is not None:
        yield Problem("model.device_map", "needs GPUs, but launch.strategy is cpu", "model.device_map=null")
    if config.train.precision is Precision.fp16:
        yield Problem(
            "train.precision",
            "fp16 is for GPUs, but launch.strategy is cpu",
            "train.precision=auto (bf16 where this CPU computes it well, else fp32)",
        )


def _model_path(config: RunConfig) -> Iterator[Problem]:
    fix = (
        "model.path=PATH of what exists"
        if "assets/" not in config.model.path
        else ("python scripts/fetch_assets.py; model=smollm2_135m_hub loads it from the Hub")
    )
    path = config.model.path
    named = is_local(path) or (not path.startswith("builtin:") and is_folder_name(path))
    if named and not Path(path).expanduser().exists():
        yield Problem("model.path", f"{config.model.path} does not exist", fix)
    if not isinstance(config.stage, LabelConfig):  # it asks a model, adapters and all
        yield from _adapters_as_model(config.model.path)


def _adapters_as_model(path: str) -> Iterator[Problem]:
    """A full run's directory is its model; adapters are what an entry starts from."""
    folder = Path(path).expanduser()
    if (folder / "model" / "config.json").is_file() or not (folder / "config.yaml").is_file():
        return
    run = load_config(folder / "config.yaml")
    if not run.peft:
        yield Problem("model.path", f"{path} is a run that has no model yet", "name one that has finished")
        return
    chosen = choosing({name: method.method for name, method in run.peft.items()})
    starts = [f"peft.{name}.init_from={path}" for name in run.peft]
    yield Problem(
        "model.path",
        f"{path} is a run that trained adapters of {run.model.path}: {', '.join(run.peft)}",
        f"{' '.join([f'model.path={run.model.path}', *chosen, *starts])} trains them on; "
        f"or tune merge {path}, and name what that writes",
    )


def _output_dir(config: RunConfig) -> Iterator[Problem]:
    if config.output_dir is None:
        return
    folder = Path(config.output_dir).expanduser()
    if (folder / "config.yaml").exists() and has_begun(folder):
        yield Problem(
            "output_dir",
            f"{config.output_dir} holds a run already",
            f"`tune resume {config.output_dir}` goes on with it; or name another folder",
        )
