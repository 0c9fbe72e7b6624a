"""Warnings of the libraries below us: those about what is meant so are not shown, all others are."""

from __future__ import annotations

import logging
import warnings

import pytest

import tunecli  # noqa: F401
from tunecli.engine.quiet import no_meaningless_warnings


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Already following adapters were merged default. You are now additionally merging other.", False),
        ("The following rank_pattern keys did not match any targeted module: ['a.lora_E',\n 'b.lora_E'].", False),
        ("The following rank_pattern keys did not match any targeted module: ['q_porj'].", True),
        ("Unsupported layer type '<class 'torch.nn.LayerNorm'>' encountered, proceed at your own risk.", False),
        ("Something is really wrong", True),
    ],
)
def test_only_what_is_meant_so_is_not_shown(message: str, shown: bool):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with no_meaningless_warnings():
            warnings.warn(message, RuntimeWarning, stacklevel=1)
        warnings.warn(message, RuntimeWarning, stacklevel=1)
    assert len(seen) == 1 + shown


def test_8_bit_layers_are_silent_about_their_casts_alone(caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    logger.warning("MatMul8bitLt: inputs will be cast from %s to float16 during quantization", "float32")
    logger.warning("something else")
    assert caplog.messages == ["something else"]
