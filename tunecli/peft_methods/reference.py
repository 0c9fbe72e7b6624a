"""The reference of preference learning and PPO: the policy as it was before its first step.

Where everything that is trained started as nothing, the reference is the same model with that switched off, and
costs no memory; start adapters that are frozen stay on. Else (full fine-tuning, virtual tokens and prefixes, PiSSA
and OLoRA, which change the base, a trained entry with `init_from`) it is the same model with copies of the trained
tensors as they were, which take their places for as long as it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunecli.config.peft import BottleneckConfig, LoraConfig, PeftConfig
from tunecli.config.peft_facts import FACTS
from tunecli.peft_methods.composition import trained_off


@dataclass(frozen=True, slots=True)
class Reference:
    """Of a model that is trained; see `reference_of`."""

    lm: PreTrainedModel
    methods: Mapping[str, PeftConfig]
    copies: dict[str, Tensor] | None
    """name of each trained parameter -> its first value; None: what is trained is switched off instead"""

    @contextmanager
    def on(self) -> Iterator[None]:
        """The model is the reference meanwhile, without gradients and without dropout. A wrapper around it may be
        called (DDP, autocast), but no backward may run."""
        training = self.lm.training
        self.lm.eval()
        try:
            with torch.no_grad(), self._in_place():
                yield
        finally:
            self.lm.train(training)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        if self.copies is None:
            with trained_off(self.lm, self.methods):
                yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Swap the trained values and the first ones: storages change places, nothing is copied."""
        assert self.copies is not None
        parameters = dict(self.lm.named_parameters())
        for name, value in self.copies.items():
            parameter = parameters[name]
            self.copies[name], parameter.data = parameter.data, value
        torch.clear_autocast_cache()  # of the values that were there


def reference_of(lm: PreTrainedModel, methods: Mapping[str, PeftConfig]) -> Reference:
    """
    Args:
        lm: with `methods` injected, before its first step and before a checkpoint is restored; without methods it is
            trained in full.
    """
    if methods and all(method.freeze or starts_as_nothing(method) for method in methods.values()):
        return Reference(lm, methods, None)
    trained = {name: parameter for name, parameter in lm.named_parameters() if parameter.requires_grad}
    return Reference(lm, methods, {name: parameter.detach().clone() for name, parameter in trained.items()})


def starts_as_nothing(method: PeftConfig) -> bool:
    """Whether a model with it, untrained, is the one without it."""
    if method.init_from is not None or not FACTS[method.method].starts_as_base:
        return False
    if isinstance(method, LoraConfig):
        return not method.init_lora_weights.changes_base
    return not isinstance(method, BottleneckConfig) or method.zero_start
