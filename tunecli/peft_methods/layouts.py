"""Where attention and feed-forward layers end in the architectures we know.

Paths are those inside one layer of the model: `model.layers.3.mlp.down_proj` is `mlp.down_proj` of layer 3. The end
of a sub-layer is its last projection, before any normalisation and before the residual sum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Layout:
    attention: tuple[str, ...]
    """modules that end attention, cross-attention too"""
    feed_forward: tuple[str, ...]
    """modules that end a feed-forward layer"""
    whole_feed_forward: tuple[str, ...]
    """feed-forward layers as one module each; where there is none, the modules that end them"""
    feed_forward_input: str | None = None
    """module whose input is the feed-forward layer's, where that is not one module"""
    norm_after: str | None = None
    """LayerNorm of the sum of the feed-forward layer and its input (post-norm); None: what it reads is normalised,
    the sum is not"""
    own_attention_core: tuple[str, ...] = ()
    """modules that compute attention from queries, keys and values, where they do not hold those that end it"""

    @property
    def attention_core(self) -> tuple[str, ...]:
        return self.own_attention_core or tuple(path.rpartition(".")[0] for path in self.attention)


LLAMA = Layout(attention=("self_attn.o_proj",), feed_forward=("mlp.down_proj",), whole_feed_forward=("mlp",))
GPT2 = Layout(attention=("attn.c_proj",), feed_forward=("mlp.c_proj",), whole_feed_forward=("mlp",))
GPT_NEOX = Layout(attention=("attention.dense",), feed_forward=("mlp.dense_4h_to_h",), whole_feed_forward=("mlp",))
T5 = Layout(
    attention=("layer.0.SelfAttention.o", "layer.1.EncDecAttention.o"),
    feed_forward=("layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo"),  # encoder, decoder
    whole_feed_forward=("layer.1.DenseReluDense", "layer.2.DenseReluDense"),
)
BART = Layout(
    attention=("self_attn.out_proj", "encoder_attn.out_proj"),
    feed_forward=("fc2",),
    whole_feed_forward=("fc2",),
    feed_forward_input="fc1",
    norm_after="final_layer_norm",
)
MBART = replace(BART, norm_after=None)
BERT = Layout(
    attention=("attention.output.dense",),
    feed_forward=("output.dense",),
    whole_feed_forward=("output.dense",),
    feed_forward_input="intermediate.dense",
    own_attention_core=("attention.self",),
    norm_after="output.LayerNorm",
)

LAYOUTS: dict[str, Layout] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "phi3": LLAMA,
    "gemma": LLAMA,
    "gemma2": LLAMA,
    "gemma3": LLAMA,
    "gemma3_text": LLAMA,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "opt": BART,
    "t5": T5,
    "mt5": T5,
    "bart": BART,
    "mbart": MBART,
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
}
"""transformers' `model_type` -> layout"""


def norm_after(model: PreTrainedModel) -> str | None:
    """`Layout.norm_after` of this very model."""
    if getattr(model.config, "do_layer_norm_before", False):
        return None  # OPT, all sizes but 350m
    layout = LAYOUTS.get(model.config.model_type)
    return layout.norm_after if layout else None


class Place(NamedTuple):
    layer: str
    """path of the layer: `model.layers.3`"""
    number: int
    """3"""
    inside: str
    """path inside the layer: `mlp.down_proj`"""


FIRST_NUMBER = re.compile(r"(?P<layer>(?:.+?\.)??(?P<number>\d+))\.(?P<inside>.+)")


def place_of(path: str) -> Place | None:
    """Where in the stack of layers a module is; None: outside of it, as embeddings and heads are."""
    match = FIRST_NUMBER.fullmatch(path)
    return Place(match["layer"], int(match["number"]), match["inside"]) if match else None
