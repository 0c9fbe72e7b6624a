"""What a model card says about a run: how it was made, what came out, and the limits of that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from tunecli.config.counted import counted
from tunecli.config.data import training_sources, validation_share, validation_source
from tunecli.config.data_files import is_local
from tunecli.config.peft import HEAD, PeftConfig
from tunecli.config.run import RunConfig, micro_batch_tokens
from tunecli.config.stage import Objective, PretrainConfig, StageConfig, VerbalizeConfig
from tunecli.report.card_text import code, escaped, public, table
from tunecli.report.run_files import json_lines

SOFTWARE = ("tunecli", "torch", "transformers", "peft", "bitsandbytes")
STAGES = {
    "sft": "supervised fine-tuning (cross-entropy on the answers)",
    "classify": "classification of texts, with a head of its own",
    "tag": "a label for each word, with a head of its own",
    "seq2seq": "text to text (cross-entropy on the targets)",
    "verbalize": "classification by the words for labels in the gap of a template",
    "reward": "a score for an answer, from comparisons or scores, with a head of its own",
    "pretrain": "continued pretraining on documents",
}
OBJECTIVES = {
    Objective.causal_lm: "each token from those before it",
    Objective.masked_lm: "masked tokens from those around them",
    Objective.span_corruption: "spans that are taken out",
    Objective.prefix_lm: "the rest of a text from its beginning",
}


def about_run(
    config: RunConfig,
    run_dir: Path,
    data: Mapping[str, Any] | None,
    results: Mapping[str, float],
    *,
    made: str = "How it was made",
    of: str = "",
) -> list[tuple[str, str]]:
    """The sections that say how it was trained and what came out. `made`: the first one's title. `of`: whose results
    these are."""
    sections = [(made, table(("", ""), _recipe(config, run_dir, data)))]
    before, after = _evaluations(run_dir)
    after = after | dict(results)
    if after:
        rows = [(code(name), _number(before.get(name)), _number(value)) for name, value in after.items()]
        measured = table(("metric", "before training", "after"), rows)
        note = "`eval/…` is measured on the validation data"
        note += ", `loss` is that of the last logged training step." if "loss" in after else "."
        sections.append((f"Results{of}", f"{measured}\n\n{note}"))
    return sections


def _recipe(config: RunConfig, run_dir: Path, data: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    train, model = config.train, config.model
    environment = _json(run_dir / "environment.json")
    last = _last_step(run_dir)
    revision = f", revision {code(model.revision)}" if model.revision else ""
    quantized = "" if model.quantization.value == "none" else f", in {model.quantization.value}"
    sources = ", ".join(code(public(source.path)) for source in training_sources(config.data))
    learnt = "label" if config.stage.task.has_labels else "trained token"
    counts = (
        f"{counted(data['examples'], 'example')}, {counted(data['trained_tokens'], learnt)}" if data else "streamed"
    )
    size, tokens = train.micro_batch_size, micro_batch_tokens(config)
    cut = counted(size, "example") if size else f"{tokens} tokens"
    steps = last.get("step") or train.max_steps
    length = counted(steps, "step") if steps else f"{train.num_epochs:g} passes"
    rows = [
        ("recipe", code(config.recipe)),
        ("base model", f"{code(public(model.path))}{revision}{quantized}"),
        ("stage", _stage(config.stage)),
        ("method", "; ".join(_method(name, method) for name, method in config.peft.items()) or "full fine-tuning"),
        ("training data", f"{sources}: {counts}"),
    ]
    if config.data.validation is not None:
        rows.append(("validation data", escaped(validation_data(config)[0])))
    if steps:
        rows.append(("examples seen", _seen(steps * train.global_batch_size, data)))
    rows += [
        ("longest example", f"{config.data.max_length} tokens"),
        ("length", f"{length} of {counted(train.global_batch_size, 'example')}, in micro-batches of up to {cut}"),
        ("optimizer", f"{train.optimizer.value}, weight decay {train.weight_decay:g}"),
        ("gradient norm", f"clipped at {train.max_grad_norm:g}" if train.max_grad_norm else "not clipped"),
        ("learning rate", f"{train.learning_rate:g}, {train.lr_scheduler.value}, warm-up {train.warmup_steps:g}"),
        ("precision", train.precision.value),
        ("seed", str(config.seed)),
    ]
    if hardware := environment.get("hardware"):
        rows.append(("hardware", _hardware(hardware, config.launch.num_processes or 1)))
    if "seconds" in last:
        minutes, seconds = divmod(round(last["seconds"]), 60)
        rows.append(("time", f"{minutes} min {seconds} s" if minutes else f"{seconds} s"))
    if packages := environment.get("packages"):
        rows.append(("software", ", ".join(f"{name} {packages[name]}" for name in SOFTWARE if name in packages)))
    return rows


def _stage(stage: StageConfig) -> str:
    """What was learnt, and what it was asked with."""
    what = STAGES.get(stage.name, escaped(stage.name))
    if isinstance(stage, PretrainConfig):
        return f"{what} ({OBJECTIVES[stage.objective]})"
    if isinstance(stage, VerbalizeConfig):
        templates = ", ".join(map(code, stage.templates))
        words = ", ".join(f"{code(word)} for {code(label)}" for label, word in stage.verbalizer.items())
        return f"{what}: {templates}, with {words}" if words else f"{what}: {templates}"
    return what


def _seen(number: int, data: Mapping[str, Any] | None) -> str:
    """How much of the training data the steps went through."""
    if not data or not data["examples"]:
        return f"{number:,}"
    share = number / data["examples"]
    if share > 1:
        return f"{number:,} ({share:.3g} passes over them)"
    return f"{number:,} ({f'{share:.0%}' if share >= 0.01 else f'{share:.2%}'} of them)"


STARTING = ("method", "init_from", "freeze")


def _method(name: str, method: PeftConfig) -> str:
    """An entry and its settings, in the words of a recipe."""
    if name == HEAD:
        return "a new head for the labels"
    values = {
        field.name: getattr(method, field.name)
        for field in fields(method)
        if field.name not in STARTING and not _goes_without_saying(field, getattr(method, field.name))
    }
    if method.init_from is not None:
        values |= {"init_from": _start(method.init_from), "freeze": method.freeze}
    shown = ", ".join(f"{key} {_setting(value)}" for key, value in values.items())
    label = method.method if name == method.method else f"{code(name)} ({method.method})"
    return f"{label}: {shown}" if shown else label


def _start(path: str) -> str:
    """As `public`; of an adapter in a run directory, with that directory's name."""
    home = Path(path).parent
    return "/".join(Path(path).parts[-3:]) if home.name == "adapter" else public(path)


