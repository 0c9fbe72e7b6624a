"""Padding-free attention: the sequences of a micro-batch lie end to end in one row and never see each other.

One function, registered with transformers under `NAME`, serves training rows and cached generation in the same
model object. The boundaries travel as the forward argument `cu_seq_lens_q` (a name that transformers types), never
as state around the forward: a checkpointed layer runs again in backward, when any context manager has closed.

The idea is that of variable-length attention (Dao, 2023, FlashAttention-2). On a CPU it is one scaled-dot-product
call per sequence; on CUDA in half precision it is torch's variable-length flash kernel (not yet run on a GPU).

Sequences that begin alike may be a tree: the beginning is a sequence of its own, and each ending names it as its
parent, whose keys and values come before its own. On CUDA too that is one call per sequence (not yet run on a GPU).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import TransformersKwargs

NAME = "tunecli"

# What models pass to an attention function without changing what it computes. Anything else (soft caps, sinks,
# position biases, ...) is refused, so that the self-test at load falls back to padding.
HARMLESS = frozenset(
    {"dropout", "scaling", "is_causal", "position_ids", "use_cache", "cache_position", "layer_idx", "return_dict"}
    | {"adapter_of_row", "cu_seq_lens_k", "max_length_q", "max_length_k", "output_attentions", "output_hidden_states"}
)


FASTER_IN_FP32 = 256
"""Up to this length torch's CPU attention is faster in fp32 than in bf16 (twice, at 120 tokens), casts included."""


ADAPTER_OF_ROW = "adapter_of_row"
"""Forward argument: [sequences] int64, which of several adapters each sequence is for."""
PARENTS = "parents"
"""Forward argument: [sequences] int64, the sequence of the packed row that each continues; -1: none."""
TransformersKwargs.__optional_keys__ |= {ADAPTER_OF_ROW}  # `generate` refuses arguments that it does not know

PREFIXES = "tunecli_prefixes"
"""Attribute of an attention module that has keys and values to be put before those of the text."""


class Prefixes(Protocol):
    def key_values(self, num_rows: int, like: Tensor) -> Prefix | None: ...


class Prefix(NamedTuple):
    keys: Tensor
    """[rows, key heads, prefix, head_dim]"""
    values: Tensor
    """the same shape"""
    seen: Tensor | None = None
    """[rows, prefix] bool: which of them each row has; None: all"""


class UnsupportedAttention(ValueError):
    """The model's attention has an argument that packed rows cannot honour."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    parents: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over one packed row when `cu_seq_lens_q` is given, transformers' own otherwise.

    Args:
        query: [1, heads, tokens, head_dim]; `key` and `value` alike with their own number of heads.
        cu_seq_lens_q: [sequences + 1] int32, where each sequence starts, and the end of the last.
        parents: [sequences] int64, the sequence that each continues, which has no parent itself; -1: none.

    Returns:
        [1, tokens, heads, head_dim], and None for the weights.

    Raises:
        UnsupportedAttention: the model passes an argument that this function does not know, or sequences continue
            others and not every token sees those before it.
    """
    prefixes: Prefixes | None = module.__dict__.get(PREFIXES)
    if cu_seq_lens_q is None:
        prefix = prefixes.key_values(len(query), key) if prefixes is not None else None
        return _padded_attention(module, query, key, value, attention_mask, prefix, **kwargs)
    prefix = prefixes.key_values(len(cu_seq_lens_q) - 1, key) if prefixes is not None else None
    unknown = sorted(name for name, given in kwargs.items() if name not in HARMLESS and given not in (None, False))
    if unknown:
        raise UnsupportedAttention(f"packed rows do not support the attention arguments {unknown}")
    causal = _is_causal(module, kwargs)
    half = query.dtype in (torch.float16, torch.bfloat16)
    if parents is not None and not causal:
        raise UnsupportedAttention("only where each token sees those before it can sequences share a beginning")
    if query.is_cuda and half and not kwargs.get("dropout") and prefix is None and parents is None:
        return _varlen_cuda(query, key, value, cu_seq_lens_q, causal, sliding_window, kwargs.get("scaling")), None
    edges = cu_seq_lens_q.tolist()
    continued = [-1] * (len(edges) - 1) if parents is None else parents.tolist()
    pieces = []
    for row, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
        begins = [] if continued[row] < 0 else [slice(edges[continued[row]], edges[continued[row] + 1])]
        places = [*begins, slice(start, end)]
        mask = _window_mask(end - start, _length(places), sliding_window, causal, query.device)
        parts = [query[:, :, start:end], _at(key, places), _at(value, places)]
        own = None if prefix is None else _row(prefix, row)
        if query.device.type == "cpu" and _length(places) <= FASTER_IN_FP32:
            parts = [part.float() for part in parts]
            own = None if own is None else own._replace(keys=own.keys.float(), values=own.values.float())
        pieces.append(_padded_attention(module, *parts, mask, own, **kwargs)[0].to(query.dtype))
    return torch.cat(pieces, dim=1), None


