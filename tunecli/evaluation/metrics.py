"""Metrics of classifiers and taggers, by scikit-learn, scipy and seqeval."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

NUM_BINS = 15
"""Of the calibration error, as in Guo et al., 2017."""


def single_label(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """`logits`: [texts, labels]; `targets`: [texts] numbers of labels."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    chosen = logits.argmax(1)
    return {
        "accuracy": float(accuracy_score(targets, chosen)),
        "f1_macro": float(f1_score(targets, chosen, average="macro", zero_division=0)),
        "mcc": float(matthews_corrcoef(targets, chosen)),
        "ece": calibration_error(softmax(logits), targets),
    }


def multi_label(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """[texts, labels] each; a label is given where its probability is above one half."""
    from sklearn.metrics import accuracy_score, f1_score

    chosen = logits > 0
    return {
        "exact_match": float(accuracy_score(targets, chosen)),
        "f1_micro": float(f1_score(targets, chosen, average="micro", zero_division=0)),
        "f1_macro": float(f1_score(targets, chosen, average="macro", zero_division=0)),
    }


def regression(values: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """[texts] each. Where all are equal there is no correlation, and it counts as 0."""
    from scipy.stats import pearsonr, spearmanr

    constant = len(targets) < 2 or np.ptp(values) == 0 or np.ptp(targets) == 0
    return {
        "mse": float(np.square(values - targets).mean()),
        "pearson": 0.0 if constant else float(pearsonr(values, targets)[0]),
        "spearman": 0.0 if constant else float(spearmanr(values, targets)[0]),
    }


def comparison(leads: np.ndarray) -> dict[str, float]:
    """Of pairs, from how far the preferred text is ahead in each [pairs]: how often it is at all, the mean lead, and
    how far sigmoid(lead), which is the probability that a preference model gives it, is from how often it holds."""
    sure = 1 / (1 + np.exp(-leads.astype(np.float64)))
    return {
        "accuracy": float((leads > 0).mean()),
        "margin": float(leads.mean()),
        "ece": calibration_error(np.stack([sure, 1 - sure], axis=1), np.zeros(len(leads), np.int64)),
    }


def tagging(chosen: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> dict[str, float]:
    """Tags of the words of each text. Spans are those of CoNLL-2000's script; without B- and I- each word is one."""
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags without B- and I-, and of labels that are never predicted
        found = {
            "f1": f1_score(targets, chosen),
            "precision": precision_score(targets, chosen),
            "recall": recall_score(targets, chosen),
            "accuracy": accuracy_score(targets, chosen),
        }
    return {name: float(value) for name, value in found.items()}


def calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Expected calibration error (Guo et al., 2017, arXiv:1706.04599, equation 3), in bins of equal width: how far
    the probability of the chosen label is from how often it is right."""
    sure, right = probabilities.max(1), probabilities.argmax(1) == targets
    bins = np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = [abs(right[bins == i].mean() - sure[bins == i].mean()) * (bins == i).mean() for i in np.unique(bins)]
    return float(sum(gaps))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
