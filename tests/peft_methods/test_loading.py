"""Law: `tunecli.load` gives the logits of the run's own model, bit for bit, from each place that holds it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from merging import finished_run, tuned_model
from torch import Tensor
from training import trained_run

import tunecli
from tunecli.config.compose import load_config
from tunecli.config.errors import UserError

IDS = torch.randint(4, 200, (1, 24), generator=torch.Generator().manual_seed(0))
TWO = ["+peft@peft.second=lora", "peft.second.r=2"]
CASES: dict[str, tuple[list[str], torch.dtype]] = {
    "lora": ([], torch.float32),
    "lora on a bf16 base": (["train.precision=bf16"], torch.bfloat16),
    "lora on a 4-bit base": (["model.quantization=nf4", "train.precision=bf16"], torch.bfloat16),
    "two loras": (TWO, torch.float32),
    "full": (["peft=full"], torch.float32),
}


def logits(lm: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return lm(IDS).logits


def loaded(path: Path | str) -> Tensor:
    return logits(tunecli.load(path)[0])


@pytest.mark.parametrize("case", CASES)
def test_of_a_run(tmp_path: Path, case: str) -> None:
    words, dtype = CASES[case]
    run = finished_run(tmp_path / "run", *words, dtype=dtype)
    expected = logits(tuned_model(load_config(run / "config.yaml"), dtype=dtype))
    assert not torch.equal(expected, loaded("builtin:tiny_llama"))
    lm, tokenizer = tunecli.load(run)
    assert torch.equal(logits(lm), expected) and not lm.training and tokenizer.chat_template
    result = run / ("model" if case == "full" else "adapter")
    assert torch.equal(loaded(result), expected)


def test_of_peft_folders_away_from_their_run(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", *TWO)
    shutil.copytree(run / "adapter", tmp_path / "both")
    lm, tokenizer = tunecli.load(tmp_path / "both")
    assert torch.equal(logits(lm), loaded(run)) and tokenizer.chat_template
    shutil.copytree(run / "adapter" / "second", tmp_path / "one")
    assert torch.equal(loaded(tmp_path / "one"), loaded(run / "adapter" / "second"))
    assert not torch.equal(loaded(tmp_path / "one"), loaded(run))


def test_an_adapter_away_from_its_run_comes_with_the_head_beside_it(tmp_path: Path) -> None:
    """As published: of a classifier whose rows have an adapter each, the card's code names one of them."""
    run = trained_run(tmp_path / "run", "smoke_classify", "train.max_steps=1", "train.eval_every=null")
    shutil.copytree(run / "adapter", tmp_path / "away")
    assert torch.equal(loaded(tmp_path / "away" / "lora"), loaded(run / "adapter" / "lora"))


def test_a_whole_model_is_loaded_as_it_is_stored(tmp_path: Path) -> None:
    lm, tokenizer = tunecli.load("builtin:tiny_llama")
    for dtype in (torch.bfloat16, torch.float32):
        lm.to(dtype).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        assert tunecli.load(tmp_path / "model")[0].dtype is dtype


def test_what_cannot_be_loaded_is_said_before_weights_are(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    adapter = run / "adapter" / "lora"
    shutil.copytree(adapter, tmp_path / "lost")
    saved = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (tmp_path / "lost" / "adapter_config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="does not say which base model"):
        tunecli.load(tmp_path / "lost")
    shutil.rmtree(run / "adapter")
    with pytest.raises(UserError, match="no result yet"):
        tunecli.load(run)
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="never trained anything.*\n  fix: mend .*tune resume"):
        tunecli.load(run)
