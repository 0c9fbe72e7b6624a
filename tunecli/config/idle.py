"""Values that would change nothing, as another value decides: each is refused, not accepted and ignored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tunecli.config.errors import Problem
from tunecli.config.evaluation import Combine
from tunecli.config.peft import Encoder, PeftConfig, PromptInit, without_head
from tunecli.config.run import RunConfig
from tunecli.config.stage import VerbalizeConfig

EVERY = "*"
"""As `data.adapter_column`: each row is for each adapter in turn."""


@dataclass(frozen=True, slots=True)
class Idle:
    """When a field of a method does nothing, and what makes it count."""

    when: Callable[[Any], bool]
    fix: str


IDLE: dict[str, Idle] = {
    "init_text": Idle(lambda m: m.init is not PromptInit.text, "init=text"),
    "init_labels": Idle(lambda m: m.init is not PromptInit.labels, "init=labels"),
    "init_top_k": Idle(lambda m: m.init in (PromptInit.random_uniform, PromptInit.text), "init=sampled_vocab"),
    "encoder_hidden_size": Idle(
        lambda m: getattr(m, "encoder", None) is Encoder.none or not getattr(m, "prefix_projection", True), ""
    ),
    "feedforward_modules": Idle(lambda m: not m.target_modules, "target_modules=[...]"),
    "reduction_factor": Idle(lambda m: m.bottleneck_size is not None, "bottleneck_size=null"),
    "invertible_reduction_factor": Idle(lambda m: not m.invertible, "invertible=true"),
}
"""field of a method -> when it is idle, whichever method it is of"""
ENCODERS = {"p_tuning": "encoder=lstm", "prefix_tuning": "prefix_projection=true"}
"""method -> what makes its `encoder_hidden_size` count"""


def idle_problems(config: RunConfig) -> Iterator[Problem]:
    for name, method in config.peft.items():
        yield from _of_method(f"peft.{name}", method)
    yield from _combine(config)


def _of_method(key: str, method: PeftConfig) -> Iterator[Problem]:
    for field in dataclasses.fields(method):
        default = field.default_factory() if callable(field.default_factory) else field.default
        idle = IDLE.get(field.name)
        if idle is None or getattr(method, field.name) == default or not idle.when(method):
            continue
        counts = f"{key}.{idle.fix or ENCODERS[method.method]}"
        back = "null" if default is None else default
        yield Problem(
            f"{key}.{field.name}", f"does nothing without {counts}", f"{counts}, or {key}.{field.name}={back}"
        )


def _combine(config: RunConfig) -> Iterator[Problem]:
    """Answers are combined where one question has several: of several adapters, or in several templates."""
    evaluation = config.evaluation
    if evaluation.combine is Combine.mean:
        return
    templates = config.stage.templates if isinstance(config.stage, VerbalizeConfig) else []
    adapters = without_head(config.peft) if config.data.adapter_column == EVERY else {}
    if len(templates) < 2 and len(adapters) < 2:
        fix = "two or more stage.templates" if templates else "several entries of peft, 'data.adapter_column=\"*\"'"
        what = f"is {evaluation.combine.value}, and there is one answer to each question"
        yield Problem("evaluation.combine", what, f"{fix}, or evaluation.combine=mean")
    elif not templates and not evaluation.choices:
        what = "is about the answers of evaluation.choices; generated ones are voted on in any case"
        yield Problem("evaluation.combine", what, "evaluation.choices=[yes,no], say, or evaluation.combine=mean")
