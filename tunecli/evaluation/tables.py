"""What predictions that are written down come to, label by label: precision and recall, what is taken for what, and
how far probabilities can be trusted."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tunecli.evaluation.kinds import Kind
from tunecli.evaluation.metrics import NUM_BINS

Record = dict[str, Any]
"""A line of predictions.jsonl."""
OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class PerClass:
    label: str
    precision: float
    recall: float
    f1: float
    support: int
    """examples that have it; of tags, spans"""


@dataclass(frozen=True, slots=True)
class Confusion:
    labels: list[str]
    counts: list[list[int]]
    """[expected, predicted]"""
    of: str = "texts"
    """what is counted"""


@dataclass(frozen=True, slots=True)
class Bin:
    """Texts whose label was given a probability from `low` to `high`."""

    low: float
    high: float
    examples: int
    sure: float
    """the mean of these probabilities"""
    right: float
    """the share of these labels that are right"""


@dataclass(frozen=True, slots=True)
class Table:
    """Of one task."""

    task: str
    """empty where there is but one"""
    classes: list[PerClass]
    confusion: Confusion | None
    calibration: list[Bin]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def table_of(records: Sequence[Record], kind: Kind, labels: Sequence[str], task: str = "") -> Table | None:
    """None of what has no labels."""
    if kind is Kind.single_label:
        expected, predicted = [[record[key] for record in records] for key in ("expected", "predicted")]
        return Table(
            task, _classes(expected, predicted, labels), _confusion(expected, predicted, labels), _bins(records)
        )
    if kind is Kind.multi_label:
        return Table(task, _classes_of_many(records, labels), None, [])
    if kind is Kind.tags:
        return Table(task, _classes_of_spans(records), _confusion_of_words(records), [])
    return None


def tags_of(record: Record) -> tuple[list[str], list[str]]:
    """Expected and predicted tags of the words that the model read."""
    pairs = [pair for pair in zip(record["expected"], record["predicted"], strict=True) if pair[1] is not None]
    return [expected for expected, _ in pairs], [predicted for _, predicted in pairs]


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first and last word of each, as CoNLL-2000's script finds them."""
    from seqeval.metrics.sequence_labeling import get_entities

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags without B- and I-
        return set(get_entities(list(tags)))


def _classes(expected: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> list[PerClass]:
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(expected, predicted, labels=list(labels), zero_division=0)
    return _per_class(labels, columns)


def _classes_of_many(records: Sequence[Record], labels: Sequence[str]) -> list[PerClass]:
    from sklearn.metrics import precision_recall_fscore_support

    expected, predicted = (
        np.array([[label in record[key] for label in labels] for record in records])
        for key in ("expected", "predicted")
    )
    return _per_class(labels, precision_recall_fscore_support(expected, predicted, zero_division=0))


def _per_class(labels: Sequence[str], columns: Any) -> list[PerClass]:
    rows = zip(labels, *(column.tolist() for column in columns), strict=True)
    return [PerClass(label, precision, recall, f1, int(support)) for label, precision, recall, f1, support in rows]


def _classes_of_spans(records: Sequence[Record]) -> list[PerClass]:
    from seqeval.metrics import classification_report

    pairs = [tags_of(record) for record in records]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags without B- and I-, and of types that are never predicted
        given, guessed = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if not any(spans(tags) for pair in pairs for tags in pair):
            return []
        report = classification_report(given, guessed, output_dict=True, zero_division=0)
    return [
        PerClass(name, float(row["precision"]), float(row["recall"]), float(row["f1-score"]), int(row["support"]))
        for name, row in report.items()
        if not name.endswith(" avg")
    ]


def _confusion(expected: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Confusion:
    pairs = Counter(zip(expected, predicted, strict=True))
    return Confusion(list(labels), [[pairs[one, other] for other in labels] for one in labels])


def _confusion_of_words(records: Sequence[Record]) -> Confusion:
    """By type, B- and I- alike."""
    pairs: Counter[tuple[str, str]] = Counter()
    for record in records:
        pairs.update((_type(one), _type(other)) for one, other in zip(*tags_of(record), strict=True))
    types = sorted({name for pair in pairs for name in pair}, key=lambda name: (name == OUTSIDE, name))
    return Confusion(types, [[pairs[one, other] for other in types] for one in types], "words")


def _type(tag: str) -> str:
    return tag[2:] if tag[:2] in ("B-", "I-") and len(tag) > 2 else tag


def _bins(records: Sequence[Record]) -> list[Bin]:
    """As wide as those of the calibration error."""
    sure = np.array([record["probability"] for record in records], np.float64)
    right = np.array([record["expected"] == record["predicted"] for record in records])
    home = np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1)
    return [
        Bin(
            i / NUM_BINS,
            (i + 1) / NUM_BINS,
            int((home == i).sum()),
            float(sure[home == i].mean()),
            float(right[home == i].mean()),
        )
        for i in np.unique(home).tolist()
    ]
