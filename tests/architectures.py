"""Tiny random models of every architecture and task that a PEFT method must work on, with inputs for them.

fp32, no dropout, weights of deviation 0.1 (T5 has a scheme of its own): the usual 0.02 gives nearly flat logits,
which hide mistakes.
"""

from __future__ import annotations

import torch
import transformers as T
from tiny import CONFIGS, SHAPE, SPECIAL, VOCABULARY
from torch import Tensor

LABELS = 3
LENGTHS = (9, 6)
"""Real tokens of the rows that `inputs_of` gives; the second is padded on the right."""

ENCODER_SHAPE = SHAPE | {
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,
}

ENCODERS_AND_PAIRS = {
    "t5": lambda: T.T5Config(
        d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, dropout_rate=0.0, decoder_start_token_id=0, **SPECIAL
    ),
    "bart": lambda: T.BartConfig(
        d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=96, decoder_ffn_dim=96, max_position_embeddings=64, dropout=0.0, init_std=0.1,
        decoder_start_token_id=2, forced_eos_token_id=None, **SPECIAL,
    ),
    "bert": lambda: T.BertConfig(**ENCODER_SHAPE),
    "roberta": lambda: T.RobertaConfig(**ENCODER_SHAPE),
}  # fmt: skip

MODEL_CLASSES = {
    "causal_lm": T.AutoModelForCausalLM,
    "seq2seq": T.AutoModelForSeq2SeqLM,
    "classification": T.AutoModelForSequenceClassification,
    "tagging": T.AutoModelForTokenClassification,
}
"""task -> transformers' class"""

CAUSAL_LMS = [("llama", "causal_lm"), ("qwen3", "causal_lm"), ("gpt2", "causal_lm")]
SEQ2SEQ = [("t5", "seq2seq"), ("bart", "seq2seq")]
ENCODERS = [
    ("bert", "classification"),
    ("roberta", "classification"),
    ("bert", "tagging"),
    ("roberta", "tagging"),
]
DECODER_CLASSIFIERS = [("llama", "classification")]

GENERATING = CAUSAL_LMS + SEQ2SEQ
EVERY = GENERATING + ENCODERS + DECODER_CLASSIFIERS
"""Pairs (architecture, task)."""


def model_of(architecture: str, task: str, seed: int = 0) -> T.PreTrainedModel:
    """Equal for equal seeds."""
    torch.manual_seed(seed)
    config = (CONFIGS | ENCODERS_AND_PAIRS)[architecture]()
    config.initializer_range = 0.1
    if task in ("classification", "tagging"):
        config.num_labels = LABELS
    return MODEL_CLASSES[task].from_config(config, dtype=torch.float32)


def inputs_of(architecture: str, task: str) -> dict[str, Tensor]:
    """Two rows with labels, the shorter one padded on the right; the same ones for every architecture."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.stack([torch.arange(max(LENGTHS)) < length for length in LENGTHS])
    ids = torch.randint(4, VOCABULARY, mask.shape, generator=generator).where(mask, SPECIAL["pad_token_id"])
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": _labels(task, ids, mask, generator)}


def _labels(task: str, ids: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    if task == "classification":
        return torch.tensor([2, 1])
    if task == "tagging":
        return torch.randint(LABELS, ids.shape, generator=generator).where(mask, -100)
    if task == "seq2seq":
        return torch.randint(4, VOCABULARY, (len(ids), 5), generator=generator)
    return ids.where(mask, -100)


def with_virtual_tokens(inputs: dict[str, Tensor], ids: list[int]) -> dict[str, Tensor]:
    """The same with the tokens `ids` behind the first one, as classifiers look for [CLS] there."""

    def inserted(values: Tensor, new: Tensor) -> Tensor:
        return torch.cat([values[:, :1], new.expand(len(values), -1), values[:, 1:]], dim=1)

    rows = {
        "input_ids": inserted(inputs["input_ids"], torch.tensor(ids)),
        "attention_mask": inserted(inputs["attention_mask"], torch.ones(len(ids), dtype=torch.int64)),
    }
    labels = inputs["labels"]
    if labels.shape == inputs["input_ids"].shape:
        rows["labels"] = inserted(labels, torch.full((len(ids),), -100))
    return inputs | rows


def logits_of(model: T.PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """In eval mode, without gradients."""
    with torch.no_grad():
        return model.eval()(**inputs).logits
