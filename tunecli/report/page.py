"""Runs as one HTML page that loads nothing, in light and dark, for a desk and for a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tunecli.config.train import falls
from tunecli.engine.console import JUDGED
from tunecli.report import numbers, results
from tunecli.report.charts import Chart, draw
from tunecli.report.difference import compare, labels
from tunecli.report.gain import NAMES, gains
from tunecli.report.generalisation import read_gap
from tunecli.report.html import render, write_page
from tunecli.report.numbers import in_words
from tunecli.report.results import Result
from tunecli.report.retained import read_retained
from tunecli.report.run_files import RESUMED, Curve, Run, read_run, read_together

PROMPTS = 12
"""Prompts whose answers are shown; those after are folded away."""
COUNTED = ("step", "tokens", "seconds", "seconds_per_step")
"""Of metrics.jsonl: what only grows, or is the inverse of something drawn."""
OF_ROWS = ("rows", "split_rows", "left_out")
"""Of environment.json's data: beginnings of what is counted before a share of the rows is held out."""
TITLES = {
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens per second",
    "memory_peak_bytes": "Peak memory",
    "mcc": "Matthews correlation",
    "ece": "Calibration error",
    "mse": "Squared error",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "f1": "F1",
    "f1_macro": "F1, mean over labels",
    "f1_micro": "F1 over all labels",
}
STATES = {
    "finished": "has finished",
    "interrupted": "was interrupted, with a checkpoint; it can be resumed",
    "running": "goes on; this is how far it was when the page was written",
    "killed": "was killed; it can be resumed from its newest checkpoint",
    "not started": "has not trained yet",
}


