"""What is done in every step besides the optimizer's work: by AdaLoRA, say, or by a pull towards the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor


class StepHook(Protocol):
    name: str
    """unlike any other of the run: its state is saved under it"""

    def penalty(self) -> Tensor:
        """Scalar that is added once to the mean loss of a step, however the step is cut up. Depends on parameters
        alone, so that every rank adds the same."""
        ...

    def after_step(self, step: int) -> None:
        """Called between an optimizer step and the clearing of its gradients, which are those of all ranks together
        and clipped; the learning rates are still those of the step.

        Args:
            step: number of the step, from 1.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that a resumed run needs besides the trained parameters."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


def hook_state(hooks: Sequence[StepHook]) -> dict[str, Tensor]:
    """`hook/key` -> tensor."""
    return {f"{hook.name}/{key}": value for hook in hooks for key, value in hook.state_dict().items()}


def restore_hooks(state: Mapping[str, Tensor], hooks: Sequence[StepHook]) -> None:
    """Give each hook what `hook_state` has of it."""
    for hook in hooks:
        own = f"{hook.name}/"
        hook.load_state_dict({key.removeprefix(own): value for key, value in state.items() if key.startswith(own)})