def _goes_without_saying(field: Field[Any], value: Any) -> bool:
    """Unset or empty, or a default that is a word or leaves things as they are (no dropout, a factor of 1)."""
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return value is None or (value == default and (value in ([], {}, 0, 1) or isinstance(value, Enum)))


def _setting(value: Any) -> str:
    """As in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return code(", ".join(map(_word, value)))
    if isinstance(value, dict):
        return code(", ".join(f"{name}: {_word(each)}" for name, each in value.items()))
    return code(value) if isinstance(value, str) else escaped(_word(value))


def _word(value: Any) -> str:
    return str(value.value if isinstance(value, Enum) else value)


def _hardware(hardware: Mapping[str, Any], processes: int) -> str:
    machine = (
        ", ".join(gpu["name"] for gpu in hardware.get("gpus", [])) or f"{hardware['cores']} cores, {hardware['cpu']}"
    )
    return f"{escaped(machine)}; {counted(processes, 'process', 'processes')}"


def validation_data(config: RunConfig) -> tuple[str, str | None]:
    """Name of the validation data, and their Hub id if they are from there."""
    share, source = validation_share(config.data), validation_source(config.data)
    if source is not None:
        return f"{public(source.path)} (split {source.split})", source.path if on_hub(source.path) else None
    training = training_sources(config.data)
    name = ", ".join(public(source.path) for source in training)
    only = training[0].path if len(training) == 1 and on_hub(training[0].path) else None
    return f"{100 * (share or 0):g} % of the rows of {name}, held out", only


LIMITS = (
    "It knows what its base model knows and repeats its mistakes and biases. Nothing here says how it does on texts "
    "unlike those it was measured on, or that what it says is true or harmless. The licences of the base model and "
    "of the data apply to it."
)


def limits_of(config: RunConfig) -> str:
    if config.data.validation is None:
        return f"{LIMITS} It was trained without validation data."
    return f"{LIMITS} The results hold for texts like those of the validation data."


def _evaluations(run_dir: Path) -> tuple[dict[str, float], dict[str, float]]:
    """What was measured before the first step, and what last."""
    lines = [line for line in json_lines(run_dir / "metrics.jsonl") if any(name.startswith("eval/") for name in line)]
    values = [{name: value for name, value in line.items() if name.startswith("eval/")} for line in lines]
    before = values[0] if lines and lines[0].get("step") == 0 else {}
    return before, values[-1] if values else {}


def _step(line: Mapping[str, Any]) -> int:
    return line["step"]


def _last_step(run_dir: Path) -> dict[str, Any]:
    """The last training line of metrics.jsonl."""
    return max((line for line in json_lines(run_dir / "metrics.jsonl") if "loss" in line), key=_step, default={})


def data_summary(run_dir: Path) -> dict[str, Any] | None:
    """Counts of the training data; None if they were streamed."""
    return _json(run_dir / "environment.json").get("data", {}).get("train")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def on_hub(path: str) -> bool:
    return not path.startswith("builtin:") and not is_local(path)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
