"""Runs of no steps: the model is evaluated as it is, the same on any number of processes, and nothing is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM

import tunecli
from tests.test_run import lines, tune

FEW = ["recipe=smoke_verbalize", "data.shots=3"]


def finished(folder: Path, *words: str) -> Path:
    done = tune("run", *words, f"output_dir={folder / 'run'}", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_nothing_is_trained_and_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    measured = []
    for name, words in {"one": [], "two": ["launch=cpu", "launch.num_processes=2"]}.items():
        (tmp_path / name).mkdir()
        run_dir = finished(tmp_path / name, *FEW, "train.max_steps=0", *words)
        assert not {"adapter", "model", "checkpoints"} & {path.name for path in run_dir.iterdir()}
        assert "nothing is trained" in (run_dir / "log.txt").read_text()
        assert json.loads((run_dir / "status.json").read_text())["state"] == "finished"
        (line,) = lines(run_dir)
        measured.append(line)
    assert measured[0]["step"] == 0 and "eval/accuracy" in measured[0]
    assert measured[1] == pytest.approx(measured[0], abs=1e-5)


def test_few_rows_are_trained_and_the_adapters_loaded_on_the_masked_model(tmp_path: Path) -> None:
    run_dir = finished(tmp_path, *FEW, "train.max_steps=2")
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["data"]["train"]["examples"] == 6
    model, tokenizer = tunecli.load(run_dir)
    assert isinstance(model, BertForMaskedLM)
    trained = {name: value for name, value in model.named_parameters() if "lora_B" in name}
    assert trained and all(value.abs().max() > 0 for value in trained.values())
    with torch.no_grad():
        logits = model(**tokenizer("It was [MASK].", return_tensors="pt")).logits
    assert logits.shape[-1] == len(tokenizer)
