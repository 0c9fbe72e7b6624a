"""How long a text a model can read at all: as many tokens as it has learnt a vector for the place of."""

from __future__ import annotations

from tunecli.config.model import ModelConfig
from tunecli.models.load import shape_of

COUNT_FROM_PADDING = {
    *("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "markuplm", "mpnet", "roberta"),
    *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}
"""Kinds of models whose first tokens stand behind the place of their padding token: so many places are not used."""


def num_positions(config: ModelConfig) -> int | None:
    """None: the places are computed (rotary, ALiBi, relative), so that a longer text breaks nothing."""
    text = shape_of(config).get_text_config()
    computed = getattr(text, "rope_parameters", None) or getattr(text, "alibi", False)
    if computed or getattr(text, "position_biased_input", True) is False:
        return None
    found = getattr(text, "max_position_embeddings", None)
    if not isinstance(found, int) or found <= 0:
        return None
    return found - (text.pad_token_id + 1 if text.model_type in COUNT_FROM_PADDING else 0)


def readable(length: int, config: ModelConfig) -> int:
    """`length`, or as much of it as the model has positions for."""
    most = num_positions(config)
    return length if most is None else min(length, most)
