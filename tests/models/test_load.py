"""What is loaded, and what is refused: safetensors only, no foreign code unless allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architectures import model_of

from tunecli.config.errors import UserError
from tunecli.config.model import DType, ModelConfig
from tunecli.config.stage import ProblemType, Task
from tunecli.models.builtin import materialize
from tunecli.models.load import Head, load_model, load_tokenizer, resolve_path, task_of, weight_dtype

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    import shutil

    return Path(shutil.copytree(materialize("tiny_llama"), tmp_path / "model"))


def load(path: Path | str, **fields) -> torch.nn.Module:
    return load_model(ModelConfig(path=str(path), **fields), dtype=torch.float32, device=CPU)


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        load(folder)


def test_foreign_code_is_not_run_unless_allowed(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "homemade"
    config["auto_map"] = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (folder / "config.json").write_text(json.dumps(config))
    ran = folder / "it_ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(UserError, match=r"model\.trust_remote_code=true"):
        load(folder)
    assert not ran.exists()


def test_a_missing_model_is_one_clear_message() -> None:
    with pytest.raises(UserError, match=r"^model\.path: cannot load 'no/such-model'"):
        load("no/such-model")


def test_an_unknown_builtin_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="tiny_llama"):
        load("builtin:tiny_lama")


def test_a_run_directory_without_a_whole_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="holds no whole model"):
        resolve_path(str(tmp_path))


def test_a_full_run_is_a_model(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    assert resolve_path(str(tmp_path)) == str(folder)


def test_checkpointing_is_not_reentrant() -> None:
    lm = load("builtin:tiny_llama", gradient_checkpointing=True)
    assert lm.is_activation_checkpointing
    assert lm.model.layers[0]._gradient_checkpointing_func.keywords == {"use_reentrant": False}


def test_the_tokenizer_round_trips_any_text() -> None:
    tokenizer = load_tokenizer(ModelConfig(path="builtin:tiny_llama"))
    text = "héllo 你好 🎬\n\ttab"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_trained_weights_are_fp32_and_frozen_ones_follow() -> None:
    config = ModelConfig(path="x")
    assert weight_dtype(config, torch.bfloat16, frozen=False) is torch.float32
    assert weight_dtype(config, torch.bfloat16, frozen=True) is torch.bfloat16
    config = ModelConfig(path="x", dtype=DType.float16)
    assert weight_dtype(config, torch.bfloat16, frozen=True) is torch.float16


class TestHeads:
    """`builtin:tiny_bert` has no head for labels; `saved` has one."""

    def load(self, path: str, labels: list[str], seed: int = 0):
        head = Head(labels=labels, problem_type=ProblemType.single_label, seed=seed)
        config = ModelConfig(path=path)
        task = Task.sequence_classification
        return load_model(config, dtype=torch.float32, device=torch.device("cpu"), task=task, head=head)

    def test_a_new_head_follows_from_the_seed_and_knows_its_labels(self) -> None:
        first, second, third = (
            self.load("builtin:tiny_bert", ["a", "b"], seed).classifier.weight for seed in (1, 1, 2)
        )
        assert torch.equal(first, second) and not torch.equal(first, third)
        model = self.load("builtin:tiny_bert", ["a", "b"])
        assert model.config.id2label == {0: "a", 1: "b"} and model.config.num_labels == 2
        assert {"classifier.weight", "classifier.bias"} <= set(model.new_weights)

    def test_a_stored_head_is_kept_for_its_own_labels_alone(self, tmp_path: Path) -> None:
        model = self.load("builtin:tiny_bert", ["a", "b"], seed=3)
        model.save_pretrained(tmp_path)
        same = self.load(str(tmp_path), ["a", "b"])
        assert torch.equal(same.classifier.weight, model.classifier.weight) and not same.new_weights
        for labels in (["b", "a"], ["a", "c"], ["a", "b", "c"]):
            other = self.load(str(tmp_path), labels)
            assert set(other.new_weights) == {"classifier.weight", "classifier.bias"}
            assert other.classifier.weight.shape[0] == len(labels)
            assert not torch.equal(other.classifier.weight[:2], model.classifier.weight)
            assert torch.equal(other.bert.pooler.dense.weight, model.bert.pooler.dense.weight)

    def test_an_architecture_without_such_a_head_is_refused(self, tmp_path: Path) -> None:
        model_of("bart", "seq2seq").save_pretrained(tmp_path)
        with pytest.raises(UserError, match="no AutoModelForTokenClassification"):
            load_model(
                ModelConfig(path=str(tmp_path)), dtype=torch.float32, device=CPU, task=Task.token_classification
            )

    def test_what_a_stored_model_is_for(self, tmp_path: Path) -> None:
        model = self.load("builtin:tiny_bert", ["a", "b"])
        assert task_of(model.config) is Task.sequence_classification
