"""AdaLoRA: B E A beside each linear layer, of which the least important singular values E are cut off on the way
(Zhang et al., 2023, arXiv:2303.10512). The layers are peft's; ranks are given out as peft does it, here with a state
that can be saved.

From `tinit` on, the total rank falls as a cubic function of the step to `target_r` per layer, and stays for the last
`tfinal` steps. Between, what was cut off may grow again.

Departs from peft: `tinit` and `tfinal` may be shares of all steps, and a checkpoint holds the pruned ranks that E
itself shows (rows of E that are zero do nothing), so that it is right at every step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import peft
import torch
from peft.tuners.adalora import AdaLoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from tunecli.config.peft import AdaLoraConfig
from tunecli.config.train import in_steps
from tunecli.peft_methods.targets import linear_targets

MATRICES = ("lora_A", "lora_B", "lora_E")


def peft_config(config: AdaLoraConfig, model: PreTrainedModel) -> peft.AdaLoraConfig:
    """E starts at zero, so the outputs do not change. How many steps there will be is told by `RankAllocator`.

    Raises:
        UserError: a target is not in this model.
    """
    return peft.AdaLoraConfig(
        init_r=config.init_r,
        target_r=config.target_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        tinit=0,
        tfinal=0,
        total_step=1,
        deltaT=config.deltaT,
        beta1=config.beta1,
        beta2=config.beta2,
        orth_reg_weight=config.orth_reg_weight,
        target_modules=linear_targets(model, config.target_modules),
    )


class RankAllocator:
    """Gives ranks to the layers by how much the loss hangs on each singular value and its two vectors."""

    def __init__(self, model: PreTrainedModel, adapter: str, config: AdaLoraConfig, num_steps: int) -> None:
        self.name = adapter
        self._config = config
        self._layers = {
            path.replace(".base_layer", ""): module
            for path, module in model.named_modules()
            if isinstance(module, AdaLoraLayer) and adapter in module.lora_E
        }
        self._begin = in_steps(config.tinit, num_steps)
        self._end = num_steps - in_steps(config.tfinal, num_steps)
        self._sensitivity: dict[str, Tensor] = {}
        self._deviation: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        """layer -> [init_r, 1] bool: what the final allocation kept; empty before it"""
        saved = model.peft_config[adapter]
        saved.total_step, saved.tinit, saved.tfinal = num_steps, self._begin, num_steps - self._end

    def penalty(self) -> Tensor:
        """How far A and B are from orthogonal: the mean over both of all layers of |A A' - 1|, weighted."""
        norms = []
        for layer in self._layers.values():
            a, b = layer.lora_A[self.name], layer.lora_B[self.name]
            norms += [_from_identity(a @ a.T), _from_identity(b.T @ b)]
        return self._config.orth_reg_weight * torch.stack(norms).mean()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if step < self._end or not (self._kept or self._sensitivity):
            self._weigh()
        if step >= self._end:
            if step == self._end or not self._kept:
                self._kept = self._best(self.budget(self._end))
                self._sensitivity, self._deviation = {}, {}
            self._cut(self._kept)
        elif step > self._begin and step % self._config.deltaT == 0:
            self._cut(self._best(self.budget(step)))

    def budget(self, step: int) -> int:
        """Total rank of all layers after `step`, which is one of those in which it falls."""
        first, last = (rank * len(self._layers) for rank in (self._config.init_r, self._config.target_r))
        left = 1 - (step - self._begin) / (self._end - self._begin)
        return int((first - last) * left**3 + last)

    def _weigh(self) -> None:
        """Note how much the loss would change without each weight, and how much that changes from step to step."""
        for path, layer in self._layers.items():
            for matrix in MATRICES:
                parameter, key = getattr(layer, matrix)[self.name], f"{path}.{matrix}"
                assert parameter.grad is not None
                now = (parameter * parameter.grad).abs()
                mean = _average(self._sensitivity.get(key), now, self._config.beta1)
                self._sensitivity[key] = mean
                self._deviation[key] = _average(self._deviation.get(key), (now - mean).abs(), self._config.beta2)

    def _best(self, budget: int) -> dict[str, Tensor]:
        """layer -> [init_r, 1] bool: the `budget` most important singular values of all layers."""
        scores = {path: self._scores(path) for path in self._layers}
        everything = torch.cat(list(scores.values()))
        threshold = everything.kthvalue(len(everything) - budget).values
        return {path: (score > threshold)[:, None] for path, score in scores.items()}

    def _scores(self, path: str) -> Tensor:
        """[init_r]: of each singular value, with the mean of each of its two vectors."""
        score = {matrix: self._sensitivity[f"{path}.{matrix}"] * self._deviation[f"{path}.{matrix}"]
                 for matrix in MATRICES}  # fmt: skip
        return score["lora_E"][:, 0] + (score["lora_A"].mean(dim=1) + score["lora_B"].mean(dim=0))

    def _cut(self, kept: Mapping[str, Tensor]) -> None:
        for path, layer in self._layers.items():
            layer.lora_E[self.name].masked_fill_(~kept[path], 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        groups = {"sensitivity": self._sensitivity, "deviation": self._deviation, "kept": self._kept}
        return {f"{group}/{key}": value for group, values in groups.items() for key, value in values.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        device = next(iter(self._layers.values())).lora_E[self.name].device
        groups: dict[str, dict[str, Tensor]] = {"sensitivity": {}, "deviation": {}, "kept": {}}
        for name, value in state.items():
            group, _, key = name.partition("/")
            groups[group][key] = value.to(device)
        self._sensitivity, self._deviation, self._kept = groups.values()


def _from_identity(square: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(square - torch.eye(len(square), device=square.device, dtype=square.dtype))


def _average(mean: Tensor | None, value: Tensor, beta: float) -> Tensor:
    """Exponential moving average, which begins at zero."""
    return (1 - beta) * value if mean is None else beta * mean + (1 - beta) * value


def saved_pruned(
    config: peft.AdaLoraConfig, state: Mapping[str, Tensor]
) -> tuple[peft.AdaLoraConfig, dict[str, Tensor]]:
    """As peft saves it: without the rows that E has set to zero, which `rank_pattern` lists."""
    state, pattern = dict(state), {}
    for key in [key for key in state if key.endswith(".lora_E")]:
        kept = (state[key] != 0)[:, 0]
        pattern[key] = kept.tolist()
        for name, tensor in _rows(state, key).items():
            state[name] = tensor[:, kept] if name.endswith("lora_B") else tensor[kept]
    config = copy.copy(config)
    config.rank_pattern = pattern
    return config, state


def unpruned(state: Mapping[str, Tensor], pattern: Mapping[str, list[bool]]) -> dict[str, Tensor]:
    """What `saved_pruned` or peft wrote, with zeros where rows were cut off: nothing has to change its size."""
    state = dict(state)
    for key, rows in pattern.items():
        kept = torch.tensor(rows, device="cpu")
        for name, tensor in _rows(state, key).items():
            across = name.endswith("lora_B")
            full = tensor.new_zeros((len(tensor), len(kept)) if across else (len(kept), tensor.shape[1]))
            full[(slice(None), kept) if across else kept] = tensor
            state[name] = full
    return state


def _rows(state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """The three matrices of the layer whose E is at `key`."""
    layer = key.removesuffix("lora_E")
    return {layer + matrix: state[layer + matrix] for matrix in MATRICES}
