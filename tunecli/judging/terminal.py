"""What a judge said, as text in a terminal, a file or a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tunecli.config.counted import counted
from tunecli.engine.text import visible
from tunecli.judging.trial import Trial
from tunecli.ops.bootstrap import Interval

NAMES = {
    "accuracy": "right, both orders averaged",
    "kappa": "Cohen's kappa",
    "one_order_accuracy": "right, one order alone",
    "position_bias": "pairs whose orders contradict each other",
    "first_place": "verdicts for what stands first",
    "ties": "ties",
    "consistency": "answers to a question that agree",
    "score": "mean score",
    "pearson": "Pearson's correlation with the scores",
    "spearman": "Spearman's correlation with the scores",
}
NUMBERS = ("kappa", "score", "pearson", "spearman")
"""Metrics that are no shares."""
PIPED = 10_000
"""Columns where there is no terminal."""


@contextmanager
def progress(what: str, *, enabled: bool) -> Iterator[Callable[[float], None]]:
    """A bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (enabled and console.is_terminal)) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda done: bar.update(task, completed=done)


def show(trial: Trial) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED
    console.print(Text(visible(f"{trial.judge} on {counted(len(trial.records), trial.kind.rstrip('s'))}"), "bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    table.add_column("value [95% interval]", justify="right")
    ordered = "one_order_accuracy" in trial.measured
    for name, text in NAMES.items():
        if name == "accuracy" and not ordered:
            text = "right"
        if name in trial.measured:
            table.add_row(text, Text(text_of(name, trial.measured[name])))
    console.print(table)
    for line in lines_of(trial.summary):
        console.print(Text(line, "dim"))


def text_of(name: str, measured: Interval) -> str:
    def shown(value: float) -> str:
        return f"{value:.2f}" if name in NUMBERS else f"{100 * value:.1f}%"

    interval = f" [{shown(measured.low)}, {shown(measured.high)}]" if measured.low < measured.high else ""
    return shown(measured.value) + interval


def lines_of(summary: dict[str, Any]) -> list[str]:
    """Of answers, what they cost, and what could not be read."""
    answers, usage = summary["answers"], summary["usage"]
    lines = [f"{counted(answers['answers'], 'answer')}, {answers['from_cache']:,} of them from the cache"]
    if answers["unreadable"]:
        lines.append(
            f"{counted(answers['unreadable'], 'answer')} could not be read; "
            f"{counted(answers['failed'], 'question')} of {answers['questions']:,} have no verdict"
        )
    if usage["requests"]:
        failures = ", ".join(f"{number} times {kind}" for kind, number in usage["failures"].items())
        lines.append(f"{counted(usage['requests'], 'request')}{f', sent again: {failures}' if failures else ''}")
    if usage["prompt_tokens"]:
        price = "" if summary["cost"] is None else f", for {summary['cost']:.4f}"
        lines.append(f"{usage['prompt_tokens']:,} tokens read, {usage['written_tokens']:,} written{price}")
    return lines
