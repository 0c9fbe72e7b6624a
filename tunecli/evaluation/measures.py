"""The metrics of predictions that are written down, as functions of how often each of them counts: what
`tunecli.ops.bootstrap` resamples. With each once they are what `tunecli.evaluation.metrics` gives.

Most are functions of sums over examples, so that one product of matrices makes them for all resamples. Spearman's
correlation is Pearson's of the ranks, each resample's own: an example that counts twice takes two ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from tunecli.evaluation import texts
from tunecli.evaluation.kinds import Kind
from tunecli.evaluation.metrics import NUM_BINS
from tunecli.evaluation.records import lead
from tunecli.ops.bootstrap import Measures

Record = dict[str, Any]
"""A line of predictions.jsonl."""
SHARES = ("exact_match", "choice_accuracy")
"""Of answers that are right or wrong."""
JUDGED = (*SHARES, *texts.ROUGE)
"""Scores of single answers, which are averaged."""
COUNTED: dict[str, Callable[[np.ndarray], np.ndarray]] = {"bleu": texts.bleu_of, "chrf": texts.chrf_of}
"""Scores of all answers together, from counts that add up."""
RIGHT: dict[Kind, tuple[str, Callable[[Record], bool | None]]] = {
    Kind.single_label: ("accuracy", lambda record: record["expected"] == record["predicted"]),
    Kind.reward: ("accuracy", lambda record: None if (ahead := lead(record)) is None else ahead > 0),
    Kind.multi_label: ("exact_match", lambda record: set(record["expected"]) == set(record["predicted"])),
}
"""Where each record is right or wrong as a whole: the metric that is their share, and whether one is right."""
NATS = 700.0
"""Beyond this a perplexity is no number any more."""


def measures_of(records: Sequence[Record], kind: Kind) -> Measures:
    """Of several tasks each metric of each, and their means."""
    tasks = by_task(records)
    if kind.of_tokens:
        return _of_texts(records, tasks)
    each = {task: OF_KIND[kind]([records[i] for i in rows]) for task, rows in tasks.items()}
    sums = _sums_of_losses(records)

    def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = {"loss": _ratio(*(counts @ sums).T)}
        if len(tasks) == 1:
            return found | next(iter(each.values()))(counts)
        of_task = {task: measure(counts[:, tasks[task]]) for task, measure in each.items()}
        kinds = dict.fromkeys(name for values in of_task.values() for name in values)
        means = {
            name: np.mean([values[name] for values in of_task.values() if name in values], axis=0) for name in kinds
        }
        single = {f"{name}/{task}": value for task, values in of_task.items() for name, value in values.items()}
        return found | means | single

    return measures


def by_task(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Task -> indices of its records; one task without a name where they name none."""
    names = [str(record.get("task", "")) for record in records]
    return {name: np.flatnonzero(np.array([each == name for each in names])) for name in dict.fromkeys(names)}


def right_of(records: Sequence[Record], kind: Kind) -> list[bool | None]:
    """Whether each is right; None of what is not right or wrong as a whole, or was not judged."""
    if kind in RIGHT:
        return [RIGHT[kind][1](record) for record in records]
    return [record.get("exact_match", record.get("choice_accuracy")) for record in records]


def shares(records: Sequence[Record], kind: Kind) -> dict[str, list[bool | None]]:
    """The metrics that are shares of records, and whether each record is right; None of those that do not count. The
    mean of several tasks' shares is none."""
    if kind not in RIGHT:
        found = {name: [record.get(name) for record in records] for name in SHARES}
        return {name: right for name, right in found.items() if any(each is not None for each in right)}
    name, right, tasks = RIGHT[kind][0], right_of(records, kind), by_task(records)
    if len(tasks) == 1:
        return {name: right}
    own = {task: set(rows.tolist()) for task, rows in tasks.items()}
    return {
        f"{name}/{task}": [each if i in rows else None for i, each in enumerate(right)] for task, rows in own.items()
    }


