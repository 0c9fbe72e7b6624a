"""Several adapters in one model, of which some or none are on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peft import PeftConfig as SavedPeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.peft_methods.saving import load_adapter, saved_config

KEEPING_THE_BASE = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of LoRA's `init_lora_weights` with which injecting it leaves the base's weights as they are."""


def add_adapter(model: PreTrainedModel, folder: Path, name: str) -> None:
    """Load the peft checkpoint in `folder` beside those that `model` has, under a name that none of them has. Which
    adapters are on is for `switch_to` to say afterwards.

    Raises:
        UserError: it cannot be injected, or it changes weights of the base, which could then not be had back.
    """
    if changes_base(saved_config(folder)):
        raise UserError(
            "this adapter changes weights of the base model itself (its bias or init_lora_weights says so)",
            where=str(folder),
            fix="merge it into the base, and name the merged model instead",
        )
    try:
        load_adapter(model, folder, name)
    except ValueError as error:
        raise UserError(
            f"this adapter cannot be put into {type(model).__name__}: {str(error).splitlines()[0]}",
            where=str(folder),
            fix="check that it was trained on this base model, and that it is no prompt-learning adapter",
        ) from error


def switch_to(model: nn.Module, names: Sequence[str]) -> None:
    """Exactly the adapters `names` are on; with none of them the model is its base."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            _switch(module, list(names))
    model.requires_grad_(False)  # peft makes what it switches on trainable


def _switch(module: BaseTunerLayer | AuxiliaryTrainingWrapper, names: list[str]) -> None:
    # The other kind holds copies of a module of the base, one for each adapter that has one; at most one can be on.
    there = module._all_available_adapter_names() if isinstance(module, BaseTunerLayer) else module._adapters
    own = [name for name in names if name in there]
    module.enable_adapters(bool(own))
    if own:
        module.set_adapter(own)


def changes_base(config: SavedPeftConfig) -> bool:
    """Whether injecting it, or loading it, changes weights of the base."""
    start = getattr(config, "init_lora_weights", None)
    return getattr(config, "bias", "none") != "none" or start not in KEEPING_THE_BASE
