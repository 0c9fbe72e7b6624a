"""A reward model that was saved scores the same in plain transformers and peft, whatever it was trained with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from training import trained_run
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import tunecli
from tunecli.report.card_use import IN_PEFT, PLAIN

SHORT = ("train.max_steps=3", "train.eval_every=null", "train.save_every=null", "data.max_samples=16")
TEXTS = ["<|im_start|>user\nHow was it?<|im_end|>\n<|im_start|>assistant\nGreat<|im_end|>", "Dull<|im_end|>"]


def scores(model: torch.nn.Module, tokenizer) -> torch.Tensor:
    inputs = tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        return model.eval()(**inputs).logits[:, 0]


def alone(model: torch.nn.Module, tokenizer) -> torch.Tensor:
    """Without padding."""
    with torch.no_grad():
        ids = [tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"] for text in TEXTS]
        return torch.cat([model.eval()(input_ids=each).logits[:, 0] for each in ids])


@pytest.mark.parametrize("method", IN_PEFT)
def test_peft_alone_loads_it_with_its_head(tmp_path: Path, method: str) -> None:
    run = trained_run(tmp_path / "run", "smoke_reward", f"peft={method}", *SHORT)
    ours, tokenizer = tunecli.load(run)
    folder = run / PLAIN
    config = AutoConfig.from_pretrained(folder)
    assert config.num_labels == 1 and config.problem_type == "regression"
    assert config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    path = ours.config._name_or_path
    base = AutoModelForSequenceClassification.from_pretrained(path, config=config, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, folder)
    words = AutoTokenizer.from_pretrained(folder)
    expected = alone(ours, tokenizer)
    assert torch.allclose(scores(theirs, words), expected, atol=1e-5)
    assert torch.allclose(scores(ours, tokenizer), expected, atol=1e-5)
    with theirs.disable_adapter():
        assert not torch.allclose(scores(theirs, words), expected, atol=1e-3)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_bert"])
def test_transformers_alone_load_a_model_that_was_trained_whole(tmp_path: Path, model: str) -> None:
    run = trained_run(tmp_path / "run", "smoke_reward", "peft=full", f"model={model}", *SHORT)
    ours, tokenizer = tunecli.load(run)
    theirs = AutoModelForSequenceClassification.from_pretrained(run / "model", dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(run / "model")
    assert theirs.config.num_labels == 1 and theirs.config.pad_token_id == words.pad_token_id
    assert torch.allclose(scores(theirs, words), alone(ours, tokenizer), atol=1e-5)


def test_a_merged_one_is_a_plain_model(tmp_path: Path) -> None:
    from tunecli.cli import main

    run = trained_run(tmp_path / "run", "smoke_reward", "peft=[lora,bitfit]", "model=tiny_gpt2", *SHORT)
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    ours, tokenizer = tunecli.load(run)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert theirs.config.num_labels == 1 and theirs.config.pad_token_id == words.pad_token_id != words.eos_token_id
    assert torch.allclose(scores(theirs, words), alone(ours, tokenizer), atol=1e-4)


def test_the_log_says_what_was_found(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", "smoke_reward", "peft=houlsby", *SHORT)
    assert "loaded again from disk: the scores of 8 texts differ by" in (run / "log.txt").read_text()
    assert not (run / PLAIN).exists()
