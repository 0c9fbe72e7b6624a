"""The `peft` group: an ordered mapping of names to methods; no entry means full fine-tuning.

Field names are peft's where peft has them. What is true of a method whatever its values are is in `peft_facts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


@dataclass(kw_only=True, slots=True)
class PeftConfig:
    method: str = MISSING
    init_from: str | None = None
    """Start from these trained weights: a run directory, a peft folder or a Hub id. The structure is then theirs."""
    freeze: bool = False
    """With init_from: the adapter is on, and stays as it is; other entries are trained."""


class LoraInit(Enum):
    default = "default"
    """A as a linear layer's own, B zero."""
    gaussian = "gaussian"
    """A normal with deviation 1 / r, B zero."""
    pissa = "pissa"
    """The largest r singular values of the weight, which keeps the rest (Meng et al., 2024)."""
    pissa_niter_16 = "pissa_niter_16"
    """The same from 16 rounds of subspace iteration: minutes instead of hours on large models."""
    olora = "olora"
    """The first r columns of the weight's QR decomposition, which the weight loses (Büyükakyüz, 2024)."""
    eva = "eva"
    """A the main directions of the layer's inputs on the first training batches, B zero (Paischer et al., 2024)."""

    @property
    def changes_base(self) -> bool:
        """Whether what A and B start with is taken out of the base's weights."""
        return self in (LoraInit.pissa, LoraInit.pissa_niter_16, LoraInit.olora)


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
    loraplus_lr_ratio: float = 1.0
    """Learning rate of B over that of A, which is train.learning_rate: LoRA+ (Hayou et al., 2024) advises 16."""


@dataclass(kw_only=True, slots=True)
class AdaLoraConfig(PeftConfig):
    """LoRA whose rank goes to the layers that need it most (Zhang et al., 2023)."""

    method: str = "adalora"
    init_r: int = 12
    """Rank of each layer at the start."""
    target_r: int = 8
    """Mean rank of the layers at the end."""
    lora_alpha: float = 32
    """The update is scaled by lora_alpha / init_r."""
    lora_dropout: float = 0.0
    tinit: float = 0.1
    """Steps before ranks begin to fall; below 1, a share of all steps."""
    tfinal: float = 0.3
    """Steps at the end in which they stay; below 1, a share of all steps."""
    deltaT: int = 10
    """Ranks are given out anew every so many steps."""
    beta1: float = 0.85
    """Of the mean sensitivity of each weight over the steps."""
    beta2: float = 0.85
    """Of the mean deviation from it."""
    orth_reg_weight: float = 0.5
    """Of the penalty that keeps A and B orthogonal."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])


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
    do, with weights of deviation 0.01."""
    layers: list[int] = field(default_factory=list)
    """Numbers of the layers that get one, from 0; empty: all."""
    target_modules: list[str] = field(default_factory=list)
    """Modules whose output is adapted; empty: those of the method, where the architecture is known."""
    invertible: bool = False
    """Add MAD-X's invertible adapter: after the input embeddings, and undone before a language model's head."""
    invertible_reduction_factor: float = 2
    """The invertible adapter's two networks are half the model's width / this wide inside."""


@dataclass(kw_only=True, slots=True)
class HoulsbyConfig(BottleneckConfig):
    """An adapter after attention and one after the feed-forward layer (Houlsby et al., 2019)."""

    method: str = "houlsby"


class Placement(Enum):
    auto = "auto"
    """after_norm where the architecture has such a LayerNorm, as BERT has, and no target_modules are named"""
    before_norm = "before_norm"
    """on the feed-forward layer's output, as Houlsby et al. have it"""
    after_norm = "after_norm"
    """on the output of the LayerNorm that follows, as Pfeiffer et al. have it"""


@dataclass(kw_only=True, slots=True)
class PfeifferConfig(BottleneckConfig):
    """An adapter after the feed-forward layer (Pfeiffer et al., 2021)."""

    method: str = "pfeiffer"
    placement: Placement = Placement.auto
    """What the adapter reads, in architectures that normalise after each residual sum; others have one place only."""


@dataclass(kw_only=True, slots=True)
class ParallelConfig(BottleneckConfig):
    """An adapter beside the feed-forward layer, which reads the same input (He et al., 2022)."""

    method: str = "parallel"
    scaling: float = 4.0


class PromptInit(Enum):
    random_uniform = "random_uniform"
    """From -0.5 to 0.5."""
    sampled_vocab = "sampled_vocab"
    """Embeddings of words that are drawn from the most frequent ones."""
    text = "text"
    """Embeddings of the words of `init_text`."""
    labels = "labels"
    """Embeddings of the words of `init_labels`, then as sampled_vocab."""


