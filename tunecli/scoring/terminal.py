"""An evaluation as text in a terminal, a file or a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid
from rich.text import Text

from tunecli.config.counted import counted
from tunecli.engine.text import visible
from tunecli.evaluation.tables import Table
from tunecli.report.numbers import TOO_FEW, difference, shown, unit_of
from tunecli.scoring import Proceed, Scores
from tunecli.scoring.comparison import Compared, Comparison
from tunecli.scoring.harness import HarnessScores
from tunecli.scoring.harness import text_of as harness_text
from tunecli.scoring.judging import Judged
from tunecli.scoring.page import confusions, difference_of, mcnemar_of, text_of, verdict

SHOWN_CLASSES = 40
WORDS = {"good": ("green", "better"), "bad": ("red", "worse"), "": ("dim", "may be chance")}
"""Verdict -> its colour, and what is said."""
ANSWER = 48
"""Characters of an answer in a table."""
PIPED = 10_000
"""Columns where there is no terminal."""


@contextmanager
def progress(*, enabled: bool) -> Iterator[Proceed]:
    """A bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (enabled and console.is_terminal)
    ) as shown_bar:
        task = shown_bar.add_task("loading", total=1.0)

        def proceed(what: str, done: float) -> bool:
            shown_bar.update(task, description=what, completed=done)
            return True

        yield proceed


def show(scores: Scores) -> None:
    console = _console()
    about = f"{scores.subject} on {scores.data['name']}: {counted(scores.data['examples'], 'example')}"
    console.print(Text(visible(about), style="bold"))
    console.print(_metrics(scores))
    for table in scores.tables:
        _show_table(console, table)
    for note in scores.notes:
        console.print(Text(visible(note), style="yellow"))


def show_judged(judged: Judged, number: int) -> None:
    """The summary, and the first `number` rows."""
    console = _console()
    about = f"{judged.subject} on {judged.data}: {counted(len(judged.records), 'row')}"
    console.print(Text(visible(about), style="bold"))
    table = grid(["row", "answer", "score", "rejected", "score"])
    table.columns[1].justify = table.columns[3].justify = "left"
    for record in judged.records[:number]:
        answer = record.get("chosen_text") or record.get("completion") or record.get("text") or ""
        scores = [f"{record[key]:.3f}" for key in ("score", "chosen", "rejected") if key in record]
        other = [_answer(record.get("rejected_text", "")), scores[1]] if len(scores) > 1 else ["", ""]
        table.add_row(str(record["row"]), _answer(answer), scores[0], *other)
    console.print(table)
    if len(judged.records) > number:
        console.print(Text(f"and {len(judged.records) - number:,} more; --out FILE has them all", style="dim"))
    console.print()
    found = grid(["", "value"])
    for name, value in judged.summary.items():
        found.add_row(name, shown(value, unit_of(name)))
    console.print(found)
    if judged.left_out:
        console.print(Text(f"left out: {counted(judged.left_out, 'row')} that cannot be used", style="yellow"))


def _answer(text: str) -> Text:
    line = " ".join(text.split())
    return Text(visible(line if len(line) <= ANSWER else f"{line[: ANSWER - 1]}…"))


def show_harness(scores: HarnessScores) -> None:
    console = _console()
    console.print(Text(visible(f"{scores.subject} in lm-evaluation-harness {scores.version}"), style="bold"))
    table = grid(["task", "metric", "value [95% interval]", "questions"])
    for each in scores.measured:
        name = each.metric if each.filter == "none" else f"{each.metric} ({each.filter})"
        questions = "" if each.questions is None else f"{each.questions:,}"
        table.add_row(*[Text(visible(cell)) for cell in (each.task, name, harness_text(each), questions)])
    console.print(table)


def show_comparison(comparison: Comparison) -> None:
    console = _console()
    console.print(Text(visible(f"on {comparison.data}: {counted(comparison.examples, 'example')}"), style="bold"))
    table = grid(["", *(visible(each.name) for each in comparison.runs)])
    for name in comparison.metrics:
        table.add_row(Text(visible(name)), *(text_of(name, each.metrics[name]) for each in comparison.runs))
    console.print(table)
    for each in comparison.runs[1:]:
        _show_differences(console, comparison.runs[0].name, each)
    for note in comparison.notes:
        console.print(Text(visible(note), style="yellow"))


def _show_differences(console: Console, first: str, each: Compared) -> None:
    console.print()
    table = grid([visible(f"{each.name} against {first}"), "difference", "95% interval", "p", ""])
    for name, found in each.differences.items():
        value, interval, p = difference_of(name, found)
        style, said = WORDS[verdict(name, found)]
        if not interval or not found.value:
            said = TOO_FEW if found.value else "the same"
        table.add_row(Text(visible(name)), Text(value, style), interval, p, Text(said, style))
    console.print(table)
    if each.mcnemar is not None:
        console.print(Text(mcnemar_of(each.mcnemar), style="dim"))


def grid(columns: Sequence[str]) -> Grid:
    """The first column to the left, the others to the right."""
    found = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for i, name in enumerate(columns):
        found.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    return found


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED
    return console


def _metrics(scores: Scores) -> Grid:
    with_gap = scores.gap is not None
    found = grid(["", "value [95% interval]", *(["training rows", "gap"] if with_gap else [])])
    for name, metric in scores.metrics.items():
        cells = [name, text_of(name, metric)]
        if scores.gap is not None and name in scores.gap.difference:
            unit = unit_of(name.partition("/")[0])
            cells += [shown(scores.gap.train[name], unit), difference(scores.gap.difference[name], unit)]
        found.add_row(*[Text(visible(cell)) for cell in cells])
    return found


def _show_table(console: Console, table: Table) -> None:
    if not table.classes:
        return
    found = grid([table.task or "label", "precision", "recall", "F1", "support"])
    for each in table.classes[:SHOWN_CLASSES]:
        numbers = [f"{value:.3f}" for value in (each.precision, each.recall, each.f1)]
        found.add_row(Text(visible(each.label)), *numbers, f"{each.support:,}")
    console.print()
    console.print(found)
    if len(table.classes) > SHOWN_CLASSES:
        console.print(Text(f"and {len(table.classes) - SHOWN_CLASSES} more", style="dim"))
    if mistakes := confusions(table.confusion, 3):
        said = "; ".join(f"{expected} as {predicted} ({count:,})" for expected, predicted, count in mistakes)
        console.print(Text(visible(f"most often mistaken: {said}"), style="dim"))
