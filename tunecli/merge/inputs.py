"""What is to be merged, by how much, and what can be refused before weights are loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from peft import PeftConfig

from tunecli.config.counted import counted
from tunecli.config.errors import UserError
from tunecli.peft_methods.adapter_layer import AdapterLayer
from tunecli.peft_methods.loading import require_one
from tunecli.peft_methods.prefix import PrefixLayer
from tunecli.peft_methods.saving import saved_config
from tunecli.peft_methods.source import ADAPTER, Source, find_source
from tunecli.peft_methods.virtual_tokens import VirtualTokensLayer

UNMERGEABLE = {
    "BOTTLENECK": AdapterLayer.why_unmergeable,
    "VIRTUAL_TOKENS": VirtualTokensLayer.why_unmergeable,
    "PREFIX_KV": PrefixLayer.why_unmergeable,
}
"""peft's name of a method -> why it is none of those that merge"""


@dataclass(frozen=True, slots=True)
class Inputs:
    source: Source
    """with the adapters of all paths"""
    weights: list[float]
    """of each adapter"""
    interpolation: float = 1.0
    """of all of them: 0 is the base, 1 the tuned model"""

    @property
    def scales(self) -> list[float]:
        """How much the update of each adapter counts."""
        return [weight * self.interpolation for weight in self.weights]


def find_inputs(
    paths: Sequence[Path], base: str | None = None, weights: Sequence[float] | None = None, interpolation: float = 1.0
) -> Inputs:
    """What `paths` name together, each multiplied by its weight.

    Raises:
        UserError: one of them is neither run nor adapter, a run has no result, their bases differ, or there are more
            or fewer weights than paths.
    """
    if weights is not None and len(weights) != len(paths):
        raise UserError(
            f"{counted(len(weights), 'weight')} for {counted(len(paths), 'run or adapter', 'runs or adapters')}",
            where="--weights",
            fix="one number for each: RUN first, then each --with in its order",
        )
    if not all(map(math.isfinite, weights or ())):
        raise UserError("a weight is no finite number", where="--weights", fix="numbers such as 0.7 or -1")
    sources = [_source(path, base) for path in paths]
    first, *others = sources
    for other in others:
        if not (first.adapters and other.adapters):
            raise UserError(
                "only adapters can be merged together", where=other.path, fix="merge full runs one by one"
            )
        if other.base_key[:2] != first.base_key[:2]:
            raise UserError(
                f"is an adapter for {other.base.path}, the first one is for {first.base.path}",
                where=other.path,
                fix="merge adapters that were trained on the same base; --base says that two names mean the same",
            )
    given = weights if weights is not None else [1.0] * len(paths)
    each = [weight for source, weight in zip(sources, given, strict=True) for _ in source.adapters]
    if weights is not None and not first.adapters:
        raise UserError(
            "a full fine-tuning run has no adapter whose update could be weighted",
            where="--weights",
            fix="--interpolate 0.5 averages the run with its base",
        )
    together = replace(first, adapters=[adapter for source in sources for adapter in source.adapters])
    return Inputs(together, each, interpolation)


def by_kind(inputs: Inputs) -> list[Inputs]:
    """Neighbours of one kind together, in their order; but what stands in for weights of the base is first, as other
    adapters build on it wherever they are named."""
    pairs = list(zip(inputs.source.adapters, inputs.weights, strict=True))
    pairs.sort(key=lambda pair: kind_of(pair[0]) != "FREEZE")
    found = []
    for _, group in groupby(pairs, lambda pair: kind_of(pair[0])):
        folders, weights = zip(*group, strict=True)
        source = replace(inputs.source, adapters=list(folders))
        found.append(replace(inputs, source=source, weights=list(weights)))
    return found


def kind_of(folder: Path) -> str:
    """peft's name of the method, such as LORA."""
    return json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["peft_type"]