@dataclass(kw_only=True, slots=True)
class PromptTuningConfig(PeftConfig):
    """Trained embeddings in front of the input (Lester et al., 2021)."""

    method: str = "prompt_tuning"
    num_virtual_tokens: int = 20
    init: PromptInit = PromptInit.sampled_vocab
    init_text: str | None = None
    init_labels: list[str] = field(default_factory=list)
    """One virtual token each."""
    init_top_k: int = 5000
    """How many of the most frequent words to draw from: the first of the vocabulary, which is sorted so."""


class Encoder(Enum):
    """What makes the trained rows; see `tunecli.peft_methods.prompt_encoder`."""

    none = "none"
    mlp = "mlp"
    lstm = "lstm"


class PromptTokens(Enum):
    virtual = "virtual"
    """New ones, beyond the vocabulary."""
    unused = "unused"
    """The vocabulary's own that stand for nothing, such as BERT's [unused1]."""


@dataclass(kw_only=True, slots=True)
class PTuningConfig(PeftConfig):
    """Trained embeddings at any place of a template (Liu et al., 2021)."""

    method: str = "p_tuning"
    template: str = "{v20} {prompt} {completion}"
    """`{v3}`: three virtual tokens; `{prompt}` and `{completion}`: the parts of an example of any format; with
    data.format=columns other names are columns and `{label}` is the answer; the rest are anchor words."""
    encoder: Encoder = Encoder.lstm
    encoder_hidden_size: int | None = None
    """null: as wide as the embeddings."""
    tokens: PromptTokens = PromptTokens.virtual


class Attention(Enum):
    encoder = "encoder"
    decoder = "decoder"
    cross = "cross"


@dataclass(kw_only=True, slots=True)
class DeepPromptConfig(PeftConfig):
    num_virtual_tokens: int = 20
    """Keys and values that are put before those of the text in each attention layer."""
    layers: list[int] = field(default_factory=list)
    """Numbers of the layers that get them, from 0; empty: all."""
    attention: list[Attention] = field(default_factory=list)
    """Of encoder-decoders: encoder, decoder and cross (from decoder to encoder); empty: all three."""


@dataclass(kw_only=True, slots=True)
class PrefixTuningConfig(DeepPromptConfig):
    """Trained keys and values in all layers, from a small network (Li & Liang, 2021)."""

    method: str = "prefix_tuning"
    prefix_projection: bool = True
    """Make them from an embedding with an MLP, which is steadier to train; only what it makes is kept at the end."""
    encoder_hidden_size: int = 512
    """Of that MLP."""


@dataclass(kw_only=True, slots=True)
class PTuningV2Config(DeepPromptConfig):
    """Trained keys and values in all layers, as they are (Liu et al., 2022)."""

    method: str = "p_tuning_v2"


@dataclass(kw_only=True, slots=True)
class FreezeConfig(PeftConfig):
    """Train some of the base's weights as they are and freeze the others; the choices below add up."""

    method: str = "freeze"
    last_n_layers: int = 0
    """Everything in the last so many layers (of an encoder-decoder: of both stacks)."""
    norms: bool = False
    """Every normalisation layer."""
    embeddings: bool = False
    """The tables of words, positions and token types; the output embedding too where it is tied to the words'."""
    head: bool = False
    """The model's head for a task, with whatever else of the model is new. Runs that need it have an entry `head`."""
    patterns: list[str] = field(default_factory=list)
    """Regular expressions, found anywhere in the name of a parameter: `[lm_head, 'layers\\.1\\..*bias$']`."""


HEAD = "head"
"""The entry that trains the head of a classifier or tagger beside other methods."""


def without_head(methods: Mapping[str, PeftConfig]) -> dict[str, PeftConfig]:
    """The methods that a row can choose among (`data.adapter_column`): a head is on for every row."""
    return {name: method for name, method in methods.items() if name != HEAD}


def choosing(methods: Mapping[str, str]) -> list[str]:
    """Words of a command line that choose these entries: name -> method."""
    plain = ",".join(name for name, method in methods.items() if name == method)
    return [f"peft=[{plain}]", *(f"+peft@peft.{name}={method}" for name, method in methods.items() if name != method)]


PEFT_SCHEMAS: dict[str, type[PeftConfig]] = {
    "lora": LoraConfig,
    "adalora": AdaLoraConfig,
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
    "prompt_tuning": PromptTuningConfig,
    "p_tuning": PTuningConfig,
    "prefix_tuning": PrefixTuningConfig,
    "p_tuning_v2": PTuningV2Config,
    "freeze": FreezeConfig,
}
