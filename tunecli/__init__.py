"""tunecli: fine-tune language models from recipes."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Advises to install an optional kernel, to everybody whose CPU could use it, at import.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = version("tunecli")
__all__ = ["__version__", "load"]


def load(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a run directory, of a peft or model folder or of a Hub id, in eval mode, and its tokenizer.

    Of a run that trained adapters: its base, in the form that it had in training, and all its adapters, in fp32.

    >>> model, tokenizer = tunecli.load("outputs/sft_lora_smollm2/latest")
    """
    from tunecli.peft_methods import loading

    return loading.load(path)