def _at(part: Tensor, places: list[slice]) -> Tensor:
    """Keys or values of the tokens in `places`."""
    found = [part[:, :, place] for place in places]
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _length(places: list[slice]) -> int:
    return sum(place.stop - place.start for place in places)


def _row(prefix: Prefix, row: int) -> Prefix:
    return Prefix(*(None if part is None else part[row : row + 1] for part in prefix))


def _padded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefix: Prefix | None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' own attention, with a prefix that every query sees: it has no position, and no position bias."""
    if prefix is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, position_bias=position_bias, **kwargs
        )
    added, length = prefix.keys.shape[2], key.shape[2]
    if attention_mask is not None:
        attention_mask = attention_mask[..., :length]
    elif prefix.seen is not None or (_is_causal(module, kwargs) and query.shape[2] > 1):
        everything = torch.ones(query.shape[2], length, dtype=torch.bool, device=key.device)
        causal = _is_causal(module, kwargs) and query.shape[2] > 1
        attention_mask = (everything.tril(length - query.shape[2]) if causal else everything)[None, None]
    return sdpa_attention_forward(
        module,
        query,
        torch.cat([prefix.keys, key], dim=2),
        torch.cat([prefix.values, value], dim=2),
        None if attention_mask is None else _with_prefix(attention_mask, prefix),
        position_bias=None if position_bias is None else F.pad(position_bias[..., :length], (added, 0)),
        **(kwargs | {"is_causal": False}),
    )


def _with_prefix(mask: Tensor, prefix: Prefix) -> Tensor:
    """[rows, 1, queries, prefix + keys], of the mask's type: bool, or what is added to the scores."""
    shown = True if mask.dtype is torch.bool else 0.0
    if prefix.seen is None:
        return F.pad(mask, (prefix.keys.shape[2], 0), value=shown)
    seen = prefix.seen[:, None, None].expand(-1, 1, mask.shape[2], -1)
    if mask.dtype is not torch.bool:
        seen = torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, torch.finfo(mask.dtype).min)
    return torch.cat([seen, mask.expand(len(seen), -1, -1, -1)], dim=3)


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _window_mask(length: int, num_keys: int, window: int | None, causal: bool, device: torch.device) -> Tensor | None:
    """[1, 1, length, num_keys] bool, of queries at the last `length` of `num_keys` positions; None where it hides
    nothing that `is_causal` does not."""
    if length == num_keys and (window is None or length <= window):
        return None
    position = torch.arange(num_keys, device=device)
    distance = position[num_keys - length :, None] - position
    reach = num_keys if window is None else window
    seen = (distance >= 0) & (distance < reach) if causal else distance.abs() < reach
    return seen[None, None]


def _varlen_cuda(
    query: Tensor, key: Tensor, value: Tensor, edges: Tensor, causal: bool, window: int | None, scale: float | None
) -> Tensor:
    """[1, tokens, heads, head_dim] from torch's variable-length flash attention. Not yet run on a GPU."""
    from torch.nn.attention.varlen import varlen_attn

    longest = int((edges[1:] - edges[:-1]).max())
    reach = -1 if window is None else window - 1
    flat = [part[0].transpose(0, 1).contiguous() for part in (query, key, value)]
    out = varlen_attn(
        *flat,
        edges,
        edges,
        longest,
        longest,
        scale=scale,
        window_size=(reach, 0 if causal else reach),
        enable_gqa=flat[0].shape[1] != flat[1].shape[1],
    )
    return out[None]


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask)