@dataclass(frozen=True, slots=True)
class Setting:
    key: str
    value: str
    origin: str
    """empty where it is not known"""
    by_default: bool


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model said to one prompt over the steps."""

    prompt: str
    expected: str | None
    answers: list[tuple[int, str, str]]
    """step, answer and what it was judged to be, in order"""


def write_report(run_dir: Path, path: Path | None = None) -> Path:
    """Write the report of a run, also of one that goes on or was killed, into its directory, or else to `path`.

    Raises:
        UserError: not a run directory, or the file cannot be written.
    """
    run = read_run(run_dir)
    data = run.environment.get("data", {})
    charts = list(_charts(run))
    page = render(
        "run.html.jinja",
        run=run,
        state=STATES.get(run.state, run.state),
        description=_description(run),
        tiles=_tiles(run),
        charts=charts,
        numbers=_island(charts),
        results=[(result, numbers.unit_of(result.name)) for result in results.results(run)],
        gains=[(NAMES.get(gain.metric, gain.metric), gain) for gain in gains(run.path)],
        gap=read_gap(run.path),
        retained=read_retained(run.path),
        conversations=_conversations(run.samples),
        prompts=PROMPTS,
        data=_data_table(data),
        parts=list(data),
        settings=list(_settings(run)),
        hardware=_flat(run.environment.get("hardware", {})),
    )
    path = path or run.path / "report.html"
    write_page(page, path)
    return path


def write_comparison(run_dirs: Sequence[Path], path: Path) -> None:
    """Write one page that compares runs.

    Raises:
        UserError: one is not a run directory or named twice, or the file cannot be written.
    """
    runs = [read_run(run_dir) for run_dir in run_dirs]
    names = labels(runs)
    charts = list(_overlaid(runs, names))
    found = [{result.name: result for result in results.results(run)} for run in runs]
    tiles = [{label: value for value, label in _tiles(run)} for run in runs]
    page = render(
        "comparison.html.jinja",
        runs=list(zip(names, runs, found, strict=True)),
        metrics=list(_best(found)),
        tiles=tiles,
        labels=list(dict.fromkeys(label for each in tiles for label in each)),
        sections=[section for section in compare(runs) if section.title not in ("results", "speed")],
        charts=charts,
        numbers=_island(charts),
    )
    write_page(page, path)


def _charts(run: Run) -> Iterator[Chart]:
    """Loss first, then what was evaluated, then the rest in the order of metrics.jsonl."""
    curves = {name: curve for name, curve in run.curves.items() if name not in COUNTED}
    both = [("training", 0, curves.pop("loss", None)), ("validation", 1, curves.pop("eval/loss", None))]
    if drawn := [(label, colour, curve) for label, colour, curve in both if curve is not None]:
        yield draw("loss", "Loss", drawn, wide=True)
    for prefix, title in (("loss/", "Training loss by source"), ("eval/loss/", "Validation loss by source")):
        names = [name for name in curves if name.startswith(prefix)]
        if names:
            by_source = [(name.removeprefix(prefix), i, curves.pop(name)) for i, name in enumerate(names)]
            yield draw("loss", title, by_source)
    for name in sorted(curves, key=lambda name: not name.startswith("eval/")):
        yield _single(name, [("", int(name.startswith("eval/")), curves[name])])


def _overlaid(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Chart]:
    found = list(dict.fromkeys(name for run in runs for name in run.curves if name not in COUNTED))
    found.sort(key=lambda name: (name not in ("loss", "eval/loss"), not name.startswith("eval/"), name.count("/")))
    for name in found:
        yield _single(name, [(label, i, run.curves[name]) for i, (label, run) in _with_curve(names, runs, name)])


def _with_curve(names: Sequence[str], runs: Sequence[Run], metric: str) -> Iterator[tuple[int, tuple[str, Run]]]:
    for i, (label, run) in enumerate(_zip(names, runs)):
        if metric in run.curves:
            yield i, (label, run)


def _zip(names: Sequence[str], runs: Sequence[Run]) -> Iterator[tuple[str, Run]]:
    return zip(names, runs, strict=True)


def _single(name: str, curves: list[tuple[str, int, Curve]]) -> Chart:
    return draw(name, title_of(name), curves)


def _best(found: Sequence[dict[str, Result]]) -> Iterator[tuple[str, float | None]]:
    """Each metric and the best of its last values; None where they are all the same."""
    for name in dict.fromkeys(name for each in found for name in each):
        choose = min if falls(name) else max
        values = {each[name].last.value for each in found if name in each}
        yield name, choose(values) if len(values) > 1 else None


FAMILIES = ("rewards", "logps")
"""First halves of names of metrics; others stand in front of the name of a data source."""


def title_of(metric: str) -> str:
    """`eval/exact_match` -> Exact match (validation)"""
    part = "validation" if metric.startswith("eval/") else "training"
    name, _, source = metric.removeprefix("eval/").partition("/")
    if name in FAMILIES:
        which, _, source = source.partition("/")
        name = f"{name}, {which}"
    words = name.replace("_", " ")
    title = TITLES.get(name, words[:1].upper() + words[1:]) + (f" of {source}" if source else "")
    return f"{title} ({part})" if part == "validation" or name == "loss" else title


def _tiles(run: Run) -> list[tuple[str, str]]:
    """Value and label of what one looks for first."""
    tiles = [(f"{run.step:,}" + (f" of {run.num_steps:,}" if run.num_steps else ""), "steps")]
    if (seconds := results.seconds(run)) is not None:
        tiles.append((numbers.duration(seconds), "training time"))
    if (tokens := results.tokens(run)) is not None:
        tiles.append((numbers.large(tokens), "tokens"))
    if (speed := results.tokens_per_second(run)) is not None:
        tiles.append((numbers.shown(speed), "tokens/s (median)"))
    if (memory := results.memory_peak_bytes(run)) is not None:
        tiles.append((numbers.shown(memory, "bytes"), "peak memory"))
    return tiles


def _description(run: Run) -> str:
    config = run.config
    peft = dict.fromkeys(key.split(".")[1] for key in config if key.startswith("peft."))
    method = " + ".join(peft) or "full fine-tuning"
    quantization = config.get("model.quantization", "none")
    base = _short(config.get("model.path")) + ("" if quantization == "none" else f" in {quantization}")
    sources = [source["path"] for source in config.get("data.mix") or []] or [config.get("data.path")]
    return f"{config.get('stage.name')} of {base} with {method} on {', '.join(map(_short, sources))}"


def _short(path: object) -> str:
    """What of a path tells: its last two parts. The whole one stands in the configuration."""
    return "/".join(Path(str(path)).parts[-2:]) if str(path).count("/") > 1 else str(path)


def _conversations(samples: list[dict[str, Any]]) -> list[Answers]:
    """By prompt, in the order of the first samples. Of a step that was trained twice, the later answer counts."""
    found: dict[tuple[str, str | None], dict[int, tuple[str, str]]] = {}
    for sample in samples:
        key = str(sample["prompt"]), sample.get("expected")
        judged = ", ".join(f"{name} {sample[name]}" for name in JUDGED if name in sample)
        found.setdefault(key, {})[int(sample["step"])] = str(sample["answer"]), judged
    return [
        Answers(prompt, expected, [(step, *each) for step, each in sorted(said.items())])
        for (prompt, expected), said in found.items()
    ]


def _data_table(data: dict[str, dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Name and one value for each part: training, validation."""
    columns = [_flat(part) for part in data.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    together = [name for name in names if name.startswith(OF_ROWS)] if read_together(data) else []
    return [
        (f"{name.replace('_', ' ')}, both together", [columns[0].get(name, ""), *("" for _ in columns[1:])])
        if name in together
        else (name.replace("_", " "), [column.get(name, "") for column in columns])
        for name in names
    ]


def _flat(node: dict[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= {f"{key}: {name}": in_words(each) for name, each in value.items()}
        elif isinstance(value, list):
            flat[key] = ", ".join(in_words(each) for each in dict.fromkeys(value)) or "none"
        else:
            flat[key] = in_words(value)
    return flat


def _settings(run: Run) -> Iterator[Setting]:
    resumed = run.overrides[run.overrides.index(RESUMED) + 1 :] if RESUMED in run.overrides else []
    changed = {word.lstrip("+").partition("=")[0] for word in resumed}
    for key, value in run.config.items():
        origin = "command line of tune resume" if key in changed else run.origins.get(key, "")
        yield Setting(key, in_words(value), origin, by_default=origin.startswith("default of"))


def _island(charts: Sequence[Chart]) -> Markup:
    """The drawn numbers as JSON that cannot end the script element it stands in."""
    text = json.dumps({"charts": [chart.numbers() for chart in charts]}, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
