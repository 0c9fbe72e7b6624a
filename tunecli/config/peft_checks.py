"""What the `peft` group gets wrong although every value has the right type."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import count

from tunecli.config.counted import counted
from tunecli.config.data_files import exists, is_local
from tunecli.config.errors import Problem
from tunecli.config.model import Quantization
from tunecli.config.peft import (
    AdaLoraConfig,
    FreezeConfig,
    LoraConfig,
    LoraInit,
    PeftConfig,
    PfeifferConfig,
    Placement,
    without_head,
)
from tunecli.config.peft_facts import FACTS
from tunecli.config.prompt_checks import prompt_problems
from tunecli.config.run import RunConfig
from tunecli.config.stage import Task
from tunecli.config.train import in_steps
from tunecli.config.virtual import virtual_ids

POSITIVE = ("greater than 0", lambda value: value > 0)
NOT_NEGATIVE = ("0 or greater", lambda value: value >= 0)
SHARE = ("at least 0 and below 1", lambda value: 0 <= value < 1)
RULES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("r", "lora_alpha", "alpha", "bottleneck_size", "scaling"), POSITIVE),
    **dict.fromkeys(("num_virtual_tokens", "encoder_hidden_size", "init_top_k"), POSITIVE),
    **dict.fromkeys(("init_r", "target_r", "deltaT", "loraplus_lr_ratio"), POSITIVE),
    **dict.fromkeys(("tinit", "tfinal", "orth_reg_weight"), NOT_NEGATIVE),
    **dict.fromkeys(("beta1", "beta2"), ("greater than 0 and below 1", lambda value: 0 < value < 1)),
    **dict.fromkeys(("lora_dropout", "vera_dropout", "dropout"), SHARE),
    **dict.fromkeys(("reduction_factor", "invertible_reduction_factor"), ("at least 1", lambda value: value >= 1)),
    "last_n_layers": ("at least 0", lambda value: value >= 0),
    "oft_block_size": ("at least 2", lambda value: value >= 2),
    "decompose_factor": ("-1 or greater than 0", lambda value: value == -1 or value > 0),
}
"""field of a method -> what it has to be, whichever method it is of"""
BY_ROW = ("lora", "prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2")
"""Methods of which each row of a batch can have its own adapter."""
ONCE = ("ln_tuning",)
"""methods that replace layers instead of adding to them, so that one of a kind can be on"""


def peft_problems(config: RunConfig) -> Iterator[Problem]:
    if config.model.quantization is not Quantization.none and not config.peft:
        yield Problem(
            "model.quantization",
            f"{config.model.quantization.value} weights cannot be trained themselves, and there is no adapter",
            "peft=lora, or model.quantization=none for full fine-tuning",
        )
    for name, method in config.peft.items():
        if config.model.quantization is not Quantization.none and not _works_quantized(method):
            yield Problem(
                f"peft.{name}",
                f"{method.method} does not work on {config.model.quantization.value} weights",
                "model.quantization=none, or another method: tune ls peft",
            )
        yield from _method(f"peft.{name}", method)
        if isinstance(method, LoraConfig):
            yield from _lora_start(name, method, config)
        if isinstance(method, FreezeConfig):
            yield from _freeze(f"peft.{name}", method, [other.method for other in config.peft.values()])
        if isinstance(method, PfeifferConfig) and method.placement is Placement.after_norm and method.target_modules:
            yield Problem(
                f"peft.{name}.target_modules",
                "names modules, but after_norm finds its LayerNorms by the architecture",
                f"peft.{name}.placement=before_norm, or no target_modules",
            )
    if config.train.max_steps is not None:
        yield from schedule_problems(config.peft, config.train.max_steps)
    yield from prompt_problems(config)
    yield from _by_row(config)
    yield from _start_problems(config.peft)


def _works_quantized(method: PeftConfig) -> bool:
    """Heads are never quantised."""
    only_head = FreezeConfig(head=True, init_from=method.init_from, freeze=method.freeze)
    return method == only_head or FACTS[method.method].quantized


def _by_row(config: RunConfig) -> Iterator[Problem]:
    """Of `data.adapter_column`."""
    if config.data.adapter_column is None:
        return
    if not config.peft:
        fix = "one entry of peft for each adapter, as in +peft@peft.alice=lora, or data.adapter_column=null"
        yield Problem("data.adapter_column", "chooses among adapters, and there is none", fix)
    for name, method in without_head(config.peft).items():
        if method.method not in BY_ROW or getattr(method, "use_dora", False):
            what = f"{method.method}{' with DoRA' if method.method in BY_ROW else ''} cannot be chosen by row"
            yield Problem(f"peft.{name}", what, f"data.adapter_column=null, or one of: {', '.join(BY_ROW)}")
    if config.evaluation.prompts:
        what = "do not say which adapter they are for"
        yield Problem("evaluation.prompts", what, "evaluation.prompts=[] beside data.adapter_column")


def schedule_problems(methods: Mapping[str, PeftConfig], num_steps: int) -> Iterator[Problem]:
    """What is wrong for a run of so many steps."""
    for name, method in methods.items():
        if not isinstance(method, AdaLoraConfig):
            continue
        before, after = in_steps(method.tinit, num_steps), in_steps(method.tfinal, num_steps)
        if before + after >= num_steps:
            yield Problem(
                f"peft.{name}",
                f"tinit={method.tinit:g} and tfinal={method.tfinal:g} leave ranks none of "
                f"{counted(num_steps, 'step')} to fall",
                _more_room(f"peft.{name}", method, num_steps),
            )


def _more_room(key: str, method: AdaLoraConfig, num_steps: int) -> str:
    """Shares of the steps where they help, else the fewest steps that do."""
    usual = AdaLoraConfig(method=method.method)
    schedules = [(usual.tinit, usual.tfinal), (method.tinit, method.tfinal)]
    for tinit, tfinal in schedules:
        if in_steps(tinit, num_steps) + in_steps(tfinal, num_steps) < num_steps:
            return f"{key}.tinit={tinit:g} {key}.tfinal={tfinal:g} (shares of all steps)"
    enough = next(n for n in count(num_steps) if sum(in_steps(share, n) for share in schedules[0]) < n)
    return f"train.max_steps={enough} or more, with {key}.tinit={usual.tinit:g} {key}.tfinal={usual.tfinal:g}"


def _lora_start(name: str, method: LoraConfig, config: RunConfig) -> Iterator[Problem]:
    """Starts that read the base's weights, change them, or look at data."""
    start = method.init_lora_weights
    key = f"peft.{name}.init_lora_weights"
    if config.model.quantization is not Quantization.none and (start.changes_base or start is LoraInit.eva):
        yield Problem(
            key,
            f"{start.value} does not work on {config.model.quantization.value} weights",
            f"{key}=default, or model.quantization=none",
        )
    later = list(config.peft)[list(config.peft).index(name) :]
    if start is LoraInit.eva and (prompts := [other for other in later if other in virtual_ids(config.peft)]):
        yield Problem(
            key,
            f"eva runs the data before {prompts[0]} is there to read its virtual tokens",
            f"name {name} last, or {key}=default",
        )
    if start is LoraInit.eva and config.stage.task is Task.seq2seq_lm:
        yield Problem(key, "eva looks at what decoders read, and this model has an encoder too", f"{key}=default")
    if not start.changes_base:
        return
    if next(iter(config.peft)) != name:
        yield Problem(
            key,
            f"{start.value} takes a part out of the base's weights, which methods that stand before it would change",
            f"name {name} first, or {key}=default",
        )
    for other, theirs in config.peft.items():
        if other != name and getattr(theirs, "use_dora", False):
            yield Problem(
                f"peft.{other}.use_dora",
                f"goes by the base's weights, of which {start.value} takes a part for {name}",
                f"peft.{other}.use_dora=false, or {key}=default",
            )


