"""An evaluation, or a comparison of several, as one HTML page that loads nothing, in light and dark, for a desk and
for a phone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunecli.config.counted import counted
from tunecli.config.train import falls
from tunecli.evaluation.kinds import Kind
from tunecli.evaluation.records import Record, lead
from tunecli.evaluation.tables import Confusion
from tunecli.evaluation.uncertainty import Difference, McNemar, Metric
from tunecli.report import html
from tunecli.report.numbers import chance, difference, shown, unit_of
from tunecli.scoring import Scores
from tunecli.scoring.comparison import Compared, Comparison

MOST_LABELS = 30
"""Of a confusion matrix that is shown whole."""
MISTAKES = 12
TO_ONE = ("accuracy", "f1", "precision", "recall", "mcc", "pearson", "spearman", "exact_match", "ece", "rouge")
"""Beginnings of the names of metrics that end at 1."""
PACKAGE = "tunecli.scoring"


@dataclass(frozen=True, slots=True)
class Bar:
    """A metric on an axis, in percent of it."""

    name: str
    text: str
    at: float
    low: float | None
    width: float


@dataclass(frozen=True, slots=True)
class Heat:
    count: int
    share: float
    """of the row"""


@dataclass(frozen=True, slots=True)
class Mistake:
    where: str
    text: str
    expected: str
    predicted: str
    sure: str


def write_page(scores: Scores, path: Path) -> None:
    """Raises UserError where the file cannot be written."""
    page = html.render(
        "evaluation.html.jinja",
        package=PACKAGE,
        scores=scores,
        axis=_axis(scores.metrics),
        bars=_bars(scores.metrics),
        others=[(name, text_of(name, each)) for name, each in scores.metrics.items() if not _on_axis(name)],
        gap=_gap(scores),
        tables=[(table, heat(table.confusion), confusions(table.confusion)) for table in scores.tables],
        mistakes=list(_mistakes(scores.records, scores.kind)),
        data=_data(scores.data),
    )
    html.write_page(page, path)


def text_of(name: str, metric: Metric) -> str:
    """As in 0.8125 [0.75, 0.86]."""
    unit = unit_of(name.partition("/")[0])
    if metric.low is None or metric.high is None:
        return shown(metric.value, unit)
    return f"{shown(metric.value, unit)} [{shown(metric.low, unit)}, {shown(metric.high, unit)}]"


def heat(confusion: Confusion | None) -> list[list[Heat]] | None:
    """None where there are too many labels to show."""
    if confusion is None or len(confusion.labels) > MOST_LABELS:
        return None
    return [[Heat(count, count / max(sum(row), 1)) for count in row] for row in confusion.counts]


def confusions(confusion: Confusion | None, most: int = 20) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: expected, predicted, how often."""
    if confusion is None:
        return []
    found = [
        (expected, predicted, confusion.counts[i][j])
        for i, expected in enumerate(confusion.labels)
        for j, predicted in enumerate(confusion.labels)
        if i != j and confusion.counts[i][j]
    ]
    return sorted(found, key=lambda each: -each[2])[:most]


def _on_axis(name: str) -> bool:
    return name.partition("/")[0].startswith(TO_ONE)


def _axis(metrics: dict[str, Metric]) -> tuple[float, float]:
    lows = [each.value if each.low is None else each.low for name, each in metrics.items() if _on_axis(name)]
    return (-1.0 if min(lows, default=0.0) < 0 else 0.0, 1.0)


def _bars(metrics: dict[str, Metric]) -> list[Bar]:
    low, high = _axis(metrics)

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    return [
        Bar(
            name,
            text_of(name, each),
            place(each.value),
            None if each.low is None else place(each.low),
            0.0 if each.low is None or each.high is None else place(each.high) - place(each.low),
        )
        for name, each in metrics.items()
        if _on_axis(name)
    ]


def _gap(scores: Scores) -> list[tuple[str, str, float, float, float]]:
    """Name, unit, score on training rows, score here, difference."""
    if scores.gap is None:
        return []
    return [
        (name, unit_of(name.partition("/")[0]), scores.gap.train[name], scores.metrics[name].value, gap)
        for name, gap in scores.gap.difference.items()
    ]


def _misjudged(record: Record) -> Mistake:
    chosen, rejected = record.get("chosen_text", ""), record.get("rejected_text")
    texts = (chosen, rejected) if record["probability"] > 0.5 else (rejected or "", chosen)
    scores = (record["chosen"], record["rejected"])[:: 1 if record["probability"] > 0.5 else -1]
    said = f"{scores[0]:.3g} for it, {scores[1]:.3g} for the other"
    return Mistake(_where(record), _shortened(*texts), "the first better", said, "")


