"""MAD-X's invertible adapters (Pfeiffer et al., 2020, arXiv:2005.00052): a map of the embeddings that can be undone.

The map is NICE's additive coupling (Dinh et al., 2015, arXiv:1410.8516): with the vector in halves a and b,
a' = a + F(b) and b' = b + G(a'), where F and G are small networks; its inverse needs no more than they do. Embedded
tokens go through it, and what goes into the output embedding goes through its inverse, so that one set of weights
adapts both ends of the model to a language.

Where: after the input embeddings; BERT-like models add positions and normalise within their embeddings, and it stands
after all of that. The inverse is at the language model's head, whether that is tied to the embeddings or not; models
for other tasks have none.

Departures:
- Encoder-decoders: the same map after the embeddings of both stacks, which are one table, and its inverse at the
  head. AdapterHub's library leaves the decoder's embeddings alone.
- Decoders: before positions are added, where these are learned (GPT-2). AdapterHub's library adds them first.
- It starts as nothing (`zero_start`), or, like the bottlenecks, with weights of deviation 0.01.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.peft_methods.adapter_layer import AdapterLayer
from tunecli.peft_methods.tuner import in_width


class HalfNetwork(nn.Module):
    """F or G: [..., half] -> [..., half]."""

    def __init__(
        self, half: int, inner: int, non_linearity: Callable[[Tensor], Tensor], device: torch.device | None
    ) -> None:
        super().__init__()
        self.down = nn.Linear(half, inner, device=device, dtype=torch.float32)
        self.up = nn.Linear(inner, half, device=device, dtype=torch.float32)
        self.non_linearity = non_linearity

    def forward(self, hidden: Tensor) -> Tensor:
        return self.up(self.non_linearity(self.down(hidden)))


class Coupling(nn.Module):
    """[..., width] -> [..., width], and back."""

    def __init__(
        self, width: int, inner: int, non_linearity: Callable[[Tensor], Tensor], device: torch.device | None
    ) -> None:
        super().__init__()
        self.first = HalfNetwork(width // 2, inner, non_linearity, device)
        self.second = HalfNetwork(width // 2, inner, non_linearity, device)

    def forward(self, hidden: Tensor) -> Tensor:
        a, b = hidden.chunk(2, dim=-1)
        a = a + self.first(b)
        return torch.cat([a, b + self.second(a)], dim=-1)

    def inverse(self, hidden: Tensor) -> Tensor:
        a, b = hidden.chunk(2, dim=-1)
        b = b - self.second(a)
        return torch.cat([a - self.first(b), b], dim=-1)


class SameCoupling(nn.Module):
    """That of another layer, which owns its weights: they are trained and saved once."""

    def __init__(self, owner: Coupling) -> None:
        super().__init__()
        self._owner = (owner,)  # in a tuple, so that it is no submodule

    def forward(self, hidden: Tensor) -> Tensor:
        return self._owner[0](hidden)

    def inverse(self, hidden: Tensor) -> Tensor:
        return self._owner[0].inverse(hidden)


class CoupledEmbedding(AdapterLayer):
    """Input embeddings, and the couplings that their output goes through."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self.base_output(*args, **kwargs)
        for coupling in self.on():
            output = in_fp32(coupling, output)
        return output


class CoupledHead(AdapterLayer):
    """An output embedding, and the couplings that are undone before it, the last one first."""

    def forward(self, hidden: Tensor) -> Tensor:
        for coupling in reversed(self.on()):
            hidden = in_fp32(coupling.inverse, hidden)
        return self.base_output(hidden)


def in_fp32(coupling: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Sums of a bf16 vector and small changes would lose the changes."""
    return coupling(hidden.float()).to(hidden.dtype)


def coupled_modules(model: PreTrainedModel) -> tuple[list[str], str | None]:
    """Paths of the input embeddings, and of the head that has to undo their coupling, if there is one.

    Raises:
        UserError: the width is odd, or that of the head is another.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    inputs = [paths[id(module)] for module in _input_embeddings(model)]
    head = model.get_output_embeddings()
    width = embedding_width(model)
    if width % 2:
        raise UserError(f"embeddings of width {width} have no halves", where="invertible", fix="invertible=false")
    if head is None:
        return inputs, None
    if in_width(head) != width:
        raise UserError(
            f"the embeddings are {width} wide and the head takes {in_width(head)}: nothing could be undone there",
            where="invertible",
            fix="invertible=false",
        )
    return inputs, paths[id(head)]


def _input_embeddings(model: PreTrainedModel) -> list[nn.Module]:
    if model.config.is_encoder_decoder:
        return [stack.get_input_embeddings() for stack in (model.get_encoder(), model.get_decoder())]
    block = getattr(model.base_model, "embeddings", None)
    return [block if isinstance(block, nn.Module) else model.get_input_embeddings()]


def embedding_width(model: PreTrainedModel) -> int:
    return model.get_input_embeddings().weight.shape[-1]