def missing_starts(config: RunConfig) -> Iterator[Problem]:
    """Of a run that has not begun: later it has copies."""
    for name, method in config.peft.items():
        if method.init_from is not None and is_local(method.init_from) and not exists(method.init_from):
            fix = "the path of a run directory or a peft folder"
            yield Problem(f"peft.{name}.init_from", f"{method.init_from} does not exist", fix)


def _start_problems(methods: Mapping[str, PeftConfig]) -> Iterator[Problem]:
    """What is wrong with `init_from`, `freeze` and entries of the same method, as far as it shows without reading
    what `init_from` names."""
    for name, method in methods.items():
        key = f"peft.{name}"
        if method.freeze and method.init_from is None:
            yield Problem(f"{key}.freeze", "is set, but there are no trained weights", f"{key}.init_from=RUN")
    if methods and all(method.freeze and method.init_from for method in methods.values()):
        first = next(iter(methods))
        fix = f"add an entry to train, such as +peft@peft.second=lora; or peft.{first}.freeze=false"
        yield Problem("peft", "every entry is frozen, so there is nothing to train", fix)
    for kind in ONCE:
        names = [name for name, method in methods.items() if method.method == kind]
        if len(names) > 1:
            fix = f"keep one; to train on from an earlier one: peft.{names[0]}.init_from=RUN without freeze"
            yield Problem(f"peft.{names[1]}", f"only one {kind} can be on: each replaces the same layers", fix)


def _method(key: str, method: PeftConfig) -> Iterator[Problem]:
    fields = {field.name: field for field in dataclasses.fields(method)}
    for name in fields.keys() & RULES.keys():
        value = getattr(method, name)
        if value is not None:
            yield from _number(f"{key}.{name}", value, *RULES[name])
    if isinstance(method, AdaLoraConfig) and method.target_r >= method.init_r:
        what = f"is {method.target_r}, not below init_r={method.init_r}: no rank would fall"
        yield Problem(f"{key}.target_r", what, f"{key}.init_r={method.target_r * 3 // 2 + 1}, or peft=lora")
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


def _freeze(key: str, method: FreezeConfig, methods: list[str]) -> Iterator[Problem]:
    chosen = method.last_n_layers or method.norms or method.embeddings or method.patterns or method.head
    if not chosen and method.init_from is None:
        yield Problem(
            key,
            "selects no weights to train",
            f"{key}.last_n_layers=2, {key}.norms=true, {key}.embeddings=true or {key}.patterns=[...]",
        )
    for pattern in method.patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            yield Problem(f"{key}.patterns", f"{pattern!r} is no regular expression: {error}", "lm_head, 'bias$'")
    if "ln_tuning" in methods and (method.last_n_layers or method.norms or method.patterns):
        yield Problem(key, "and ln_tuning may train the same norms, each its own copy", f"{key}.norms=true alone")


def _number(key: str, value: float, demand: str, holds: Callable[[float], bool]) -> Iterator[Problem]:
    if not (math.isfinite(value) and holds(value)):
        yield Problem(key, f"is {value}", f"a number {demand}")