def _sums_of_losses(records: Sequence[Record]) -> np.ndarray:
    return np.array([[record["loss"], record["units"]] for record in records], np.float64).reshape(-1, 2)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, otherwise, numerator / safe)


def _of_texts(records: Sequence[Record], tasks: dict[str, np.ndarray]) -> Measures:
    losses = _sums_of_losses(records)
    judged = {
        name: np.array([[float(record.get(name) or 0), float(name in record)] for record in records])
        for name in JUDGED
        if any(name in record for record in records)
    }
    counted = {name: table for name in COUNTED if (table := _counts_of(records, name)) is not None}

    def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
        loss = _ratio(*(counts @ losses).T)
        found = {"loss": loss, "perplexity": np.exp(np.minimum(loss, NATS))}
        if len(tasks) > 1:
            found |= {f"loss/{task}": _ratio(*(counts[:, rows] @ losses[rows]).T) for task, rows in tasks.items()}
        found |= {name: _ratio(*(counts @ each).T) for name, each in judged.items()}
        return found | {name: COUNTED[name](counts @ each) for name, each in counted.items()}

    return measures


def _counts_of(records: Sequence[Record], name: str) -> np.ndarray | None:
    """[records, counts], zero where there are none; None where no record has any."""
    known = [record.get("counts", {}).get(name) for record in records]
    size = next((len(each) for each in known if each is not None), None)
    return None if size is None else np.array([each or [0] * size for each in known], np.float64)


def _single_label(records: Sequence[Record]) -> Measures:
    labels = sorted({record[key] for record in records for key in ("expected", "predicted")})
    number = {label: i for i, label in enumerate(labels)}
    expected = np.array([number[record["expected"]] for record in records])
    predicted = np.array([number[record["predicted"]] for record in records])
    sure = np.array([record["probability"] for record in records], np.float64)
    right = (expected == predicted).astype(np.float64)
    supports, chosen = _one_hot(expected, len(labels)), _one_hot(predicted, len(labels))
    bins = _one_hot(np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1), NUM_BINS)
    hits = supports * right[:, None]
    gaps = bins * (right - sure)[:, None]

    def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
        total = counts.sum(1)
        hit, support, guess = counts @ hits, counts @ supports, counts @ chosen
        accuracy = hit.sum(1) / total
        return {
            "accuracy": accuracy,
            "f1_macro": _mean_of_known(_ratio(2 * hit, support + guess)),
            "mcc": _mcc(hit.sum(1), support, guess, total),
            "ece": np.abs(counts @ gaps).sum(1) / total,
        }

    return measures


def _mean_of_known(each: np.ndarray) -> np.ndarray:
    """Over the labels that are given or predicted at all, as scikit-learn has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where there is none
        return np.nanmean(each, axis=1)


def _mcc(hit: np.ndarray, support: np.ndarray, guess: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Matthews' correlation for any number of labels (Gorodkin, 2004)."""
    covariance = hit * total - (support * guess).sum(1)
    spread = (total**2 - (support**2).sum(1)) * (total**2 - (guess**2).sum(1))
    return _ratio(covariance, np.sqrt(np.maximum(spread, 0.0)), otherwise=0.0)


def _one_hot(numbers: np.ndarray, size: int) -> csr_array:
    rows = np.arange(len(numbers))
    return csr_array((np.ones(len(numbers)), (rows, numbers)), shape=(len(numbers), size))


def _multi_label(records: Sequence[Record]) -> Measures:
    labels = sorted({label for record in records for label in (*record["expected"], *record["probabilities"])})
    expected = np.array([[label in record["expected"] for label in labels] for record in records], np.float64)
    predicted = np.array([[label in record["predicted"] for label in labels] for record in records], np.float64)
    same = (expected == predicted).all(1).astype(np.float64)

    def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
        hit, either = counts @ (expected * predicted), counts @ (expected + predicted)
        return {
            "exact_match": counts @ same / counts.sum(1),
            "f1_micro": _ratio(2 * hit.sum(1), either.sum(1), otherwise=0.0),
            "f1_macro": _ratio(2 * hit, either, otherwise=0.0).mean(1),
        }

    return measures


