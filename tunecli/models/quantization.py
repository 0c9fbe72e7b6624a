"""Frozen linear layers in 4 or 8 bits through bitsandbytes.

NF4 and FP4 with double quantisation after Dettmers et al. (2023, QLoRA); int8 after Dettmers et al. (2022).
Heads stay in full precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from tunecli.config.model import Quantization

HEADS = ["lm_head", "embed_out", "cls", "classifier", "classification_head", "score", "qa_outputs"]
"""Names that transformers give heads: `cls` is BERT's for masked tokens, `classification_head` BART's."""


def quantization_config(
    kind: Quantization, *, double_quantization: bool, compute_dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """What `from_pretrained` takes; None for an unquantised model."""
    if kind is Quantization.none:
        return None
    common: dict[str, Any] = {"llm_int8_skip_modules": HEADS}
    if kind is Quantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True, **common)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind.value,
        bnb_4bit_use_double_quant=double_quantization,
        bnb_4bit_compute_dtype=compute_dtype,
        **common,
    )


def keep_cpu_weights_unpacked(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in place on CPUs with avx512_bf16.

    Its `Linear4bit` does that in the first evaluation forward and never undoes it; every later gradient is wrong, and
    merging decodes garbage. `tests/models/test_quantization.py` holds the case.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
