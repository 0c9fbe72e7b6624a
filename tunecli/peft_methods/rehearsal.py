"""What the methods of a run have against its model, found without its weights.

The model is built on the meta device, where tensors have shapes and no values, and the methods are put into it as
they will be into the real one: what the name, kind or width of a layer rules out is said before anything is loaded.
Starts that read values (PiSSA, OLoRA, EVA) are looked at as far as shapes tell.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from tunecli.config.errors import ConfigError, Problem, UserError
from tunecli.config.peft import HEAD, without_head
from tunecli.config.run import RunConfig
from tunecli.config.stage import ProblemType
from tunecli.config.virtual import virtual_ids
from tunecli.models.load import Head, check_kind, config_on_disk, load_tokenizer, outline
from tunecli.peft_methods.composition import inject

MANY = 1000
"""Labels of a head whose labels only the rows tell: more than any rank, so that none is called too large for it."""


def misfits(config: RunConfig, starts: Mapping[str, Path]) -> list[Problem]:
    """What `inject` would refuse; nothing where the model's configuration is not on this disk.

    Args:
        starts: entry -> peft folder, for entries with `init_from`, which have the structure of what is in there.
    """
    shape = config_on_disk(config.model)
    if shape is None:
        return []
    # A head that starts from another has as many labels as that one, and how many there are here only the rows tell.
    methods = without_head(config.peft) if HEAD in starts else config.peft
    try:
        check_kind(config.model, config.stage.task)
        tokenizer = load_tokenizer(config.model) if virtual_ids(config.peft) else None
        try:
            lm = outline(config.model, shape, task=config.stage.task, head=expected_head(config, MANY))
        except RuntimeError:  # it computes with values while it is built, so it has to speak for itself
            return []
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")
            inject(lm, methods, seed=config.seed, tokenizer=tokenizer, starts=starts)
    except ConfigError as error:
        return error.problems
    except UserError as error:
        return [Problem(error.where, error.what, error.fix)]
    return []


def expected_head(config: RunConfig, unknown: int) -> Head | None:
    """The head that a stage puts on the model, for `unknown` labels where only the rows tell which."""
    if not config.stage.task.has_labels:
        return None
    labels = list(getattr(config.stage, "labels", ())) or [f"LABEL_{number}" for number in range(unknown)]
    problem = getattr(config.stage, "problem_type", ProblemType.single_label)
    return Head(labels=labels, problem_type=problem, seed=config.seed)
