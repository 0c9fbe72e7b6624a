"""Adding the methods of a run to one plain model, and writing and reading them as standard peft folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftConfig as SavedPeftConfig
from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from peft.utils import load_peft_weights
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.peft import PeftConfig
from tunecli.peft_methods import METHODS

PLAIN_PEFT = "base_model.model."
"""Prefix of every key in a peft checkpoint: the path from peft's wrapper to the model."""


def adapter_name(name: str) -> str:
    """peft's name of the entry `name` of the `peft` group. peft mixes up an adapter called `lora` with its layers'
    own prefix `lora_`."""
    return f"tune_{name}"


def inject(model: PreTrainedModel, methods: Mapping[str, PeftConfig], *, seed: int) -> None:
    """Freeze `model` and add every method to it, all active. Without methods it is trained in full.

    The new parameters are fp32 whatever the base is, and start from `seed` alone.

    Raises:
        UserError: a method found nothing in this model to attach to.
    """
    if not methods:
        model.requires_grad_(True)
        return
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, config in methods.items():
            try:
                METHODS[config.method](model, adapter_name(name), config)
            except ValueError as error:
                if "not found in the base model" not in str(error):
                    raise
                raise UserError(
                    f"none of its target modules is in this model ({type(model).__name__})",
                    where=f"peft.{name}.target_modules",
                    fix="[all-linear], or names from the model: "
                    + ", ".join(sorted({path.rsplit(".", 1)[-1] for path in linear_layers(model)})),
                ) from error
    activate(model, map(adapter_name, methods))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def activate(model: nn.Module, names: Iterable[str]) -> None:
    """Switch the named adapters on together; peft switches on the last one only."""
    names = list(names)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(names)


def leave_casts_to_autocast(model: nn.Module) -> None:
    """Stop peft from copying bf16 inputs to fp32 where autocast would cast the copy back at once."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def linear_layers(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]


def save_adapters(model: PreTrainedModel, names: Iterable[str], folder: Path, *, base: str) -> None:
    """Write `folder/<name>/` for each entry: a peft checkpoint that plain peft loads on its own.

    Args:
        base: path or Hub id that is noted as the base model.
    """
    for name in names:
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        adapter = adapter_name(name)
        config = model.peft_config[adapter]
        config.base_model_name_or_path = base
        config.inference_mode = True
        config.save_pretrained(str(target))
        state = get_peft_model_state_dict(model, adapter_name=adapter)
        tensors = {PLAIN_PEFT + key: value.contiguous().cpu() for key, value in state.items()}
        save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})


def load_adapters(model: PreTrainedModel, folders: Sequence[Path]) -> list[str]:
    """Inject the peft checkpoints `folders` into `model` and switch them on together. Returns their names."""
    names = [folder.name for folder in folders]
    for name, folder in zip(names, folders, strict=True):
        load_adapter(model, folder, adapter_name(name))
    activate(model, map(adapter_name, names))
    return names


def load_adapter(model: PreTrainedModel, folder: Path, adapter: str) -> None:
    """Inject the peft checkpoint in `folder` under peft's name `adapter`, in fp32 as it was trained."""
    config = SavedPeftConfig.from_pretrained(str(folder))
    inject_adapter_in_model(config, model, adapter_name=adapter)
    cast_adapter_dtype(model, adapter)
    saved = load_peft_weights(str(folder), device="cpu")
    state = {key.removeprefix(PLAIN_PEFT): value for key, value in saved.items()}
    set_peft_model_state_dict(model, state, adapter_name=adapter)
