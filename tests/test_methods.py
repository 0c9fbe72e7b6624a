"""Every method through `tune run` and `tune resume`, in this process: trained, crashed and resumed, loaded, on top of
one another."""

from __future__ import annotations

import gc
import json
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from tuners import text_logits

import tunecli
from tests.peft_methods.test_grid import SMALL
from tunecli import launch, prepare, run
from tunecli.assembly import data, model
from tunecli.cli import main
from tunecli.config.compose import load_config
from tunecli.config.peft import PEFT_SCHEMAS
from tunecli.engine.recorder import Recorder

STEPS = 3
COMMON = [f"train.max_steps={STEPS}", "train.save_every=1", "train.eval_every=null", "data.validation=null"]
FAMILIES = ["ia3", "oft", "bitfit", "ln_tuning", "houlsby", "vera"]
DROPOUT = "peft.lora.lora_dropout=0.2"
MIX = "data.mix=[{path:'builtin:smoke',task:a},{path:'builtin:smoke',task:b,max_samples:21}]"
STREAM = ["data=mix", MIX, "data.mixing=equal", "data.streaming=true", "data.shuffle_buffer=10"]
RUNS = {
    "bf16": [DROPOUT, "train.precision=bf16"],
    "virtual tokens and prefixes": ["peft=[p_tuning,prefix_tuning]"],
    "pissa": [DROPOUT, "peft.lora.init_lora_weights=pissa"],
    "eva and lora+": ["peft.lora.init_lora_weights=eva", "peft.lora.loraplus_lr_ratio=8"],
    "streamed": [*STREAM, DROPOUT, "train.global_batch_size=30"],
    "tag": ["recipe=smoke_tag", DROPOUT],
    "span corruption": ["recipe=smoke_t5_pretrain"],  # T5 drops out too
}
IDS = torch.randint(4, 200, (1, 12), generator=torch.Generator().manual_seed(0))


