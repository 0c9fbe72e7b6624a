"""LoRA's A and B that start from the base's weights or from data instead of at random and zero.

PiSSA (Meng et al., 2024, arXiv:2404.02948): the largest r singular values of the weight, half of each in A and B.
OLoRA (Büyükakyüz, 2024, arXiv:2406.01775): the first r columns of Q and rows of R of the weight's QR decomposition.
EVA (Paischer et al., 2024, arXiv:2410.07170): A is the main directions of the layer's inputs; B is zero.

With the first two the weight loses what A and B begin with, so that outputs do not change. What they begin with is
kept, for saving a plain LoRA of rank 2 r that belongs to the untouched base: B' A' = B A - B0 A0.

Departures:
- Factors are computed and kept in fp32 whatever the base is; what is left in the base is rounded to its dtype. peft
  rounds A and B too, to a bf16 base's dtype, which moves the outputs at the start.
- OLoRA also on GPT-2's transposed layers, where peft fails.
- EVA never moves rank from layer to layer (rho = 1), and takes at most `MOST_BATCHES` batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunecli.config.errors import UserError
from tunecli.config.peft import LoraInit
from tunecli.engine.batch import Batch
from tunecli.models.policy import model_inputs
from tunecli.peft_methods.tuner import device_of

CONVERGED = 0.99
"""Cosine between a direction before and after a batch."""
MOST_BATCHES = 100

Factors = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]
"""weight [out, in], rank and scale -> B [out, rank] and A [rank, in]; scale B A is taken out of the weight"""
Starts = dict[str, tuple[Tensor, Tensor]]
"""path of a layer, without wrappers -> its first A [rank, in] and B [out, rank]"""


def start(
    model: PreTrainedModel, adapter: str, init: LoraInit, batches: Callable[[], Iterator[Batch]] | None
) -> Starts:
    """Give LoRA layers that were just injected the start `init`. Returns what was taken out of the base's weights.

    Raises:
        UserError: the rank is too large for a layer, a weight is shared, or EVA gets too few tokens.
    """
    layers = dict(_layers(model, adapter))
    if init not in (*FACTORS, LoraInit.eva):
        return {}
    for path, layer in layers.items():
        _check_rank(path, layer, adapter)
    if init is not LoraInit.eva:
        _check_shared(model, init, layers)
    if any(layer.weight.is_meta for layer in layers.values()):
        return {}  # only shapes are looked at
    if init is LoraInit.eva:
        if batches is None:
            raise ValueError("EVA needs batches to look at")
        _look(model, layers, adapter, batches())
        return {}
    return {path: _take_out(layer, adapter, FACTORS[init]) for path, layer in layers.items()}


def _layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, LoraLayer]]:
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            yield path.replace(".base_layer", ""), module


def _check_rank(path: str, layer: LoraLayer, adapter: str) -> None:
    most = min(layer.in_features, layer.out_features)
    if layer.r[adapter] > most:
        what = f"is {layer.r[adapter]} for {path}, which has no more than {most} directions to start from"
        raise UserError(what, where="r", fix=f"r={most} or less, or init_lora_weights=default")


def _check_shared(model: PreTrainedModel, init: LoraInit, layers: dict[str, LoraLayer]) -> None:
    embedding = model.get_input_embeddings().weight
    for path, layer in layers.items():
        if layer.get_base_layer().weight is embedding:
            what = f"{init.value} would change the input embeddings, which share the weight of {path}"
            raise UserError(what, where="target_modules", fix=f"leave {path} out, or init_lora_weights=default")


@torch.no_grad()
def _take_out(layer: LoraLayer, adapter: str, factors: Factors) -> tuple[Tensor, Tensor]:
    """Move a part of the base's weight into A and B. Returns copies of A and B."""
    base, scale = layer.get_base_layer(), layer.scaling[adapter]
    transposed = isinstance(base, Conv1D)
    weight = base.weight.T.float() if transposed else base.weight.float()
    b, a = factors(weight, layer.r[adapter], scale)
    layer.lora_A[adapter].weight.copy_(a)
    layer.lora_B[adapter].weight.copy_(b)
    rest = weight - scale * b @ a
    base.weight.data = (rest.T if transposed else rest).to(base.weight.dtype).contiguous()
    return a.cpu(), b.cpu()


