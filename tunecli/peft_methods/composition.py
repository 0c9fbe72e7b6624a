"""Adding the methods of a run to one plain model, and writing and reading them as standard peft folders.

Several methods stand in the order of the `peft` group: each wraps what the ones before it left, so the first is next
to the base. What each of them is put into is looked up in the plain model, before any is.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunecli.config.errors import UserError
from tunecli.config.peft import LoraConfig, PeftConfig
from tunecli.engine.batch import Batch
from tunecli.engine.step_hook import StepHook
from tunecli.peft_methods import METHODS, STEP_HOOKS, WITH_VIRTUAL_TOKENS, adalora, lora, lora_start
from tunecli.peft_methods.freeze import FreezeLayer
from tunecli.peft_methods.ln_tuning import is_norm, keep_dtypes
from tunecli.peft_methods.source import COMPOSITION
from tunecli.peft_methods.token_ids import token_ids
from tunecli.peft_methods.tuner import TunerConfig, base_of, innermost

PLAIN_PEFT = "base_model.model."
"""Prefix of every key in a peft checkpoint: the path from peft's wrapper to the model."""
WRAPPED = ".base_layer"
"""In the path of what stands inside another method's layer."""


def adapter_name(name: str) -> str:
    """peft's name of the entry `name` of the `peft` group. peft mixes up an adapter called `lora` with its layers'
    own prefix `lora_`."""
    return f"tune_{name}"


def inject(
    model: PreTrainedModel,
    methods: Mapping[str, PeftConfig],
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batches: Callable[[], Iterator[Batch]] | None = None,
    starts: Mapping[str, Path] | None = None,
) -> None:
    """Freeze `model` and add every method to it, all active. Without methods it is trained in full.

    The new parameters are fp32 and start from `seed` alone, with EVA from `batches`, or from a checkpoint.

    Args:
        tokenizer: of the words that virtual tokens start as; None: they start as random numbers.
        batches: gives those that training begins with, the same on every rank.
        starts: entry -> peft folder, for entries with `init_from`; those with `freeze` are not trained.

    Raises:
        UserError: a method found nothing in this model to attach to, or a checkpoint does not fit it.
    """
    starts = starts or {}
    if homeless := [name for name, method in methods.items() if method.init_from and name not in starts]:
        raise ValueError(f"no folder was given of what {', '.join(homeless)} start from")
    if not methods:
        model.requires_grad_(True)
        return
    model.requires_grad_(False)
    ids = token_ids(methods, tokenizer)
    configs = {}
    for name, method in methods.items():
        if name not in starts:
            with _errors_of(name):
                configs[name] = _peft_config(method, model, tokenizer, ids.get(name, []))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, method in methods.items():
            if name in starts:
                trained = not method.freeze
                load_adapter(model, starts[name], adapter_name(name), trained=trained, virtual=ids.get(name))
                continue
            add(model, adapter_name(name), configs[name])
            with _errors_of(name):
                _start(model, name, method, batches)
    activate(model, map(adapter_name, methods))


@contextmanager
def trained_off(model: nn.Module, methods: Mapping[str, PeftConfig]) -> Iterator[None]:
    """Only frozen entries are on meanwhile. That is the model before the first step of training, unless a trained
    entry has `init_from` too: those weights have changed since."""
    activate(model, (adapter_name(name) for name, method in methods.items() if method.freeze))
    try:
        yield
    finally:
        activate(model, map(adapter_name, methods))


def _peft_config(
    config: PeftConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, token_ids: list[int]
) -> peft.PeftConfig:
    if config.method in WITH_VIRTUAL_TOKENS:
        return WITH_VIRTUAL_TOKENS[config.method](config, model, tokenizer, token_ids)
    return METHODS[config.method](config, model)


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(error.what, where=f"peft.{name}.{error.where}", fix=error.fix) from error


def _start(
    model: PreTrainedModel, name: str, method: PeftConfig, batches: Callable[[], Iterator[Batch]] | None
) -> None:
    if isinstance(method, LoraConfig):
        adapter = adapter_name(name)
        starts = lora_start.start(model, adapter, method.init_lora_weights, batches)
        model.lora_starts = model.__dict__.get("lora_starts", {}) | ({adapter: starts} if starts else {})