class Crash(Exception):
    """In place of a kill; real ones are in test_resume.py."""


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the launcher would start in a process of its own runs here."""

    def start(plan: launch.Plan) -> int:
        return run.main(load_config(plan.run_dir / "config.yaml"), plan.run_dir)

    monkeypatch.setattr(launch, "_start", start)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def words_of(method: str, name: str = "") -> list[str]:
    chosen = f"+peft@peft.{name}={method}" if name else f"peft=[{method}]"
    values = {key: f"'{value}'" if isinstance(value, str) else value for key, value in SMALL.get(method, {}).items()}
    return [chosen, *(f"peft.{name or method}.{key}={value}" for key, value in values.items())]


def tune_run(folder: Path, *words: str) -> Path:
    assert main(["run", *whole(words), f"output_dir={folder}"]) == 0
    return folder


def whole(words: Sequence[str]) -> list[str]:
    recipe = [] if any(word.startswith("recipe=") for word in words) else ["recipe=smoke_sft_lora"]
    return [*recipe, *words, *COMMON]


def tune_run_with_a_crash(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> Path:
    """Ended by an error in step 3, and resumed from the checkpoint of step 2."""
    original = Recorder.training

    def crash(self: Recorder, record: dict[str, Any]) -> None:
        if record["step"] == STEPS:
            raise Crash
        original(self, record)

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "training", crash)
        with pytest.raises(Crash):
            main(["run", *whole(words), f"output_dir={folder}"])
    gc.collect()  # a dead process would have let its lock go
    assert not (folder / "adapter").exists()
    assert main(["resume", str(folder)]) == 0
    return folder


def tensors(run_dir: Path) -> dict[str, Tensor]:
    files = sorted([*run_dir.glob("adapter/*/adapter_model.safetensors"), *run_dir.glob("model/*.safetensors")])
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one and one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def logits(path: Path) -> Tensor:
    return text_logits(tunecli.load(path)[0], IDS)


@pytest.mark.parametrize("method", PEFT_SCHEMAS)
def test_it_is_trained_saved_and_loaded(method: str, tmp_path: Path) -> None:
    folder = tune_run(tmp_path / "run", *words_of(method))
    seen = losses(folder)
    assert len(seen) == STEPS and seen[-1] < seen[0]
    assert {file.parent.name for file in folder.glob("adapter/*/adapter_config.json")} == {method}
    assert not torch.equal(logits(folder), logits(Path("builtin:tiny_llama")))
    assert method in (folder / "README.md").read_text()


@pytest.mark.parametrize("case", [*FAMILIES, *RUNS])
def test_crashed_and_resumed_equals_uninterrupted(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = RUNS.get(case) or words_of(case)
    expected = tune_run(tmp_path / "whole", *words)
    crashed = tune_run_with_a_crash(monkeypatch, tmp_path / "crashed", *words)
    assert_equal(tensors(crashed), tensors(expected))
    assert losses(crashed) == losses(expected)


@pytest.mark.parametrize(("first", "second"), [("lora", "lora"), ("houlsby", "ia3"), ("vera", "vera")])
def test_on_top_of_another_run_that_is_gone_when_it_is_resumed(
    first: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tune_run(tmp_path / "one", *words_of(first))
    words = [*words_of(first), f"peft.{first}.init_from={one}", f"peft.{first}.freeze=true"]
    words += words_of(second, "second")
    two = tune_run(tmp_path / "two", *words)
    stage_one = tensors(one)
    assert_equal({name: tensors(two)[name] for name in stage_one}, stage_one)
    assert any(name.startswith("second/") for name in tensors(two).keys() - stage_one.keys())
    original = run.build_policy

    def without_stage_one(*args: Any, **values: Any) -> Any:
        shutil.rmtree(one, ignore_errors=True)
        return original(*args, **values)

    monkeypatch.setattr(run, "build_policy", without_stage_one)
    crashed = tune_run_with_a_crash(monkeypatch, tmp_path / "crashed", *words)
    assert not one.exists()
    assert_equal(tensors(crashed), tensors(two))
    assert torch.equal(logits(crashed), logits(two))
    assert str(one) not in (two / "README.md").read_text()


def test_an_adapter_is_trained_on(tmp_path: Path) -> None:
    """The same first batch is known better; what came first stays in its own run."""
    one = tune_run(tmp_path / "one")
    before = tensors(one)
    two = tune_run(tmp_path / "two", f"peft.lora.init_from={one}")
    assert losses(two)[0] < losses(one)[0] - 0.1
    assert before.keys() == tensors(two).keys()
    assert all(not torch.equal(before[name], value) for name, value in tensors(two).items())
    assert_equal(tensors(one), before)


def test_a_start_that_does_not_fit_ends_with_status_2_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tune_run(tmp_path / "one")
    monkeypatch.setattr(model, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    words = ["recipe=smoke_sft_lora", "model=tiny_qwen3", f"peft.lora.init_from={one}"]
    assert main(["run", *words, f"output_dir={tmp_path / 'two'}"]) == 2
    assert "belongs to the base model builtin:tiny_llama" in capsys.readouterr().err
    assert main(["check", *words]) == 2
    assert "belongs to the base model builtin:tiny_llama" in capsys.readouterr().err


def test_a_method_that_does_not_fit_ends_with_status_2_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    words = ["recipe=smoke_sft_lora", "peft=[bitfit,lora]", "peft.lora.target_modules=[nonsense]"]
    expected = ["peft.bitfit.add_missing: this model has no biases", "peft.lora.target_modules: 'nonsense'"]
    assert main(["check", *words]) == 2
    error = capsys.readouterr().err
    assert all(line in error for line in expected)
    for module in (run, data):
        monkeypatch.setattr(module, "prepare_data", lambda *_, **__: pytest.fail("rows were read"))
    assert main(["run", *words, f"output_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert all(line in error for line in expected)
    assert prepare.main(tmp_path / "run") == 2  # of several processes
    error = capsys.readouterr().err
    assert all(line in error for line in expected)
