"""Whether what a run has saved is the model that it trained: loaded again from disk, its scores are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from tunecli.assembly.data import Data
from tunecli.assembly.readers import batching_of
from tunecli.config.counted import counted
from tunecli.config.errors import UserError
from tunecli.config.run import RunConfig
from tunecli.config.train import Precision
from tunecli.data.batching import collate
from tunecli.models.classifier import padded_inputs
from tunecli.models.self_test import Wrapped
from tunecli.peft_methods.loading import load

EXAMPLES = 4
ROUNDING = {Precision.fp32: 1e-3}
"""Difference of scores, as a share of 1 + the largest of them, that summing in another order can make."""
COARSE = 0.05
"""The same in 16 bits."""


@torch.no_grad()
def compare(
    config: RunConfig, data: Data, policy: Wrapped, accelerator: Accelerator, run_dir: Path, precision: Precision
) -> str:
    """What was found, in a line. On one process; nobody else has to take part.

    Args:
        precision: that training computed in.

    Raises:
        UserError: the scores differ by more than rounding.
    """
    examples = data.validation or data.train
    if examples is None or config.data.adapter_column is not None:
        why = "rows stream, and none are held out" if examples is None else "its adapters are alternatives"
        return f"the saved model was not compared with the one in memory: {why}"
    batching = batching_of(config, data, policy, num_processes=1, process_index=0)
    indices = range(min(EXAMPLES, len(examples)))
    batch = collate(examples, indices, batching).to(accelerator.device)
    padded = collate(examples, indices, replace(batching, packed=False)).to(accelerator.device)
    training = policy.training
    policy.eval()
    with accelerator.autocast():
        here = policy(batch)[:, 0]
        again = _scores(run_dir, padded_inputs(padded))
    policy.train(training)
    difference = (here - again).abs().max().item()
    texts, most = counted(len(here), "text"), 1 + here.abs().max().item()
    if not difference <= ROUNDING.get(precision, COARSE) * most:
        raise UserError(
            f"gives other scores when it is loaded again: they differ by up to {difference:.2g} on {texts}, "
            f"where scores go up to {most - 1:.2g}",
            where=str(run_dir),
            fix="do not use this result; the checkpoints are as they were; please report it",
        )
    return f"loaded again from disk: the scores of {texts} differ by {difference:.1e} at most"


def _scores(run_dir: Path, inputs: dict[str, Tensor]) -> Tensor:
    """[texts] as the saved model gives them in plain transformers' own forward."""
    model, _ = load(run_dir)
    return model(**inputs).logits[:, 0].float()
