"""What the `peft` group gets wrong although every value has the right type."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from tunecli.config.errors import Problem
from tunecli.config.model import Quantization
from tunecli.config.peft import PeftConfig
from tunecli.config.peft_facts import FACTS
from tunecli.config.run import RunConfig

POSITIVE = ("greater than 0", lambda value: value > 0)
SHARE = ("at least 0 and below 1", lambda value: 0 <= value < 1)
RULES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("r", "lora_alpha", "alpha", "bottleneck_size", "scaling"), POSITIVE),
    **dict.fromkeys(("lora_dropout", "vera_dropout", "dropout"), SHARE),
    "reduction_factor": ("at least 1", lambda value: value >= 1),
    "oft_block_size": ("at least 2", lambda value: value >= 2),
    "decompose_factor": ("-1 or greater than 0", lambda value: value == -1 or value > 0),
}
"""field of a method -> what it has to be, whichever method it is of"""


def peft_problems(config: RunConfig) -> Iterator[Problem]:
    if config.model.quantization is not Quantization.none and not config.peft:
        yield Problem(
            "model.quantization",
            f"{config.model.quantization.value} weights cannot be trained themselves, and there is no adapter",
            "peft=lora, or model.quantization=none for full fine-tuning",
        )
    for name, method in config.peft.items():
        if config.model.quantization is not Quantization.none and not FACTS[method.method].quantized:
            yield Problem(
                f"peft.{name}",
                f"{method.method} does not work on {config.model.quantization.value} weights",
                "model.quantization=none, or another method: tune ls peft",
            )
        yield from _method(f"peft.{name}", method)


def _method(key: str, method: PeftConfig) -> Iterator[Problem]:
    fields = {field.name: field for field in dataclasses.fields(method)}
    for name in fields.keys() & RULES.keys():
        value = getattr(method, name)
        if value is not None:
            yield from _number(f"{key}.{name}", value, *RULES[name])
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern, value in getattr(method, name, {}).items():
            yield from _number(f"{key}.{name}.{pattern}", value, *POSITIVE)
    if "target_modules" not in fields:
        return
    targets: list[str] = getattr(method, "target_modules")  # noqa: B009
    if not targets and fields["target_modules"].default_factory is not list:
        yield Problem(f"{key}.target_modules", "is empty", f"{key}.target_modules=[all-linear]")
    elif "all-linear" in targets and len(targets) > 1:
        yield Problem(f"{key}.target_modules", "names all-linear and more", f"{key}.target_modules=[all-linear]")


def _number(key: str, value: float, demand: str, holds: Callable[[float], bool]) -> Iterator[Problem]:
    if not (math.isfinite(value) and holds(value)):
        yield Problem(key, f"is {value}", f"a number {demand}")