def _mistakes(records: Sequence[Record], kind: Kind) -> list[Mistake]:
    """Those that the model was surest of."""
    if kind is Kind.single_label:
        wrong = [record for record in records if record["expected"] != record["predicted"]]
        wrong.sort(key=lambda record: -record["probability"])
        return [
            Mistake(
                _where(each),
                _shortened(each.get("text", ""), each.get("text_pair")),
                each["expected"],
                each["predicted"],
                shown(each["probability"], "share"),
            )
            for each in wrong[:MISTAKES]
        ]
    if kind is Kind.regression:
        far = sorted(records, key=lambda record: -abs(record["expected"] - record["predicted"]))
        return [
            Mistake(
                _where(each),
                _shortened(each.get("text", ""), each.get("text_pair")),
                f"{each['expected']:g}",
                f"{each['predicted']:.3g}",
                "",
            )
            for each in far[:MISTAKES]
        ]
    if kind is Kind.reward:
        leads = [lead(record) for record in records]
        behind = sorted((each, i) for i, each in enumerate(leads) if each is not None and each < 0)
        return [_misjudged(records[i]) for _, i in behind[:MISTAKES]]
    if kind is Kind.multi_label:
        wrong = [record for record in records if set(record["expected"]) != set(record["predicted"])]
        return [
            Mistake(
                _where(each),
                _shortened(each.get("text", ""), each.get("text_pair")),
                ", ".join(each["expected"]) or "none",
                ", ".join(each["predicted"]) or "none",
                "",
            )
            for each in wrong[:MISTAKES]
        ]
    if kind is Kind.tags:
        wrong = [record for record in records if _wrong_words(record)]
        wrong.sort(key=lambda record: -len(_wrong_words(record)))
        return [
            Mistake(
                _where(each),
                _shortened(" ".join(each.get("words", [])), None),
                _tagged(each, "expected"),
                _tagged(each, "predicted"),
                "",
            )
            for each in wrong[:MISTAKES]
        ]
    if kind is Kind.preference:
        return []  # its answers are compared with one another, not with a right one
    wrong = [record for record in records if "predicted" in record and record["predicted"] != record["expected"]]
    return [
        Mistake(_where(each), _shortened(each["prompt"], None), each["expected"], each["predicted"] or "nothing", "")
        for each in wrong[:MISTAKES]
    ]


def _wrong_words(record: Record) -> list[int]:
    pairs = zip(record["expected"], record["predicted"], strict=True)
    return [i for i, (expected, predicted) in enumerate(pairs) if predicted is not None and expected != predicted]


def _tagged(record: Record, key: str) -> str:
    """The words that are tagged wrongly, with what they are said to be."""
    words = record.get("words") or [f"word {i + 1}" for i in range(len(record["expected"]))]
    return ", ".join(f"{words[i]}: {record[key][i]}" for i in _wrong_words(record)[:6])


def _where(record: Record) -> str:
    return f"{record['file']} row {record['row']}"


def _shortened(text: str, pair: str | None) -> str:
    whole = text if pair is None else f"{text} ‖ {pair}"
    return whole if len(whole) <= 400 else f"{whole[:200]} … {whole[-200:]}"


def _data(data: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("rows of", ", ".join(map(str, data["paths"])))]
    if data["share"] is not None:
        rows.append(("share", f"{data['share']:g} of them, held out by content"))
    rows.append(("examples", f"{data['examples']:,}"))
    if data["truncated"]:
        rows.append(("cut to data.max_length", f"{data['truncated']:,}"))
    rows += [(f"left out: {why}", f"{count:,}") for why, count in data["left_out"].items()]
    return rows


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Raises UserError where the file cannot be written."""
    page = html.render(
        "comparison_of_scores.html.jinja",
        package=PACKAGE,
        comparison=comparison,
        names=[each.name for each in comparison.runs],
        metrics=[
            (name, [_cell(name, each.metrics[name]) for each in comparison.runs]) for name in comparison.metrics
        ],
        differences=[
            (each.name, list(_differences(each)), mcnemar_of(each.mcnemar) if each.mcnemar is not None else "")
            for each in comparison.runs[1:]
        ],
    )
    html.write_page(page, path)


def verdict(name: str, difference: Difference) -> str:
    """good, bad, or nothing where it may be chance, or that is not known."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return ""
    return "good" if (difference.value < 0) == falls(name) else "bad"


def _cell(name: str, metric: Metric) -> tuple[str, str]:
    value, _, interval = text_of(name, metric).partition(" ")
    return value, interval


def _differences(each: Compared) -> Iterator[tuple[str, str, str, str, str]]:
    for name, found in each.differences.items():
        yield name, *difference_of(name, found), verdict(name, found)


def difference_of(name: str, found: Difference) -> tuple[str, str, str]:
    """Value, interval and p; these are empty where they are not known."""
    unit = unit_of(name.partition("/")[0])
    value = difference(found.value, unit)
    if found.low is None or found.high is None or found.p is None:
        return value, "", ""
    low, high = (difference(border, unit).replace(" points", "") for border in (found.low, found.high))
    return value, f"[{low}, {high}]", chance(found.p)


def mcnemar_of(test: McNemar) -> str:
    """As in: McNemar: 3 rows right only here, 12 only there, p = 0.035."""
    p = chance(test.p)
    said = f"p {p}" if p.startswith("<") else f"p = {p}"
    return f"McNemar: {counted(test.only_this, 'row')} right only here, {test.only_first:,} only there, {said}"