def _regression(records: Sequence[Record]) -> Measures:
    expected = np.array([record["expected"] for record in records], np.float64)
    predicted = np.array([record["predicted"] for record in records], np.float64)
    orders = [_order(predicted), _order(expected)]

    def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
        ranks = [_ranks(counts, *order) for order in orders]
        shape = counts.shape
        return {
            "mse": counts @ np.square(predicted - expected) / counts.sum(1),
            "pearson": _correlation(np.broadcast_to(predicted, shape), np.broadcast_to(expected, shape), counts),
            "spearman": _correlation(ranks[0], ranks[1], counts),
        }

    return measures


def _reward(records: Sequence[Record]) -> Measures:
    """Of pairs as `tunecli.evaluation.metrics.comparison`, of the texts with scores as numbers."""
    leads = [lead(record) for record in records]
    pairs = np.array([i for i, each in enumerate(leads) if each is not None], np.int64)
    single = np.array([i for i, record in enumerate(records) if "expected" in record], np.int64)
    own = np.array([each for each in leads if each is not None], np.float64)
    of_scores = _regression([records[i] for i in single]) if len(single) else None
    won, right = 1 / (1 + np.exp(-own)), (own > 0).astype(np.float64)
    # As the calibration error has it: of the text that the model prefers.
    sure, hits = np.maximum(won, 1 - won), (won >= 0.5).astype(np.float64)
    bins = _one_hot(np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1), NUM_BINS)
    gaps = bins * (hits - sure)[:, None]

    def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        if len(pairs):
            drawn = counts[:, pairs]
            total = drawn.sum(1)
            found["accuracy"] = _ratio(drawn @ right, total)
            found["margin"] = _ratio(drawn @ own, total)
            found["ece"] = _ratio(np.abs(drawn @ gaps).sum(1), total)
        return found | (of_scores(counts[:, single]) if of_scores is not None else {})

    return measures


def _order(values: np.ndarray) -> tuple[np.ndarray, csr_array]:
    """Which of the distinct values each example has, as a number and one-hot."""
    _, group = np.unique(values, return_inverse=True)
    return group, _one_hot(group, int(group.max()) + 1)


def _ranks(counts: np.ndarray, group: np.ndarray, groups: csr_array) -> np.ndarray:
    """[resamples, examples] rank of each example; equal ones share the mean of theirs."""
    sizes = counts @ groups
    return (np.cumsum(sizes, axis=1) - sizes / 2 + 0.5)[:, group]


def _correlation(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    total = counts.sum(1, keepdims=True)
    x = x - (counts * x).sum(1, keepdims=True) / total
    y = y - (counts * y).sum(1, keepdims=True) / total
    spread = np.sqrt((counts * x**2).sum(1) * (counts * y**2).sum(1))
    return _ratio((counts * x * y).sum(1), np.where(spread < 1e-12, 0.0, spread), otherwise=0.0)


def _tags(records: Sequence[Record]) -> Measures:
    from tunecli.evaluation.tables import spans, tags_of

    rows = []
    for record in records:
        expected, predicted = tags_of(record)
        true, guessed = spans(expected), spans(predicted)
        right = sum(a == b for a, b in zip(expected, predicted, strict=True))
        rows.append([len(true & guessed), len(true), len(guessed), right, len(expected)])
    statistics = np.array(rows, np.float64)

    def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
        hit, true, guessed, right, words = (counts @ statistics).T
        return {
            "f1": _ratio(2 * hit, true + guessed, otherwise=0.0),
            "precision": _ratio(hit, guessed, otherwise=0.0),
            "recall": _ratio(hit, true, otherwise=0.0),
            "accuracy": _ratio(right, words),
        }

    return measures


OF_KIND: dict[Kind, Callable[[Sequence[Record]], Measures]] = {
    Kind.single_label: _single_label,
    Kind.multi_label: _multi_label,
    Kind.regression: _regression,
    Kind.reward: _reward,
    Kind.tags: _tags,
}
