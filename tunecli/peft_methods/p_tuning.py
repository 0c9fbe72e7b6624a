"""P-tuning: trained embeddings at any place of a template, which a small network makes while they are trained (Liu et
al., 2021, "GPT Understands, Too", arXiv:2103.10385).

Departures: only the rows that the network makes are kept in the result, as in the paper; a template of our own
grammar (`tunecli.config.template`) says where they stand. `tokens: unused` trains tokens of the vocabulary that stand
for nothing, as the paper's code does with BERT: their input embeddings only, not the rows of a tied output layer.
"""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunecli.config.peft import PTuningConfig
from tunecli.peft_methods.virtual_tokens import VirtualTokensPeftConfig, embedding_path


def peft_config(
    config: PTuningConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    token_ids: list[int],
) -> VirtualTokensPeftConfig:
    return VirtualTokensPeftConfig(
        target_modules=[embedding_path(model)],
        num_virtual_tokens=len(token_ids),
        token_ids=token_ids,
        template=config.template,
        encoder=config.encoder.value,
        encoder_hidden_size=config.encoder_hidden_size,
    )
