"""How many parameters each method trains of a recipe's model, counted on the meta device: no weight is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunecli.config.compose import compose_run
from tunecli.config.errors import UserError
from tunecli.config.model import ModelConfig
from tunecli.config.peft import PEFT_SCHEMAS
from tunecli.models.load import num_parameters, resolve_path
from tunecli.peft_methods.composition import inject


def counts(recipe: str, overrides: list[str]) -> list[dict[str, Any]]:
    """Of each method with the recipe's values, or its own where the recipe does not use it: name, trained, share of
    the base's parameters; of one that does not fit this model, `trained` says why.

    Raises:
        UserError: the recipe is wrong, or the model's configuration cannot be had.
    """
    config = compose_run(recipe, overrides).config
    chosen = {method.method: method for method in config.peft.values()}
    return [_count(config.model, name, chosen.get(name, schema())) for name, schema in PEFT_SCHEMAS.items()]


def _count(model: ModelConfig, name: str, method: Any) -> dict[str, Any]:
    try:
        shape = AutoConfig.from_pretrained(resolve_path(model.path), revision=model.revision)
    except OSError as error:
        fix = "check the name and your network; a local folder works offline"
        raise UserError(f"cannot read the configuration of {model.path}", where="model.path", fix=fix) from error
    method = replace(method, init_from=None, freeze=False)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(shape)
        total = num_parameters(lm)
        try:
            inject(lm, {name: method}, seed=0)
        except UserError as error:
            return {"name": name, "trained": error.what, "share": ""}
    trained = sum(parameter.numel() for parameter in lm.parameters() if parameter.requires_grad)
    return {"name": name, "trained": trained, "share": trained / total}
