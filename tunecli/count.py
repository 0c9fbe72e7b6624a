"""How many parameters each method trains of a recipe's model, counted on the meta device: no weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from tunecli.config.compose import compose_run
from tunecli.config.counted import counted
from tunecli.config.data_files import is_local
from tunecli.config.errors import ConfigError, Problem, UserError
from tunecli.config.model import ModelConfig, Quantization
from tunecli.config.peft import PEFT_SCHEMAS, PeftConfig
from tunecli.config.peft_checks import peft_problems
from tunecli.config.run import RunConfig, with_head
from tunecli.models.load import load_model, num_parameters, outline, resolve_path
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.rehearsal import expected_head

LABELS = 2
"""Of a head whose labels only the rows tell."""


def counts(recipe: str, overrides: list[str]) -> list[dict[str, Any]]:
    """Of full fine-tuning, of each method with the recipe's values (or its own where the recipe does not use it), and
    of the recipe's methods together if there are several. A head for labels is trained with each.

    Returns:
        For each `name`: parameters `trained`, those of the model with them (`total`) and the `share`, as a run says
        it; or `why` the run would be refused, and a `fix`.

    Raises:
        UserError: the recipe is wrong, or the model's configuration cannot be had.
    """
    config = compose_run(recipe, overrides).config
    shape = _shape(config.model)
    chosen = {method.method: method for method in config.peft.values()}
    sets: dict[str, dict[str, PeftConfig]] = {"full": {}}
    sets |= {name: {name: chosen.get(name, schema())} for name, schema in PEFT_SCHEMAS.items()}
    if len(config.peft) > 1:
        sets[" + ".join(config.peft)] = config.peft
    new = _new_weights(config)
    return [{"name": name} | _count(config, shape, new, methods) for name, methods in sets.items()]


def head_note(recipe: str, overrides: list[str]) -> str:
    """What the counts say of a head; empty: the stage has none."""
    head = expected_head(compose_run(recipe, overrides).config, LABELS)
    return "" if head is None else f"a head for {counted(len(head.labels), 'label')} is trained with each"


def _shape(model: ModelConfig) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(
            resolve_path(model.path), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except OSError as error:
        fix = "check the name and your network; a local folder works offline"
        raise UserError(f"cannot read the configuration of {model.path}", where="model.path", fix=fix) from error


def _new_weights(config: RunConfig) -> list[str]:
    """Names of what is trained with a head because no file of the model holds it, such as BERT's pooler; where the
    files are on this disk."""
    path = config.model.path
    if not config.stage.task.has_labels or not (path.startswith("builtin:") or is_local(path)):
        return []
    model = replace(config.model, quantization=Quantization.none, device_map=None)
    meta = torch.device("meta")
    head = expected_head(config, LABELS)
    return load_model(model, dtype=torch.float32, device=meta, task=config.stage.task, head=head).new_weights


def _count(
    config: RunConfig, shape: PretrainedConfig, new: list[str], methods: Mapping[str, PeftConfig]
) -> dict[str, Any]:
    methods = {name: replace(method, init_from=None, freeze=False) for name, method in methods.items()}
    config = with_head(replace(config, peft=methods))
    if problem := next(peft_problems(config), None):
        return _refused(problem)
    lm = outline(config.model, shape, task=config.stage.task, head=expected_head(config, LABELS))
    lm.new_weights = new
    try:
        with torch.device("meta"):
            inject(lm, config.peft, seed=0)
    except ConfigError as error:
        return _refused(error.problems[0])
    except UserError as error:
        return _refused(Problem(error.where, error.what, error.fix))
    trained, total = sum(p.numel() for p in lm.parameters() if p.requires_grad), num_parameters(lm)
    return {"trained": trained, "total": total, "share": trained / total, "why": "", "fix": ""}


def _refused(problem: Problem) -> dict[str, Any]:
    why = f"{problem.where}: {problem.what}"
    return {"trained": None, "total": None, "share": None, "why": why, "fix": problem.fix}
