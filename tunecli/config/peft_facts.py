"""What is true of each parameter-efficient method whatever its values are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of a method whatever its values are."""

    adds: str
    """what is trained, and where"""
    count: str
    """number of trained parameters"""
    merges: bool
    """its change can become part of the base's weights"""
    quantized: bool
    """works on 4- and 8-bit bases"""
    paper: str


FACTS: dict[str, Facts] = {
    "full": Facts("every weight", "all", False, False, "no paper: fine-tuning as such"),
    "lora": Facts(
        "B A beside each linear layer", "r (in + out) per layer", True, True, "Hu et al., 2021, arXiv:2106.09685"
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
        "2 d + d_ff per layer",
        True,
        True,
        "Liu et al., 2022, arXiv:2205.05638",
    ),
    "ln_tuning": Facts(
        "the normalisation layers", "d (and d) per norm", True, True, "Zhao et al., 2024, arXiv:2312.11420"
    ),
    "bitfit": Facts("a shift of each bias", "out per bias", True, True, "Ben Zaken et al., 2022, arXiv:2106.10199"),
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
}
"""method -> facts; `tune ls peft` shows them"""