def step_hooks(model: PreTrainedModel, methods: Mapping[str, PeftConfig], num_steps: int) -> list[StepHook]:
    """What the methods in `model` do in every step of a run of `num_steps`."""
    return [
        STEP_HOOKS[config.method](model, adapter_name(name), config, num_steps)
        for name, config in methods.items()
        if config.method in STEP_HOOKS and not config.freeze
    ]


def rate_factors(model: nn.Module, methods: Mapping[str, PeftConfig]) -> dict[str, float]:
    """Parameter name -> what its learning rate is multiplied by, where that is not 1."""
    ratios = {
        adapter_name(name): config.loraplus_lr_ratio
        for name, config in methods.items()
        if isinstance(config, LoraConfig) and config.loraplus_lr_ratio != 1
    }
    return lora.rate_factors(model, ratios)


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
    with _uncovered(model, config), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # peft mends it by itself, for Conv1D
        warnings.filterwarnings("ignore", "Specified to not load vera_A")
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
def _uncovered(model: nn.Module, config: peft.PeftConfig) -> Iterator[None]:
    """Take wrappers off modules that have children of their own, as peft never looks inside a wrapper; those that are
    to hold one more adapter of their kind stay. And off norms that are about to be replaced by copies, which would
    take the wrappers' adapters with them."""
    own = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type].tuner_layer_cls
    replaces = config.peft_type == peft.PeftType.LN_TUNING
    covered: list[tuple[nn.Module, str, BaseTunerLayer]] = []
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if not isinstance(module, BaseTunerLayer):
            continue
        base = base_of(module)
        if not any(True for _ in base.children()) and not (replaces and is_norm(base)):
            continue
        if isinstance(module, own) and not replaces and path in config.target_modules:
            continue
        if path.endswith(WRAPPED):
            continue  # travels with the wrapper around it
        home, _, name = path.replace(WRAPPED, "").rpartition(".")  # wrappers above are off already
        parent = model.get_submodule(home)
        setattr(parent, name, base)
        covered.append((parent, name, module))
    try:
        yield
    finally:
        for parent, name, wrapper in reversed(covered):
            new = getattr(parent, name)
            if not isinstance(new, BaseTunerLayer):
                setattr(parent, name, wrapper)
            elif replaces:
                setattr(parent, name, _with_copy(wrapper, new))
            else:
                innermost(new).base_layer = wrapper


def _with_copy(wrapper: BaseTunerLayer, copy: BaseTunerLayer) -> BaseTunerLayer:
    """`wrapper`, which is around a norm or around wrappers of it, with the trained copy of the norm next to the norm;
    only a twin of `freeze`, which stands in for the norm itself, is closer."""
    last = innermost(wrapper)
    if not isinstance(last, FreezeLayer):
        last.base_layer = copy
        return wrapper
    copy.base_layer = last
    if last is wrapper:
        return copy
    above = next(module for module in wrapper.modules() if getattr(module, "base_layer", None) is last)
    above.base_layer = copy
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
        config, state = _as_saved(model, adapter_name(name))
        config.base_model_name_or_path = base
        config.inference_mode = True
        config.save_pretrained(str(target))
        tensors = {PLAIN_PEFT + key: value.contiguous().cpu() for key, value in state.items()}
        save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / COMPOSITION).write_text(json.dumps({"order": names}, indent=2), encoding="utf-8")


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


def saved_config(folder: Path) -> peft.PeftConfig:
    """What peft saved beside the weights in `folder`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Specified to not save vera_A")  # they follow from its seed
        return peft.PeftConfig.from_pretrained(str(folder))


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
        state[here[plain][0] if plain in here else key] = value
    if missing := here.keys() - {key.replace(WRAPPED, "") for key in saved}:
        raise UserError(
            f"the checkpoint has no weights for {len(missing)} of its layers in this model, such as {min(missing)}",
            where=str(folder),
            fix="check that it was trained on this base model",
        )
    set_peft_model_state_dict(model, state, adapter_name=adapter)