def _source(path: Path, base: str | None) -> Source:
    found = find_source(str(path), base) if path.expanduser().exists() else None
    if found is None or not (found.adapters or found.run):
        raise UserError(
            "is neither a run directory nor a peft adapter", where=str(path), fix="`tune merge RUN`, or a peft folder"
        )
    require_one(found)
    return replace(found, base=replace(found.base, gradient_checkpointing=False))


def check(inputs: Inputs, target: Path, *, as_adapter: bool, force: bool) -> None:
    """Raises UserError for everything that can be refused before weights are loaded."""
    source, interpolation = inputs.source, inputs.interpolation
    if not 0 <= interpolation <= 1:
        fix = "from 0 (the base) to 1 (the tuned model)"
        raise UserError(f"{interpolation:g} is not a share", where="--interpolate", fix=fix)
    if not source.adapters and (interpolation == 1 or as_adapter):
        raise UserError(
            "a full fine-tuning run has no adapter to merge",
            where=str(source.run_dir),
            fix=f"{source.base.path} is the model already; --interpolate 0.5 averages it with its base",
        )
    kind, file = ("adapter", ADAPTER) if as_adapter else ("model", "config.json")
    if target.exists() and not (target / file).is_file() and any(target.iterdir()):
        raise UserError(f"is no {kind} folder and is not replaced", where=str(target), fix="name another folder")
    if target.exists() and not force:
        raise UserError("is there already", where=str(target), fix="another folder, or --force to replace it")
    configs = [saved_config(folder) for folder in source.adapters]
    for folder, config, weight in zip(source.adapters, configs, inputs.weights, strict=True):
        _check_adapter(folder, config, weight, interpolation, as_adapter=as_adapter)
    _check_norms(source.adapters, configs)


def _check_adapter(
    folder: Path, config: PeftConfig, weight: float, interpolation: float, *, as_adapter: bool
) -> None:
    kind = str(config.peft_type.value).lower()
    if as_adapter and not _is_linear(config):
        raise UserError(
            f"is {kind}{_more(config)}: only plain LoRAs have a sum that is a LoRA",
            where=str(folder),
            fix="leave out --as-adapter, which merges into the model's weights",
        )
    if why := _why_not(config):
        raise UserError(f"cannot be merged: {why}", where=str(folder), fix="use it unmerged: tunecli.load, tune chat")
    if (weight, interpolation) != (1, 1) and not _is_linear(config):
        fixes = [
            *(["leave out --interpolate"] if interpolation != 1 else []),
            *(["--weights 1 for it"] if weight != 1 else []),
        ]
        raise UserError(
            f"is {kind}{_more(config)}, whose change of the weights cannot be scaled: only plain LoRA's can",
            where=str(folder),
            fix=", and ".join(fixes),
        )


def _more(config: PeftConfig) -> str:
    """What makes a LoRA no plain one."""
    beyond = [name for name in (*BEYOND_LORA, "bias") if getattr(config, name, None) not in (None, False, [], "none")]
    return f" with {' and '.join(beyond)}" if beyond else ""


def _check_norms(folders: Sequence[Path], configs: Sequence[PeftConfig]) -> None:
    norms = [folder for folder, config in zip(folders, configs, strict=True) if config.peft_type == "LN_TUNING"]
    if len(norms) > 1:
        raise UserError(
            f"replaces the normalisation layers, and so does {norms[0]}: nothing adds them up",
            where=str(norms[1]),
            fix="merge one of them",
        )


BEYOND_LORA = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias")
"""fields of peft's LoRA that do more than add B A to a weight"""


def _why_not(config: PeftConfig) -> str | None:
    if config.peft_type in UNMERGEABLE:
        return UNMERGEABLE[config.peft_type]
    if config.peft_type == "BITFIT" and config.add_missing:
        return "the plain model has no place for the biases that it adds"
    return None


def _is_linear(config: PeftConfig) -> bool:
    """Whether the adapter is nothing but an update added to weights."""
    plain = getattr(config, "bias", "none") == "none"
    plain = plain and not any(getattr(config, name, None) for name in BEYOND_LORA)
    return config.peft_type == "LORA" and plain
