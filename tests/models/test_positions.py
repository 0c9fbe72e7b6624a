"""How long a text a model can read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import model_of
from tiny import PADDED_CONFIGS

from tunecli.config.model import ModelConfig
from tunecli.models.positions import num_positions

WITH_TABLES = [
    *(("gpt2", "causal_lm"), ("opt", "causal_lm"), ("bart", "seq2seq")),
    *(("bert", "tagging"), ("roberta", "tagging")),
]
COMPUTED = [("llama", "causal_lm"), ("gpt_neox", "causal_lm"), ("t5", "seq2seq")]


def of(model: torch.nn.Module, folder: Path) -> int | None:
    model.config.save_pretrained(folder)
    return num_positions(ModelConfig(path=str(folder)))


def read(model: torch.nn.Module, length: int) -> None:
    ids = torch.full((1, length), 5)
    with torch.no_grad():
        model(input_ids=ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}))


@pytest.mark.parametrize("architecture, task", WITH_TABLES)
def test_one_token_more_than_that_is_out_of_the_table(architecture: str, task: str, tmp_path: Path) -> None:
    model = model_of(architecture, task)
    most = of(model, tmp_path)
    assert most is not None
    read(model, most)
    with pytest.raises((IndexError, RuntimeError)):
        read(model, most + 1)


@pytest.mark.parametrize("architecture, task", COMPUTED)
def test_computed_places_have_no_end(architecture: str, task: str, tmp_path: Path) -> None:
    assert of(model_of(architecture, task), tmp_path) is None


def test_neither_have_those_of_a_bias(tmp_path: Path) -> None:
    PADDED_CONFIGS["bloom"]().save_pretrained(tmp_path)
    assert num_positions(ModelConfig(path=str(tmp_path))) is None
