"""Putting one method into a plain model, beside others that are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import peft
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, cast_adapter_dtype
from torch import nn
from transformers import PreTrainedModel

from tunecli.engine.quiet import no_meaningless_warnings
from tunecli.peft_methods.freeze import FreezeLayer
from tunecli.peft_methods.ln_tuning import is_norm, keep_dtypes
from tunecli.peft_methods.tuner import base_of, innermost

WRAPPED = ".base_layer"
"""In the path of what stands inside another method's layer."""


def adapter_name(name: str) -> str:
    """peft's name of the entry `name` of the `peft` group. peft mixes up an adapter called `lora` with its layers'
    own prefix `lora_`."""
    return f"tune_{name}"


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
    with _uncovered(model, config), no_meaningless_warnings():
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
