"""Which layers of a plain model a method is put into, as full names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunecli.config.errors import UserError
from tunecli.models.quantization import HEADS

ALL_LINEAR = ["all-linear"]
TARGETS = "target_modules"


def linear_targets(model: PreTrainedModel, wanted: Sequence[str], *, conv1d: bool = True) -> list[str]:
    """The linear layers that `wanted` names by name or end of name; `[all-linear]` is every one but the heads.

    Args:
        conv1d: the method also takes GPT-2's linear layers, which store their weights transposed.

    Raises:
        UserError: one of the names is no linear layer of this model.
    """
    kinds = (nn.Linear, Conv1D) if conv1d else (nn.Linear,)
    there = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    if not conv1d and any(isinstance(module, Conv1D) for module in model.modules()):
        raise UserError(
            f"this method cannot adapt the linear layers of {type(model).__name__}",
            where="method",
            fix="lora, vera, ia3 or another one: tune ls peft",
        )
    heads = head_names(model)
    free = [name for name in there if not is_under(name, heads)]
    return free if list(wanted) == ALL_LINEAR else matching(model, there, wanted)


def matching(model: PreTrainedModel, there: Sequence[str], wanted: Sequence[str], key: str = TARGETS) -> list[str]:
    """Those of the names `there` that equal or end with one of `wanted`, which are the value of `key`.

    Raises:
        UserError: one of `wanted` is not there.
    """
    for end in wanted:
        if not any(_ends(name, end) for name in there):
            known = sorted({name.rpartition(".")[2] for name in there})
            among = f"of this model ({type(model).__name__})" if key == TARGETS else f"among {TARGETS}"
            raise UserError(
                f"{end!r} is no such layer {among}", where=key, fix=f"names from there: {', '.join(known)}"
            )
    return [name for name in there if any(_ends(name, end) for end in wanted)]


def head_names(model: PreTrainedModel) -> list[str]:
    """The output embeddings, and heads for tasks by their usual names."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head or name in HEADS]


def task_heads(model: PreTrainedModel) -> list[str]:
    """Heads for labels, by their usual names."""
    return [
        name
        for name, module in model.named_modules()
        if name in HEADS and module is not model.get_output_embeddings()
    ]


def is_under(name: str, parents: Sequence[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")
