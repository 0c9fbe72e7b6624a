"""What is true of each parameter-efficient method whatever its values are."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tunecli.config.errors import Problem


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of a method whatever its values are."""

    adds: str
    """what is trained, and where"""
    count: str
    """number of trained parameters"""
    merges: bool | None
    """its change can become part of the base's weights; None: it has no change beside them"""
    quantized: bool
    """works on 4- and 8-bit bases"""
    paper: str
    unmerged_with: str = ""
    """the option with which it does not merge, of a method that does"""
    starts_as_base: bool = True
    """untrained, it leaves the model's outputs as they are"""


FACTS: dict[str, Facts] = {
    "full": Facts("every weight", "all", None, False, "no paper: fine-tuning as such"),
    "lora": Facts(
        "B A beside each linear layer", "r (in + out) per layer", True, True, "Hu et al., 2021, arXiv:2106.09685"
    ),
    "adalora": Facts(
        "B E A beside each linear layer, E diagonal and pruned",
        "init_r (in + out + 1) per layer",
        True,
        True,
        "Zhang et al., 2023, arXiv:2303.10512",
    ),
    "vera": Facts(
        "two vectors beside each linear layer",
        "r + out per layer",
        True,
        True,
        "Kopiczko et al., 2024, arXiv:2310.11454",
    ),
    "loha": Facts(
        "(B1 A1) * (B2 A2) beside each linear layer",
        "2 r (in + out) per layer",
        True,
        False,
        "Hyeon-Woo et al., 2022, arXiv:2108.06098",
    ),
    "lokr": Facts(
        "C (x) (B A) beside each linear layer",
        "about r (in + out) / sqrt(in) per layer",
        True,
        False,
        "Yeh et al., 2024, arXiv:2309.14859",
    ),
    "oft": Facts(
        "rotations of each linear layer's input, in blocks",
        "in (block - 1) / 2 per layer",
        True,
        True,
        "Qiu et al., 2023, arXiv:2306.07280",
    ),
    "ia3": Facts(
        "factors of keys, values and inner activations",
        "2 d_kv + d_ff per layer",
        True,
        True,
        "Liu et al., 2022, arXiv:2205.05638",
    ),
    "ln_tuning": Facts(
        "the normalisation layers", "d per norm, 2 d with a bias", True, True, "Zhao et al., 2024, arXiv:2312.11420"
    ),
    "bitfit": Facts(
        "a shift of each bias",
        "out per bias",
        True,
        True,
        "Ben Zaken et al., 2022, arXiv:2106.10199",
        unmerged_with="add_missing",
    ),
    "houlsby": Facts(
        "a bottleneck after attention and after the feed-forward layer",
        "2 (2 d b + b + d) per layer",
        False,
        True,
        "Houlsby et al., 2019, arXiv:1902.00751",
    ),
    "pfeiffer": Facts(
        "a bottleneck after the feed-forward layer",
        "2 d b + b + d per layer",
        False,
        True,
        "Pfeiffer et al., 2021, arXiv:2005.00247",
    ),
    "parallel": Facts(
        "a bottleneck beside the feed-forward layer",
        "2 d b + b + d per layer",
        False,
        True,
        "He et al., 2022, arXiv:2110.04366",
    ),
    "prompt_tuning": Facts(
        "embeddings in front of the input",
        "n d",
        False,
        True,
        "Lester et al., 2021, arXiv:2104.08691",
        starts_as_base=False,
    ),
    "p_tuning": Facts(
        "embeddings at any place of a template, from an LSTM",
        "n d, and about 14 d^2 in training",
        False,
        True,
        "Liu et al., 2021, arXiv:2103.10385",
        starts_as_base=False,
    ),
    "prefix_tuning": Facts(
        "keys and values in each attention layer, from an MLP",
        "2 n d_kv per layer, and more in training",
        False,
        True,
        "Li & Liang, 2021, arXiv:2101.00190",
        starts_as_base=False,
    ),
    "p_tuning_v2": Facts(
        "keys and values in each attention layer",
        "2 n d_kv per layer",
        False,
        True,
        "Liu et al., 2022, arXiv:2110.07602",
        starts_as_base=False,
    ),
    "freeze": Facts(
        "chosen weights of the base: layers, norms, embeddings, or by name",
        "those chosen",
        True,
        False,
        "Lee et al., 2019, arXiv:1911.03090",
    ),
}
"""method -> facts; `tune ls peft` shows them"""

LETTERS = (
    "in, out: widths of a linear layer; A, B: trained matrices of rank r beside it (adalora: init_r)",
    "d: width of the model; d_ff: of the inside of its feed-forward layers; d_kv: of a layer's keys",
    "b: bottleneck_size, or d / reduction_factor; n: num_virtual_tokens; block: oft_block_size",
    "*: product of elements; (x): Kronecker product",
)
"""what stands in them"""

NOT_SUPPORTED: dict[str, str] = {
    **dict.fromkeys(("boft", "hra", "psoft", "road", "osf"), "oft"),
    **dict.fromkeys(("randlora", "pvera", "vblora", "unilora", "tinylora", "frod"), "vera"),
    **dict.fromkeys(("fourierft", "waveft", "c3a", "shira", "miss", "bone", "xlora", "poly"), "lora"),
    **dict.fromkeys(("delora", "gralora", "glora", "lily", "adamss", "peanut", "shadow", "supertuning"), "lora"),
    **dict.fromkeys(("hira",), "loha"),
    **dict.fromkeys(("beft", "deft"), "bitfit"),
    **dict.fromkeys(("cpt", "multitask_prompt_tuning", "trainable_tokens"), "prompt_tuning"),
    **dict.fromkeys(("adaption_prompt", "cartridge"), "prefix_tuning"),
}
"""method that peft has and this package has not -> the nearest of those here"""


BY_VALUES: dict[str, str] = {
    "qlora": "peft=lora model.quantization=nf4",
    "dora": "peft=lora peft.lora.use_dora=true",
    "rslora": "peft=lora peft.lora.use_rslora=true",
    "pissa": "peft=lora peft.lora.init_lora_weights=pissa",
    "olora": "peft=lora peft.lora.init_lora_weights=olora",
    "eva": "peft=lora peft.lora.init_lora_weights=eva",
    "loraplus": "peft=lora peft.lora.loraplus_lr_ratio=16",
    "madx": "peft=pfeiffer peft.pfeiffer.invertible=true",
}
"""known by a name of its own -> the values of a method here that it is"""


def not_supported(name: str, where: str) -> Problem | None:
    """The problem of a name that peft or the literature has for a method, and this package has not."""
    if values := BY_VALUES.get(re.sub("[-_]", "", name.lower().replace("+", "plus"))):
        return Problem(where, f"{name} is no method of its own here", values)
    near = NOT_SUPPORTED.get(name.lower())
    if near is None:
        return None
    return Problem(
        where, f"peft has {name}, but it is not supported here", f"the nearest: peft={near} (tune ls peft)"
    )
