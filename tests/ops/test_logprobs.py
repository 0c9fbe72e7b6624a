"""Chunked log-probabilities against torch's own cross-entropy, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tunecli.ops.logprobs import checkpointed_logprobs, frozen_head_logprobs

TOKENS, WIDTH, VOCABULARY = 13, 8, 21


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=g, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=g, dtype=torch.float64)
    bias = torch.randn(VOCABULARY, generator=g, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=g)
    scale = torch.randn(TOKENS, generator=g)
    return hidden, weight, bias, targets, scale


def direct(hidden, weight, bias, targets, scale):
    hidden = hidden.clone().requires_grad_()
    logprobs = -F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
    (logprobs * scale).sum().backward()
    return logprobs.detach().float(), hidden.grad


@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
@pytest.mark.parametrize("with_bias", [True, False])
def test_frozen_head(chunk: int, with_bias: bool) -> None:
    hidden, weight, bias, targets, scale = inputs()
    bias = bias if with_bias else None
    expected, gradient = direct(hidden, weight, bias, targets, scale)
    hidden.requires_grad_()
    logprobs = frozen_head_logprobs(weight, bias, hidden, targets, chunk=chunk)
    (logprobs * scale).sum().backward()
    assert_close(logprobs.detach(), expected, atol=1e-6, rtol=1e-6)
    assert_close(hidden.grad, gradient, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_any_head(chunk: int) -> None:
    hidden, weight, bias, targets, scale = inputs()
    expected, gradient = direct(hidden, weight, bias, targets, scale)
    hidden.requires_grad_()
    weight.requires_grad_()
    logprobs = checkpointed_logprobs(lambda h: F.linear(h, weight, bias), hidden, targets, chunk=chunk)
    (logprobs * scale).sum().backward()
    assert_close(logprobs.detach(), expected, atol=1e-6, rtol=1e-6)
    assert_close(hidden.grad, gradient, atol=1e-6, rtol=1e-6)
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_nothing_trained_gives_an_empty_answer() -> None:
    hidden, weight, bias, targets, _ = inputs()
    assert frozen_head_logprobs(weight, bias, hidden[:0], targets[:0]).shape == (0,)