def _pissa(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return _halves(left[:, :rank], values[:rank] / scale, right[:rank])


def _pissa_niter_16(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    left, values, right = torch.svd_lowrank(weight, rank, niter=16)
    return _halves(left, values / scale, right.T)


def _halves(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    roots = values.sqrt()
    return left * roots, roots[:, None] * right


def _olora(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """The paper takes scale Q R out of the weight, not Q R."""
    q, r = torch.linalg.qr(weight)
    return q[:, :rank], r[:rank]


FACTORS: dict[LoraInit, Factors] = {
    LoraInit.pissa: _pissa,
    LoraInit.pissa_niter_16: _pissa_niter_16,
    LoraInit.olora: _olora,
}


class _Inputs:
    """The main directions of what some layers, which all read the same, get as their input."""

    def __init__(self) -> None:
        self.rank = 0
        self.layers: list[str] = []
        self.converged = False
        self._pca: IncrementalPCA | None = None
        self._waiting: list[Tensor] = []

    @property
    def directions(self) -> Tensor | None:
        """[rank, width], the strongest first; None: there were too few tokens."""
        return self._pca.components_ if self._pca is not None else None

    def add(self, rows: Tensor) -> None:
        """`rows`: [tokens, width]. Batches of fewer tokens than the rank wait for more."""
        self._waiting.append(rows.float())
        tokens = sum(map(len, self._waiting))
        if tokens < self.rank:
            return
        if self._pca is None:  # the faster way, as peft's, needs twice the rank
            quick = 2 * self.rank <= min(tokens, rows.shape[1])
            self._pca = IncrementalPCA(n_components=self.rank, lowrank=quick, lowrank_seed=42)
            self._pca.partial_fit(torch.cat(self._waiting))
        else:
            before = self._pca.components_.clone()
            self._pca.partial_fit(torch.cat(self._waiting))
            cosines = torch.cosine_similarity(before, self._pca.components_)
            self.converged = bool((cosines >= CONVERGED).all())
        self._waiting.clear()


@torch.no_grad()
def _look(model: PreTrainedModel, layers: dict[str, LoraLayer], adapter: str, batches: Iterator[Batch]) -> None:
    """Put into A the main directions of each layer's inputs, at the positions that predict a trained token."""
    training = model.training
    model.eval()
    device = device_of(model.get_input_embeddings())
    taken = [batch.to(device) for batch in islice(batches, 1)]
    groups = _same_inputs(model, layers, adapter, taken[0])
    for batch in chain(taken, (batch.to(device) for batch in islice(batches, MOST_BATCHES - 1))):
        open_groups = {group.layers[0]: group for group in groups if not group.converged}
        if not open_groups:
            break
        _run(model, {path: layers[path] for path in open_groups}, batch, _adder(open_groups, batch))
    model.train(training)
    found = {path: group.directions for group in groups for path in group.layers}
    for path, layer in layers.items():
        _aim(path, layer, adapter, found.get(path))


def _aim(path: str, layer: LoraLayer, adapter: str, directions: Tensor | None) -> None:
    rank = layer.r[adapter]
    if directions is None:
        what = f"eva looked at {MOST_BATCHES} micro-batches, in which {path} got fewer than {rank} trained tokens"
        raise UserError(what, where="init_lora_weights", fix="init_lora_weights=default, or a smaller r")
    layer.lora_A[adapter].weight.copy_(directions[:rank])


def _same_inputs(model: PreTrainedModel, layers: dict[str, LoraLayer], adapter: str, batch: Batch) -> list[_Inputs]:
    """Layers by their input: neighbours such as queries, keys and values are called with the same tensor."""
    groups: list[_Inputs] = []
    latest: list[Tensor] = []

    def look(path: str, inputs: Tensor) -> None:
        if any(path in group.layers for group in groups):
            return
        if not latest or latest[0] is not inputs:
            latest[:] = [inputs]
            groups.append(_Inputs())
        groups[-1].layers.append(path)
        groups[-1].rank = max(groups[-1].rank, layers[path].r[adapter])

    _run(model, layers, batch, look)
    return groups


def _adder(groups: dict[str, _Inputs], batch: Batch) -> Callable[[str, Tensor], None]:
    return lambda path, inputs: groups[path].add(inputs.flatten(0, -2)[batch.kept])


def _run(
    model: PreTrainedModel, layers: dict[str, LoraLayer], batch: Batch, look: Callable[[str, Tensor], None]
) -> None:
    """A forward, in which `look` is shown the path and the input [..., width] of each of `layers`."""
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, path=path: look(path, inputs[0]))
        for path, layer in layers.items()
    ]
    try:
        model.get_decoder()(**model_inputs(batch))
    finally:
        for handle in handles:
            handle.remove()
