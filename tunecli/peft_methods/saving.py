"""Writing the methods in a model as standard peft folders, and reading such folders."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import peft
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.engine.checkpoint import follow_umask
from tunecli.engine.quiet import no_meaningless_warnings
from tunecli.peft_methods import adalora, lora
from tunecli.peft_methods.injection import WRAPPED, activate, adapter_name, add
from tunecli.peft_methods.source import COMPOSITION
from tunecli.peft_methods.tuner import TunerConfig

PLAIN_PEFT = "base_model.model."
"""Prefix of every key in a peft checkpoint: the path from peft's wrapper to the model."""


def save_adapters(model: PreTrainedModel, names: Iterable[str], folder: Path, *, base: str) -> None:
    """Write `folder/<name>/` for each entry: a peft checkpoint that loads on its own; and their order.

    Args:
        base: path or Hub id that is noted as the base model.
    """
    names = list(names)
    for name in names:
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        config, state = _as_saved(model, adapter_name(name))
        config.base_model_name_or_path = base
        config.inference_mode = True
        config.save_pretrained(str(target))
        tensors = {PLAIN_PEFT + key: value.contiguous().cpu() for key, value in state.items()}
        save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
        follow_umask(target)
    (folder / COMPOSITION).write_text(json.dumps({"order": names}, indent=2), encoding="utf-8")


def save_with_head(adapter: Path, head: Path, target: Path) -> None:
    """Write a saved adapter and the saved head that was trained beside it as one folder, which peft alone loads into
    a classifier: the head's layers stand among its `modules_to_save`.

    Args:
        adapter: folder of a method that peft has too.
        head: folder of a `freeze` entry.
    """
    config = saved_config(adapter)
    config.modules_to_save = list(saved_config(head).target_modules)
    config.task_type = peft.TaskType.SEQ_CLS
    config.save_pretrained(str(target))
    scorer = {
        key.replace(".freeze_copy", ""): value for key, value in load_peft_weights(str(head), device="cpu").items()
    }
    tensors = load_peft_weights(str(adapter), device="cpu") | scorer
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    follow_umask(target)


def _as_saved(model: PreTrainedModel, adapter: str) -> tuple[peft.PeftConfig, dict[str, torch.Tensor]]:
    """Its configuration and tensors, by the names that they would have if no other adapter were there, in the form
    that belongs to the untouched base."""
    config = copy.copy(model.peft_config[adapter])
    state = {plain: tensor for plain, (_, tensor) in _state(model, adapter).items()}
    if starts := getattr(model, "lora_starts", {}).get(adapter):
        return lora.saved_on_plain_base(config, state, starts)
    if isinstance(config, peft.AdaLoraConfig):
        return adalora.saved_pruned(config, state)
    if isinstance(config, TunerConfig):
        return config.plain(), _without_networks(model, adapter, state)
    return config, state


def _without_networks(
    model: PreTrainedModel, adapter: str, state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`state` with what the small networks of prompts and prefixes make in place of these networks."""
    for path, module in model.named_modules():
        parts = path.split(".")
        if adapter not in parts or not hasattr(module, "plain_state"):
            continue
        plain = ".".join(part for part in parts if part not in (adapter, WRAPPED.removeprefix(".")))
        state = {key: value for key, value in state.items() if not key.startswith(f"{plain}.")}
        state |= {f"{plain}.{name}": value for name, value in module.plain_state().items()}
    return state


def _state(model: PreTrainedModel, adapter: str) -> dict[str, tuple[str, torch.Tensor]]:
    """Key in a checkpoint of this adapter alone -> key in this model, and the tensor."""
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {key.replace(WRAPPED, ""): (key, value) for key, value in state.items()}


def load_adapters(model: PreTrainedModel, folders: Sequence[Path]) -> list[str]:
    """Inject the peft checkpoints `folders` into `model`, in this order, and switch them on. Returns their names."""
    names = [folder.name for folder in folders]
    for name, folder in zip(names, folders, strict=True):
        load_adapter(model, folder, adapter_name(name))
    activate(model, map(adapter_name, names))
    return names


@no_meaningless_warnings()
def saved_config(folder: Path) -> peft.PeftConfig:
    """What peft saved beside the weights in `folder`."""
    return peft.PeftConfig.from_pretrained(str(folder))


@no_meaningless_warnings()
def load_adapter(
    model: PreTrainedModel, folder: Path, adapter: str, *, trained: bool = False, virtual: list[int] | None = None
) -> None:
    """Inject the peft checkpoint in `folder` under peft's name `adapter`, in fp32 as it was trained.

    Args:
        trained: it is to be trained further; else its parameters are frozen.
        virtual: ids of its virtual tokens in this model; None: those that it was saved with.

    Raises:
        UserError: the checkpoint does not fit this model.
    """
    before = {id(parameter) for parameter in model.parameters()}
    config = saved_config(folder)
    config.inference_mode = not trained
    if virtual is not None:
        config.token_ids = virtual
    saved = {
        key.removeprefix(PLAIN_PEFT): value for key, value in load_peft_weights(str(folder), device="cpu").items()
    }
    if isinstance(config, peft.AdaLoraConfig) and config.rank_pattern:
        saved = adalora.unpruned(saved, config.rank_pattern)
        config.rank_pattern = None
    add(model, adapter, config)
    for parameter in model.parameters():
        if not trained and id(parameter) not in before:
            parameter.requires_grad_(False)
    here = _state(model, adapter)
    state = {}
    for key, value in saved.items():
        plain = key.replace(WRAPPED, "")
        if plain in here and here[plain][1].shape != value.shape:
            raise _other_shape(folder, plain, value, here[plain][1])
        state[here[plain][0] if plain in here else key] = value
    if missing := here.keys() - {key.replace(WRAPPED, "") for key in saved}:
        raise UserError(
            f"the checkpoint has no weights for {len(missing)} of its layers in this model, such as {min(missing)}",
            where=str(folder),
            fix="check that it was trained on this base model",
        )
    set_peft_model_state_dict(model, state, adapter_name=adapter)


def _other_shape(folder: Path, key: str, there: torch.Tensor, here: torch.Tensor) -> UserError:
    return UserError(
        f"{key} is {[*there.shape]} in the checkpoint, and {[*here.shape]} in this model",
        where=str(folder),
        fix="check that it was trained on this base model, and a head for as many labels",
    )
