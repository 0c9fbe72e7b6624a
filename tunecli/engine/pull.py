"""L2-SP (Li, Grandvalet and Davoine, 2018, https://arxiv.org/abs/1802.01483): while it is trained, a model is pulled
towards the weights that it started from, so that it forgets less of what it could before.

The paper adds alpha/2 * |w - start|^2 to the loss. Here the pull is taken apart from the gradient, as AdamW does with
its decay, so that it is as strong for every weight: behind each step of the optimizer a weight moves by
`learning rate * pull * (start - w)`. What a run adds anew, a head for labels, is spared, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class PullToStart:
    """A step hook. Holds a copy of the trained parameters as they were when it was made."""

    name = "pull_to_start"

    def __init__(self, optimizer: Optimizer, pull: float, spared: set[nn.Parameter]):
        """
        Args:
            optimizer: its learning rates are read after each step, before the schedule has moved them on.
            pull: share of the distance to the start, times the learning rate, that each step takes back.
            spared: parameters that are not pulled.
        """
        self.optimizer, self.pull = optimizer, pull
        self.starts = {
            parameter: parameter.detach().clone()
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter not in spared
        }

    def penalty(self) -> Tensor:
        return torch.zeros(())

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in self.starts:
                    parameter.lerp_(self.starts[parameter], group["lr"] * self.pull)

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: a resumed run makes the same start anew before it loads its checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...
