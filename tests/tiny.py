"""Random 2-layer models and random examples, for laws that hold whatever the weights are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import transformers as T

from tunecli.data.batching import Batching
from tunecli.data.encoded import Encoded

VOCABULARY = 96
SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4} | SPECIAL
WINDOWED = {"head_dim": 16, "num_key_value_heads": 2, "sliding_window": 4}

CONFIGS = {
    "llama": lambda: T.LlamaConfig(num_key_value_heads=2, **SHAPE),
    "qwen3": lambda: T.Qwen3Config(num_key_value_heads=2, head_dim=16, **SHAPE),
    "mistral": lambda: T.MistralConfig(num_key_value_heads=2, sliding_window=4, **SHAPE),
    "gemma3": lambda: T.Gemma3TextConfig(layer_types=["sliding_attention", "full_attention"], **WINDOWED, **SHAPE),
    "phi3": lambda: T.Phi3Config(num_key_value_heads=2, **SHAPE),
    "gpt_neox": lambda: T.GPTNeoXConfig(**SHAPE),
    "gpt2": lambda: T.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **SPECIAL
    ),
    "opt": lambda: T.OPTConfig(
        hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=64,
        max_position_embeddings=64, dropout=0, **SPECIAL,
    ),
}  # fmt: skip
"""Architectures that must be padding-free."""

PADDED_CONFIGS = {
    "gemma2": lambda: T.Gemma2Config(**WINDOWED, **SHAPE),  # soft caps in attention and in the logits
    "bloom": lambda: T.BloomConfig(hidden_size=64, n_layer=2, n_head=4, **SPECIAL),  # position bias
}
"""Architectures that must be found out and padded."""


def causal_lm(name: str = "llama", *, seed: int = 0) -> T.PreTrainedModel:
    torch.manual_seed(seed)
    config = (CONFIGS | PADDED_CONFIGS)[name]()
    config.initializer_range = 0.1  # the usual 0.02 gives nearly flat logits, which hide mistakes
    return T.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def scoring_lm(name: str = "llama", *, seed: int = 1) -> T.PreTrainedModel:
    """A classifier with one logit."""
    torch.manual_seed(seed)
    config = (CONFIGS | PADDED_CONFIGS)[name]()
    config.initializer_range, config.num_labels = 0.1, 1
    return T.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


class RandomExamples:
    """Sequences of random tokens whose second half is trained, or the target of the first."""

    def __init__(
        self,
        lengths: list[int],
        *,
        seed: int = 0,
        names: Sequence[str] = ("random",),
        virtual: Sequence[int] = (),
    ) -> None:
        """
        Args:
            lengths: without the virtual tokens.
            names: sources, which the examples come from in turn.
            virtual: tokens in front of each sequence.
        """
        generator = torch.Generator().manual_seed(seed)
        self.virtual = torch.tensor(virtual, dtype=torch.int64)
        self.lengths = np.array(lengths) + len(virtual)
        self.names = list(names)
        self.sources = np.arange(len(lengths)) % len(names)
        self.adapters = np.full(len(lengths), -1)
        self._ids = [torch.randint(4, VOCABULARY, (length,), generator=generator) for length in lengths]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Encoded:
        ids = self._ids[index]
        start = len(self.virtual) + max(len(ids) // 2, 1)
        ids = torch.cat([self.virtual, ids])
        return Encoded(ids, np.array([[start, len(ids)]]), parts=(start,))

    def origin(self, index: int) -> str:
        return f"random row {index + 1}"


def batching(*, rows: int | None = 8, tokens: int | None = None, packed: bool = True, process: int = 0, of: int = 1):
    return Batching(num_processes=of, process_index=process, rows=rows, tokens=tokens, packed=packed, pad_token_id=0)
