"""Adding the methods of a run to one plain model, and writing and reading them as standard peft folders.

Several methods stand in the order of the `peft` group: each wraps what the ones before it left, so the first is next
to the base. What each of them is put into is looked up in the plain model, before any is.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, cast_adapter_dtype
from peft.utils import load_peft_weights
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.peft import PeftConfig
from tunecli.peft_methods import METHODS
from tunecli.peft_methods.ln_tuning import keep_dtypes
from tunecli.peft_methods.source import COMPOSITION

PLAIN_PEFT = "base_model.model."
"""Prefix of every key in a peft checkpoint: the path from peft's wrapper to the model."""
WRAPPED = ".base_layer"
"""In the path of what stands inside another method's layer."""


def adapter_name(name: str) -> str:
    """peft's name of the entry `name` of the `peft` group. peft mixes up an adapter called `lora` with its layers'
    own prefix `lora_`."""
    return f"tune_{name}"


def inject(model: PreTrainedModel, methods: Mapping[str, PeftConfig], *, seed: int) -> None:
    """Freeze `model` and add every method to it, all active. Without methods it is trained in full.

    The new parameters are fp32 and start from `seed` alone.

    Raises:
        UserError: a method found nothing in this model to attach to.
    """
    if not methods:
        model.requires_grad_(True)
        return
    model.requires_grad_(False)
    configs = {adapter_name(name): _peft_config(name, config, model) for name, config in methods.items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, config in configs.items():
            add(model, name, config)
    activate(model, configs)


def _peft_config(name: str, config: PeftConfig, model: PreTrainedModel) -> peft.PeftConfig:
    try:
        return METHODS[config.method](config, model)
    except UserError as error:
        raise UserError(error.what, where=f"peft.{name}.{error.where}", fix=error.fix) from error


def add(model: PreTrainedModel, adapter: str, config: peft.PeftConfig) -> None:
    """Inject one method beside those that are there, whose parameters stay trained or frozen as they are. Its own are
    fp32 whatever the base is.

    Raises:
        ValueError: it cannot be put into this model.
    """
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    if not issubclass(tuner, BaseTuner):
        raise ValueError(f"{config.peft_type.value} works through a wrapper around the model only")
    before = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    # peft takes what it finds there for more adapters of the same method.
    known = model.__dict__.pop("peft_config", {})
    with _composites_uncovered(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # peft mends it by itself, for Conv1D
        warnings.filterwarnings("ignore", "Unsupported layer type")  # norms, of which it wants no width
        tuner(model, config, adapter)
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # else they are saved in random order
    model.peft_config = known | {adapter: config}
    cast_adapter_dtype(model, adapter)
    keep_dtypes(model)
    for parameter in model.parameters():
        parameter.requires_grad_(before.get(id(parameter), parameter.requires_grad))


@contextmanager
def _composites_uncovered(model: nn.Module) -> Iterator[None]:
    """Take wrappers off modules that have children of their own, as peft never looks inside a wrapper."""
    covered: list[tuple[nn.Module, str, BaseTunerLayer]] = []
    for path, module in list(model.named_modules()):
        if not isinstance(module, BaseTunerLayer) or not any(True for _ in module.get_base_layer().children()):
            continue
        home, _, name = path.rpartition(".")
        parent = model.get_submodule(home)
        if isinstance(parent, BaseTunerLayer):
            continue  # travels with the wrapper around it
        setattr(parent, name, module.get_base_layer())
        covered.append((parent, name, module))
    try:
        yield
    finally:
        for parent, name, wrapper in reversed(covered):
            _innermost(wrapper).base_layer = getattr(parent, name)
            setattr(parent, name, wrapper)


def _innermost(wrapper: BaseTunerLayer) -> BaseTunerLayer:
    """Of wrappers around wrappers, the one that holds the base's own module."""
    while isinstance(wrapper.base_layer, BaseTunerLayer):
        wrapper = wrapper.base_layer
    return wrapper


def activate(model: nn.Module, names: Iterable[str]) -> None:
    """Switch the named adapters on together; peft switches on the last one only, and makes it trainable."""
    names = list(names)
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter([name for name in names if name in module._all_available_adapter_names()])
    for parameter, trained in before:
        parameter.requires_grad_(trained)


def leave_casts_to_autocast(model: nn.Module) -> None:
    """Stop peft from copying bf16 inputs to fp32 where autocast would cast the copy back at once."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def save_adapters(model: PreTrainedModel, names: Iterable[str], folder: Path, *, base: str) -> None:
    """Write `folder/<name>/` for each entry: a peft checkpoint that loads on its own; and their order.

    Args:
        base: path or Hub id that is noted as the base model.
    """
    names = list(names)
    for name in names:
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        config = model.peft_config[adapter_name(name)]
        config.base_model_name_or_path = base
        config.inference_mode = True
        config.save_pretrained(str(target))
        state = adapter_state(model, adapter_name(name))
        tensors = {PLAIN_PEFT + key: value.contiguous().cpu() for key, value in state.items()}
        save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / COMPOSITION).write_text(json.dumps({"order": names}, indent=2), encoding="utf-8")


def adapter_state(model: PreTrainedModel, adapter: str) -> dict[str, torch.Tensor]:
    """Its tensors, by the names that they would have if no other adapter were there."""
    return {plain: state for plain, (_, state) in _state(model, adapter).items()}


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


def load_adapter(model: PreTrainedModel, folder: Path, adapter: str) -> None:
    """Inject the peft checkpoint in `folder` under peft's name `adapter`, in fp32 as it was trained.

    Raises:
        UserError: the checkpoint does not fit this model.
    """
    add(model, adapter, peft.PeftConfig.from_pretrained(str(folder)))
    saved = load_peft_weights(str(folder), device="cpu")
    here = _state(model, adapter)
    state = {}
    for key, value in saved.items():
        plain = key.removeprefix(PLAIN_PEFT).replace(WRAPPED, "")
        state[here[plain][0] if plain in here else key.removeprefix(PLAIN_PEFT)] = value
    if missing := here.keys() - {key.removeprefix(PLAIN_PEFT).replace(WRAPPED, "") for key in saved}:
        raise UserError(
            f"the checkpoint has no weights for {len(missing)} of its layers in this model, such as {min(missing)}",
            where=str(folder),
            fix="check that it was trained on this base model",
        )
    set_peft_model_state_dict(model, state, adapter_name=adapter)
