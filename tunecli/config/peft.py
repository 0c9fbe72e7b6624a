"""The `peft` group: an ordered mapping of names to methods; no entry means full fine-tuning.

Field names are peft's where peft has them. What is true of a method whatever its values are is in `peft_facts`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


@dataclass(kw_only=True, slots=True)
class PeftConfig:
    method: str = MISSING


class LoraInit(Enum):
    default = "default"
    """A as a linear layer's own, B zero."""
    gaussian = "gaussian"
    """A normal with deviation 1 / r, B zero."""


@dataclass(kw_only=True, slots=True)
class LoraConfig(PeftConfig):
    """Low-rank adaptation (Hu et al., 2021)."""

    method: str = "lora"
    r: int = 16
    """Rank of the update."""
    lora_alpha: float = 32
    """The update is scaled by lora_alpha / r."""
    lora_dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names (or name endings) of linear layers; `[all-linear]` is every one but the head."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) (Kalajdzievski, 2023)."""
    use_dora: bool = False
    """Learn the length of each column of the weight on its own (Liu et al., 2024)."""
    init_lora_weights: LoraInit = LoraInit.default
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Other ranks for some of the layers: `{q_proj: 32}`; names, name endings or regular expressions."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Other values of lora_alpha for some of the layers."""


@dataclass(kw_only=True, slots=True)
class VeraConfig(PeftConfig):
    """Vectors that scale random projections which all layers share (Kopiczko et al., 2024)."""

    method: str = "vera"
    r: int = 256
    """Rank of the shared projections."""
    d_initial: float = 0.1
    """Where the vector of length r starts; the other one starts at zero."""
    vera_dropout: float = 0.0
    projection_prng_key: int = 0
    """Seed of the shared projections."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])


@dataclass(kw_only=True, slots=True)
class LoHaConfig(PeftConfig):
    """Elementwise products of two low-rank updates (Hyeon-Woo et al., 2022)."""

    method: str = "loha"
    r: int = 8
    alpha: float = 16
    """The update is scaled by alpha / r."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])


@dataclass(kw_only=True, slots=True)
class LoKrConfig(PeftConfig):
    """Kronecker products of small matrices (Yeh et al., 2024)."""

    method: str = "lokr"
    r: int = 8
    alpha: float = 16
    """The update is scaled by alpha / r."""
    decompose_factor: int = -1
    """Size of the left matrix; -1: as near to square as the layer allows."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])


@dataclass(kw_only=True, slots=True)
class OftConfig(PeftConfig):
    """Orthogonal rotations of the inputs, in blocks (Qiu et al., 2023)."""

    method: str = "oft"
    oft_block_size: int = 32
    """Must divide the width of every layer that is rotated."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])


@dataclass(kw_only=True, slots=True)
class Ia3Config(PeftConfig):
    """Vectors that scale keys, values and the inner activations of feed-forward layers (Liu et al., 2022)."""

    method: str = "ia3"
    target_modules: list[str] = field(default_factory=list)
    """Empty: those of the paper, where peft knows the architecture."""
    feedforward_modules: list[str] = field(default_factory=list)
    """Those of target_modules whose input is scaled instead of their output."""


@dataclass(kw_only=True, slots=True)
class LnTuningConfig(PeftConfig):
    """Train the normalisation layers only (Zhao et al., 2024)."""

    method: str = "ln_tuning"
    target_modules: list[str] = field(default_factory=list)
    """Empty: every normalisation layer."""


@dataclass(kw_only=True, slots=True)
class BitFitConfig(PeftConfig):
    """Train the biases only (Ben Zaken et al., 2022)."""

    method: str = "bitfit"
    add_missing: bool = False
    """Give linear layers without a bias one that starts at zero, as LLaMA-like models have none."""
    target_modules: list[str] = field(default_factory=list)
    """Empty: every layer with a bias, the task's head aside."""


class NonLinearity(Enum):
    relu = "relu"
    gelu = "gelu"
    silu = "silu"
    tanh = "tanh"


@dataclass(kw_only=True, slots=True)
class BottleneckConfig(PeftConfig):
    """A small feed-forward network in each layer: down, non-linearity, up."""

    bottleneck_size: int | None = None
    """Width inside; null: the model's width / reduction_factor."""
    reduction_factor: float = 16
    non_linearity: NonLinearity = NonLinearity.relu
    scaling: float = 1.0
    """Of what the adapter adds."""
    learned_scaling: bool = False
    """Train one factor for each adapter, which starts at `scaling`."""
    dropout: float = 0.0
    zero_start: bool = True
    """Start with `up` at zero, so that the model's outputs do not change at first; else nearly so, as Houlsby et al.
    do, with weights of deviation 0.02."""
    layers: list[int] = field(default_factory=list)
    """Numbers of the layers that get one, from 0; empty: all."""
    target_modules: list[str] = field(default_factory=list)
    """Modules whose output is adapted; empty: those of the method, where the architecture is known."""


@dataclass(kw_only=True, slots=True)
class HoulsbyConfig(BottleneckConfig):
    """An adapter after attention and one after the feed-forward layer (Houlsby et al., 2019)."""

    method: str = "houlsby"


@dataclass(kw_only=True, slots=True)
class PfeifferConfig(BottleneckConfig):
    """An adapter after the feed-forward layer (Pfeiffer et al., 2021)."""

    method: str = "pfeiffer"


@dataclass(kw_only=True, slots=True)
class ParallelConfig(BottleneckConfig):
    """An adapter beside the feed-forward layer, which reads the same input (He et al., 2022)."""

    method: str = "parallel"
    scaling: float = 4.0


PEFT_SCHEMAS: dict[str, type[PeftConfig]] = {
    "lora": LoraConfig,
    "vera": VeraConfig,
    "loha": LoHaConfig,
    "lokr": LoKrConfig,
    "oft": OftConfig,
    "ia3": Ia3Config,
    "ln_tuning": LnTuningConfig,
    "bitfit": BitFitConfig,
    "houlsby": HoulsbyConfig,
    "pfeiffer": PfeifferConfig,
    "parallel": ParallelConfig,
}
