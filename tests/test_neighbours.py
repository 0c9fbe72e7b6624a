"""The words nearest to virtual tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tunecli import neighbours as module
from tunecli.cli import main
from tunecli.config.errors import UserError
from tunecli.config.model import ModelConfig
from tunecli.config.peft import LoraConfig, PeftConfig, PromptInit, PromptTuningConfig
from tunecli.models.builtin import PREFIX, byte_tokenizer
from tunecli.models.load import load_model, resolve_path
from tunecli.neighbours import Neighbour, VirtualToken, neighbours, show
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.saving import save_adapters

BASE = f"{PREFIX}tiny_llama"
TEXT = "Review"


def saved(folder: Path, methods: dict[str, PeftConfig], base: str = BASE) -> str:
    """The untrained adapters of a tiny model."""
    model = load_model(ModelConfig(path=base), dtype=torch.float32, device=torch.device("cpu"))
    inject(model, methods, seed=0, tokenizer=byte_tokenizer())
    save_adapters(model, methods, folder, base=base)
    return str(folder)


def prompt(**values) -> PromptTuningConfig:
    return PromptTuningConfig(num_virtual_tokens=len(TEXT), init=PromptInit.text, init_text=TEXT, **values)


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*_):
        raise AssertionError("the whole model is loaded")

    monkeypatch.setattr(module, "load_base", refuse)


@pytest.mark.parametrize(("measure", "best"), [("cosine", 1.0), ("euclidean", 0.0)])
def test_what_starts_as_a_word_is_nearest_to_it(no_model, tmp_path, measure: str, best: float):
    found = neighbours(saved(tmp_path, {"lora": LoraConfig(), "prompt": prompt()}), measure)
    assert [token.number for token in found] == [1, 2, 3, 4, 5, 6]
    assert {token.entry for token in found} == {"prompt"}
    assert "".join(token.nearest[0].word for token in found) == TEXT
    for token in found:
        assert token.nearest[0].value == pytest.approx(best, abs=2e-3)
        values = [near.value for near in token.nearest]
        assert len(values) == 5 and values == sorted(values, reverse=measure == "cosine")


def test_the_measures_differ_where_lengths_do(no_model, tmp_path):
    folder = saved(tmp_path, {"prompt": prompt()})
    file = tmp_path / "prompt" / "adapter_model.safetensors"
    rows = module.load_file(file)
    from safetensors.torch import save_file

    save_file({key: 9 * value for key, value in rows.items()}, file)
    assert "".join(token.nearest[0].word for token in neighbours(folder, "cosine")) == TEXT
    assert neighbours(folder, "cosine")[0].nearest[0].value == pytest.approx(1)
    assert neighbours(folder, "euclidean")[0].nearest[0].value > 1


def test_of_checkpoints_with_other_names_the_whole_model_is_loaded(tmp_path, monkeypatch):
    folder = saved(tmp_path, {"prompt": prompt()})
    monkeypatch.setattr(module, "_same", lambda stored, key: False)
    assert "".join(token.nearest[0].word for token in neighbours(folder, "cosine")) == TEXT


def test_a_checkpoint_in_several_files(no_model, tmp_path):
    base = tmp_path / "base"
    model = load_model(ModelConfig(path=BASE), dtype=torch.float32, device=torch.device("cpu"))
    model.save_pretrained(base, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(resolve_path(BASE)).save_pretrained(base)
    assert len(list(base.glob("*.safetensors"))) > 1
    folder = saved(tmp_path / "adapter", {"prompt": prompt()}, str(base))
    assert "".join(token.nearest[0].word for token in neighbours(folder, "cosine")) == TEXT


def test_others_have_none(tmp_path):
    with pytest.raises(UserError, match=r"has no virtual tokens\n.*prompt_tuning and p_tuning"):
        neighbours(saved(tmp_path, {"lora": LoraConfig()}), "cosine")


def test_the_command(tmp_path, capsys):
    folder = saved(tmp_path, {"prompt": prompt(), "second": prompt()})
    assert main(["show", folder, "--words"]) == 0
    shown = capsys.readouterr().out
    assert "cosine similarity" in shown and "prompt 6" in shown and "second 1" in shown
    assert main(["show", "--words", folder, "--measure", "euclidean", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["measure"] == "euclidean" and len(answer["tokens"]) == 12
    assert answer["tokens"][0]["nearest"][0]["word"] == "R"
    assert main(["show", "recipe=smoke_sft_lora", "--words"]) == 2
    assert "--words is for one run" in capsys.readouterr().err


def test_words_stay_whole_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    word = "internationalisation"
    show([VirtualToken("an_entry_with_a_long_name", 1, [Neighbour(word, 0.5)] * 5)], "cosine")
    assert capsys.readouterr().out.count(word) == 5
