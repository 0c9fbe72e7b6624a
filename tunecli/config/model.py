"""The `model` group: which weights to load and in which form."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class DType(Enum):
    """How frozen weights are stored. `auto` follows `train.precision`."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantization(Enum):
    """bitsandbytes storage of the frozen linear layers (Dettmers et al., 2022 for int8; 2023 for NF4, FP4)."""

    none = "none"
    nf4 = "nf4"
    fp4 = "fp4"
    int8 = "int8"


class Attention(Enum):
    """`auto` lays sequences end to end where a self-test at load proves it exact, else pads; the others insist."""

    auto = "auto"
    packed = "packed"
    padded = "padded"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    path: str = MISSING
    """A Hub id, a local folder, a full run's directory, or `builtin:tiny_llama` (random weights, for tests)."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Announced when on."""
    dtype: DType = DType.auto
    quantization: Quantization = Quantization.none
    double_quantization: bool = True
    """Quantise the quantisation constants too (4-bit only); saves about 0.4 bits a weight."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: about a third more time, far less memory."""
    attention: Attention = Attention.auto
    device_map: str | None = None
    """`auto` spreads one model over several GPUs of one process; leave empty otherwise."""
