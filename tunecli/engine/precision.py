"""Which arithmetic a run uses: the meaning of `train.precision: auto`."""

from __future__ import annotations

import torch

from tunecli.config.errors import UserError
from tunecli.config.train import Precision

MIXED_PRECISION = {Precision.fp32: "no", Precision.bf16: "bf16", Precision.fp16: "fp16"}
"""accelerate's names"""

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def resolve_precision(asked: Precision, *, cpu: bool, frozen_base: bool) -> Precision:
    """bf16 where the machine computes it well, else fp16 on CUDA and fp32 on a CPU.

    On a CPU a model that is trained in full stays in fp32: its weights are kept in fp32 anyway, and casting them in
    every step costs what the faster products gain.

    Raises:
        UserError: fp16 was asked for on a CPU.
    """
    if asked is Precision.fp16 and cpu:
        raise UserError(
            "fp16 needs a CUDA GPU", where="train.precision", fix="train.precision=auto (or bf16, or fp32)"
        )
    if asked is not Precision.auto:
        return asked
    if cpu:
        return Precision.bf16 if frozen_base and cpu_computes_bf16() else Precision.fp32
    return Precision.bf16 if torch.cuda.get_device_capability() >= (8, 0) else Precision.fp16


def cpu_computes_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (avx512_bf16 or amx)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
