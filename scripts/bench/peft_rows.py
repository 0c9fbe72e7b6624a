"""The rows of the table that compares PEFT methods: what each trains, and the learning rate that it starts from.

Sizes are the tool's defaults (`configs/peft/`): LoRA of rank 16 on all linear layers, adapters a sixteenth as wide as
the model, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunecli.config.peft import (
    AdaLoraConfig,
    BitFitConfig,
    FreezeConfig,
    HoulsbyConfig,
    Ia3Config,
    LnTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    LoraInit,
    OftConfig,
    ParallelConfig,
    PeftConfig,
    PfeifferConfig,
    Placement,
    PrefixTuningConfig,
    PromptTuningConfig,
    PTuningConfig,
    PTuningV2Config,
    VeraConfig,
)

FACTORS = (1, 3, 10)
"""The learning rates tried are the row's times these."""
FULL, HEAD_ONLY = "full", "head only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    rate: float
    """default learning rate"""
    source: str
    """of that rate"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierRow(Row):
    """A way to train MiniLM as a classifier, its head aside, which is trained in each of them."""

    methods: dict[str, PeftConfig]
    """in the order of injection; empty for `FULL` and `HEAD_ONLY`"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRow(Row):
    """A way to run the recipe `quickstart`."""

    overrides: tuple[str, ...]


HU, HOULSBY, PFEIFFER = "Hu et al., 2021, table 9 (SST-2)", "Houlsby et al., 2019 (swept)", "Pfeiffer et al., 2021"
BEN_ZAKEN, HE = "Ben Zaken et al., 2022 (swept)", "He et al., 2022"
TEN_LI = "ours: 10 x Li & Liang, 2021, for a shorter training"
FIRST_OF_FULL = "Devlin et al., 2019 (largest)"
BOTH_FACTORS = "ours: as full, since A and B both start large"


def _classifier(rate: float, source: str, *methods: PeftConfig) -> ClassifierRow:
    return ClassifierRow(rate=rate, source=source, methods={method.method: method for method in methods})


MINILM: dict[str, ClassifierRow] = {
    FULL: _classifier(5e-5, FIRST_OF_FULL),
    "freeze (last 2 layers, norms)": _classifier(5e-5, "ours: as full", FreezeConfig(last_n_layers=2, norms=True)),
    HEAD_ONLY: _classifier(3e-3, "ours: as the head's in every row"),
    "lora": _classifier(5e-4, HU, LoraConfig()),
    "lora + dora": _classifier(5e-4, "ours: as lora", LoraConfig(use_dora=True)),
    "lora+ (ratio 16)": _classifier(5e-5, "ours: as full, B at 16 times that", LoraConfig(loraplus_lr_ratio=16)),
    "pissa": _classifier(5e-5, BOTH_FACTORS, LoraConfig(init_lora_weights=LoraInit.pissa)),
    "olora": _classifier(5e-5, BOTH_FACTORS, LoraConfig(init_lora_weights=LoraInit.olora)),
    "eva": _classifier(5e-4, "ours: as lora", LoraConfig(init_lora_weights=LoraInit.eva)),
    "adalora": _classifier(8e-4, "Zhang et al., 2023 (SST-2)", AdaLoraConfig()),
    "vera": _classifier(4e-3, "Kopiczko et al., 2024 (SST-2)", VeraConfig()),
    "loha": _classifier(5e-4, "ours: as lora", LoHaConfig()),
    "lokr": _classifier(5e-4, "ours: as lora", LoKrConfig()),
    "oft": _classifier(5e-4, "ours: as lora", OftConfig()),
    "ia3": _classifier(3e-3, "Liu et al., 2022 (T-Few)", Ia3Config()),
    "ln_tuning": _classifier(4e-4, "ours: as bitfit", LnTuningConfig()),
    "bitfit": _classifier(4e-4, BEN_ZAKEN, BitFitConfig()),
    "houlsby": _classifier(3e-4, HOULSBY, HoulsbyConfig()),
    "pfeiffer (after norm)": _classifier(1e-4, PFEIFFER, PfeifferConfig(placement=Placement.after_norm)),
    "pfeiffer + invertible": _classifier(
        1e-4, "Pfeiffer et al., 2020 (MAD-X)", PfeifferConfig(placement=Placement.after_norm, invertible=True)
    ),
    "parallel": _classifier(1e-4, HE, ParallelConfig()),
    "prompt_tuning (20)": _classifier(
        3e-2, "Lester et al., 2021, have 0.3", PromptTuningConfig(num_virtual_tokens=20)
    ),
    "p_tuning (20, LSTM)": _classifier(3e-4, "ours", PTuningConfig(template="{v20} {prompt} {completion}")),
    "prefix_tuning (20)": _classifier(5e-4, TEN_LI, PrefixTuningConfig()),
    "p_tuning_v2 (20)": _classifier(5e-3, "Liu et al., 2022 (least)", PTuningV2Config()),
    "[lora, bitfit]": _classifier(5e-4, "ours: as lora", LoraConfig(), BitFitConfig()),
    "[prompt_tuning, bitfit, houlsby]": _classifier(
        3e-4, "ours: as houlsby", PromptTuningConfig(), BitFitConfig(), HoulsbyConfig()
    ),
}
"""Of p_tuning's template only the number of tokens counts: a classifier has no completion."""

SMOLLM2: dict[str, RecipeRow] = {
    "lora": RecipeRow(rate=3e-4, source="the recipe", overrides=("peft=[lora]",)),
    "houlsby": RecipeRow(rate=3e-4, source=HOULSBY, overrides=("peft=[houlsby]",)),
    "prefix_tuning": RecipeRow(rate=5e-4, source=TEN_LI, overrides=("peft=[prefix_tuning]",)),
    "prompt_tuning": RecipeRow(rate=3e-2, source="ours", overrides=("peft=[prompt_tuning]",)),
    "bitfit": RecipeRow(rate=1e-3, source=BEN_ZAKEN, overrides=("peft=[bitfit]", "peft.bitfit.add_missing=true")),
    "[lora, bitfit]": RecipeRow(
        rate=3e-4, source="the recipe", overrides=("peft=[lora,bitfit]", "peft.bitfit.add_missing=true")
    ),
    "[prompt_tuning, houlsby]": RecipeRow(
        rate=3e-4, source="as houlsby", overrides=("peft=[prompt_tuning,houlsby]",)
    ),
}
