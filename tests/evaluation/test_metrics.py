"""Metrics against the libraries that they come from, or against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as span_f1
from sklearn import metrics as sk

from tunecli.evaluation import metrics


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_one_label(random: np.random.Generator) -> None:
    logits, targets = random.normal(size=(200, 4)), random.integers(4, size=200)
    found, chosen = metrics.single_label(logits, targets), logits.argmax(1)
    assert found["accuracy"] == pytest.approx((chosen == targets).mean())
    assert found["f1_macro"] == pytest.approx(sk.f1_score(targets, chosen, average="macro"))
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(targets, chosen))


def test_several_labels(random: np.random.Generator) -> None:
    logits, targets = random.normal(size=(100, 3)), random.random((100, 3)) > 0.5
    found = metrics.multi_label(logits, targets)
    assert found["f1_micro"] == pytest.approx(sk.f1_score(targets, logits > 0, average="micro"))
    assert found["exact_match"] == pytest.approx(((logits > 0) == targets).all(1).mean())


def test_numbers(random: np.random.Generator) -> None:
    targets = random.normal(size=50)
    values = targets + random.normal(size=50)
    found = metrics.regression(values, targets)
    assert found["pearson"] == pytest.approx(pearsonr(values, targets)[0])
    assert found["spearman"] == pytest.approx(spearmanr(values, targets)[0])
    assert metrics.regression(np.ones(5), targets[:5])["pearson"] == 0.0


def test_spans_also_chinese_and_also_without_prefixes() -> None:
    right = [["B-地点", "I-地点", "O", "B-人"], ["O", "O"]]
    chosen = [["B-地点", "O", "O", "B-人"], ["O", "B-人"]]
    found = metrics.tagging(chosen, right)
    assert found["f1"] == pytest.approx(span_f1(right, chosen)) == pytest.approx(2 * 1 / (3 + 2))
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert metrics.tagging(right, right)["f1"] == 1.0


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]])
    targets = np.array([0, 1, 1, 1])
    assert metrics.calibration_error(probabilities, targets) == pytest.approx(0.5 * 0.4 + 0.5 * 0.2)
    assert metrics.calibration_error(np.eye(3), np.arange(3)) == 0.0


def test_softmax_of_large_numbers() -> None:
    assert metrics.softmax(np.array([[1e4, 1e4, -1e4]])).tolist() == [[0.5, 0.5, 0.0]]
