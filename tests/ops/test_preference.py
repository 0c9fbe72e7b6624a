"""Preference losses against direct implementations in float64, and against TRL's formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from tunecli.ops import preference

BETA, SMOOTHING, GAMMA = 0.3, 0.1, 0.7
GENERATOR = torch.Generator().manual_seed(0)
H = 4 * torch.randn(64, generator=GENERATOR)
MARGINS = torch.rand(64, generator=GENERATOR)
SURE, SOFT = torch.ones(64), torch.rand(64, generator=GENERATOR)
CHOSEN, REJECTED = (-torch.rand(64, generator=GENERATOR).mul(3) - 1e-3 for _ in range(2))
"""mean log-probabilities"""


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_dpo(h: float, m: float = 0.0) -> float:
    return -math.log(sigmoid(BETA * h - m))


def slow_exo(h: float, p: float) -> float:
    policy, target = sigmoid(BETA * h), p * (1 - SMOOTHING) + (1 - p) * SMOOTHING
    return policy * math.log(policy / target) + (1 - policy) * math.log((1 - policy) / (1 - target))


def slow_robust(h: float) -> float:
    return ((1 - SMOOTHING) * slow_dpo(h) - SMOOTHING * slow_dpo(-h)) / (1 - 2 * SMOOTHING)


SLOW: dict[str, Callable[[float], float]] = {
    "dpo": slow_dpo,
    "cdpo": lambda h: (1 - SMOOTHING) * slow_dpo(h) + SMOOTHING * slow_dpo(-h),
    "robust": slow_robust,
    "ipo": lambda h: (h - 1 / (2 * BETA)) ** 2,
    "hinge": lambda h: max(0.0, 1 - BETA * h),
    "simpo": lambda h: -math.log(sigmoid(BETA * h - GAMMA)),
}
"""of one certain pair"""
OPTIONS: dict[str, dict[str, float]] = {
    "cdpo": {"label_smoothing": SMOOTHING},
    "robust": {"label_smoothing": SMOOTHING},
    "exo": {"label_smoothing": SMOOTHING},
    "simpo": {"gamma": GAMMA},
}


def ours(name: str, probabilities: Tensor, ratios: Tensor = H) -> Tensor:
    return getattr(preference, name)(ratios, probabilities, beta=BETA, **OPTIONS.get(name, {}))


def expected(name: str, probabilities: Tensor) -> Tensor:
    pairs = list(zip(H.double().tolist(), probabilities.double().tolist(), strict=True))
    if name == "exo":
        return torch.tensor([slow_exo(h, p) for h, p in pairs])
    return torch.tensor([p * SLOW[name](h) + (1 - p) * SLOW[name](-h) for h, p in pairs])


@pytest.mark.parametrize("probabilities", [SURE, SOFT], ids=["certain", "soft"])
@pytest.mark.parametrize("name", [*SLOW, "exo"])
def test_a_loss_is_the_direct_computation(name: str, probabilities: Tensor) -> None:
    found = ours(name, probabilities)
    assert found.shape == H.shape
    assert_close(found, expected(name, probabilities), atol=1e-5, rtol=1e-5)


def test_a_margin_is_what_the_chosen_answer_must_win_by() -> None:
    found = preference.dpo(H, SOFT, beta=BETA, margins=MARGINS)
    rows = zip(H.double().tolist(), MARGINS.double().tolist(), SOFT.double().tolist(), strict=True)
    assert_close(found, torch.tensor([p * slow_dpo(h, m) + (1 - p) * slow_dpo(-h, -m) for h, m, p in rows]))


@pytest.mark.parametrize("probabilities", [SURE, SOFT], ids=["certain", "soft"])
def test_orpo(probabilities: Tensor) -> None:
    def log_odds(logprob: float) -> float:
        return math.log(math.exp(logprob) / (1 - math.exp(logprob)))

    rows = zip(*(each.double().tolist() for each in (CHOSEN, REJECTED, probabilities)), strict=True)
    slow = []
    for chosen, rejected, p in rows:
        odds = log_odds(chosen) - log_odds(rejected)
        one_way = -chosen - BETA * math.log(sigmoid(odds))
        slow.append(p * one_way + (1 - p) * (-rejected - BETA * math.log(sigmoid(-odds))))
    assert_close(preference.orpo(CHOSEN, REJECTED, probabilities, beta=BETA), torch.tensor(slow))


def test_orpo_stays_finite_where_an_answer_is_certain() -> None:
    chosen = torch.tensor([0.0, -1e-9, -200.0, -0.6931472], requires_grad=True)
    losses = preference.orpo(chosen, torch.tensor([-1.0, -1.0, 0.0, -1.0]), torch.ones(4), beta=BETA)
    losses.sum().backward()
    assert losses.isfinite().all() and chosen.grad is not None and chosen.grad.isfinite().all()


@pytest.mark.parametrize("desirable", [SURE, 1 - SURE, SOFT], ids=["good", "bad", "soft"])
def test_kto(desirable: Tensor) -> None:
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    found = preference.kto(H, desirable, 0.4, beta=BETA, **weights)
    rows = zip(H.double().tolist(), desirable.double().tolist(), strict=True)
    slow = [
        y * 1.5 * (1 - sigmoid(BETA * (h - 0.4))) + (1 - y) * 0.5 * (1 - sigmoid(BETA * (0.4 - h))) for h, y in rows
    ]
    assert_close(found, torch.tensor(slow))


def test_the_reference_point_of_kto_is_never_negative() -> None:
    assert preference.kto_kl(6.0, 4) == 1.5
    assert preference.kto_kl(torch.tensor(-6.0), 4) == 0 == preference.kto_kl(0.0, 0)


def trl(name: str) -> Tensor:
    """The expressions of TRL 1.16.0: `trl/trainer/dpo_trainer.py`, and `trl/experimental/cpo` for SimPO."""
    epsilon = torch.tensor(SMOOTHING)
    if name == "dpo":
        return -F.logsigmoid(BETA * H)
    if name == "hinge":
        return torch.relu(1 - BETA * H)
    if name == "ipo":
        return (H - 1 / (2 * BETA)) ** 2
    if name == "exo":
        chosen = torch.sigmoid(BETA * H) * (F.logsigmoid(BETA * H) - torch.log1p(-epsilon))
        return chosen + torch.sigmoid(-BETA * H) * (F.logsigmoid(-BETA * H) - torch.log(epsilon))
    if name == "robust":
        clean = -(1 - SMOOTHING) * F.logsigmoid(BETA * H)
        flipped = -SMOOTHING * F.logsigmoid(-BETA * H)
        return (clean - flipped) / (1 - 2 * SMOOTHING)
    if name == "cdpo":  # CPO's `sigmoid` with its `label_smoothing`, on ratios
        return -F.logsigmoid(BETA * H) * (1 - SMOOTHING) - F.logsigmoid(-BETA * H) * SMOOTHING
    return -F.logsigmoid(BETA * (H - GAMMA / BETA))


@pytest.mark.parametrize("name", [*SLOW, "exo"])
def test_a_loss_is_that_of_trl(name: str) -> None:
    assert_close(ours(name, SURE), trl(name))


def test_orpo_is_that_of_trl() -> None:
    """`trl/experimental/orpo`; its first term, over prompt and answer there, is apart."""

    def log1mexp(x: Tensor) -> Tensor:
        return torch.where(x > -0.6931472, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))

    log_odds = (CHOSEN - REJECTED) - (log1mexp(CHOSEN) - log1mexp(REJECTED))
    assert_close(preference.orpo(CHOSEN, REJECTED, SURE, beta=BETA) + CHOSEN, -BETA * F.logsigmoid(log_odds))


def test_kto_is_that_of_trl() -> None:
    """`trl/trainer/kto_trainer.py`, whose undesirable answers come after the others."""
    kl = torch.tensor(0.4)
    good, bad = 1 - F.sigmoid(BETA * (H - kl)), 1 - F.sigmoid(BETA * (kl - H))
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    found = [preference.kto(H, label, 0.4, beta=BETA, **weights) for label in (SURE, 1 - SURE)]
    assert_close(torch.cat(found), torch.cat([1.5 * good, 0.5 * bad]))


@pytest.mark.parametrize("name", [*SLOW, "exo"])
def test_gradients_are_right(name: str) -> None:
    ratios = H.double()[:8].requires_grad_()
    assert torch.autograd.gradcheck(lambda ratios: ours(name, SOFT.double()[:8], ratios), ratios)
