"""Progress bars and warnings of the libraries below us."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

MEANINGLESS = (
    "Specified to not (load|save) vera_A",  # they follow from its seed
    "Already found a `peft_config` attribute",  # several adapters in one model are the purpose here
    "Already following adapters were merged",  # by us, one layer after the other
    "All adapters are already merged",
    "fan_in_fan_out is set to",  # peft mends it by itself, for Conv1D
    "Unsupported layer type",  # norms, of which peft wants no width
    r"(?s)The following rank_pattern keys did not match .*lora_E",  # AdaLoRA's name matrices, not modules
    "`is_gradient_checkpointing` is deprecated",  # peft asks for it
    "MatMul8bitLt: inputs will be cast",  # at every call of an 8-bit layer
)
"""Starts of warnings that are about what was chosen on purpose, or that no user can do anything about."""


def no_foreign_bars() -> None:
    """No bars of transformers, datasets and the Hub's client from here on: they belong to a terminal with a person at
    it. Imports none of them; those that come later read the environment."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


@contextmanager
def no_meaningless_warnings() -> Iterator[None]:
    """Around what peft and bitsandbytes do for us, as a `with` or as a decorator; other warnings are shown."""
    with warnings.catch_warnings():
        for message in MEANINGLESS:
            warnings.filterwarnings("ignore", message)
        yield
