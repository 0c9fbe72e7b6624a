"""Tokenizers for the tests: a small byte-level BPE with the special tokens and chat template of a model family."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parents[1] / "fixtures" / "chat_templates"

CHATML = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "marks": ["<|im_start|>", "<think>", "</think>"]}
LLAMA = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "marks": ["<|start_header_id|>", "<|end_header_id|>"],
}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "marks": ["<start_of_turn>", "<end_of_turn>"]}
FAMILIES = {
    "smollm2": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "marks": []},
    "llama3": LLAMA,
    "llama3_1": LLAMA,
    "llama3_2": LLAMA,
    "qwen2_5": CHATML,
    "qwen3": CHATML,
    "nemotron_3_nano": CHATML,
    "gemma": GEMMA,
    "gemma3": GEMMA,
    "phi3": {"eos_token": "<|endoftext|>", "marks": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]},
    "deepseek_r1_distill": {
        "bos_token": "<｜begin▁of▁sentence｜>",
        "eos_token": "<｜end▁of▁sentence｜>",
        "marks": ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"],
    },
    "gptoss": {
        "eos_token": "<|return|>",
        "marks": ["<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|call|>"],
    },
}
CORPUS = [
    "The capital of France is Paris. What is the capital of Japan? Answer in one word: hello, hello world!",
    "system user assistant model Question: Answer: the answer is forty-two; a list of words, and more words.",
    "中国的首都是北京。你好，世界！ 😀 👋 naïve café",
]


@lru_cache
def bpe(trim_offsets: bool = False) -> str:
    """A trained byte-level BPE, as JSON. `trim_offsets` is what GPT-2's and Llama 3's tokenizers have on."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


@pytest.fixture
def template_text() -> Callable[[str], str]:
    return lambda name: (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture
def family(template_text: Callable[[str], str]) -> Callable[..., PreTrainedTokenizerFast]:
    """`family("qwen3")`: a tokenizer of that family; `template="qwen3_training"` gives it another template.

    `rstrip`: its marks swallow the white space after them, as Phi-3's do.
    """

    def build(
        name: str, template: str | None = None, trim_offsets: bool = False, rstrip: bool = False
    ) -> PreTrainedTokenizerFast:
        tokens = dict(FAMILIES[name])
        marks = tokens.pop("marks")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bpe(trim_offsets)), **tokens)
        added = [AddedToken(mark, special=True, rstrip=rstrip) for mark in marks]
        tokenizer.add_special_tokens({"additional_special_tokens": added})
        tokenizer.chat_template = template_text(template or name)
        return tokenizer

    return build


@pytest.fixture
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """No chat template; begins texts with <s>; pads with its end-of-text token."""
    backend = Tokenizer.from_str(bpe())
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
