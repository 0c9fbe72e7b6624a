"""How a batch is cut up, over micro-batches or over processes, changes nothing but rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tunecli.config.errors import TrainingStopped
from tunecli.config.model import Attention
from tunecli.config.train import Optimizer, Scheduler, TrainConfig
from tunecli.launch import ACCELERATE_CONFIG

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from sgd_steps import PEFT, run_steps  # noqa: E402


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert_close(one[name], other[name], atol=tolerance, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def whole_batch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    return {peft: run_steps(tmp_path_factory.mktemp(peft), rows=8, peft=peft)[0] for peft in PEFT}


@pytest.mark.parametrize("peft", PEFT)
@pytest.mark.parametrize("cut", [{"rows": 1}, {"rows": 2}, {"rows": 3}, {"rows": None, "tokens": 20}])
def test_micro_batches_do_not_matter(tmp_path: Path, whole_batch, peft: str, cut: dict) -> None:
    assert_same(run_steps(tmp_path, peft=peft, **cut)[0], whole_batch[peft])


@pytest.mark.parametrize("cut", [{"rows": 3}, {"rows": None, "tokens": 30}])
def test_padding_does_not_matter(tmp_path: Path, whole_batch, cut: dict) -> None:
    assert_same(run_steps(tmp_path, attention=Attention.padded, **cut)[0], whole_batch["full"])


def test_the_law_can_fail(tmp_path: Path, whole_batch) -> None:
    """The mean of micro-batch means, which dividing by the accumulation steps gives, is caught by the tolerance."""

    def mean_of_means(accelerator, loss):
        return loss

    from tunecli.stages.supervised import Supervised

    original = Supervised.loss

    def divided(self, model, batch):
        output = original(self, model, batch)
        return type(output)(output.total / batch.weights.sum() * 4)

    Supervised.loss = divided
    try:
        parameters, _ = run_steps(tmp_path, rows=2)
    finally:
        Supervised.loss = original
    with pytest.raises(AssertionError):
        assert_same(parameters, whole_batch["full"])


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, whole_batch) -> None:
    """One launch for all of them, encoder-decoders too. DDP refuses what is trained and gets no gradient."""
    rest = [peft for peft in PEFT if peft not in ("full", "lora")]
    cases = ["full:1", "full:8", "lora:1", "lora:8", *(f"{peft}:2" for peft in rest)]
    for case, ranks in on_two_processes(tmp_path, cases).items():
        assert [rank["num_processes"] for rank in ranks] == [2, 2]
        shares = [set(rank["rows_of_first_step"]) for rank in ranks]
        assert not shares[0] & shares[1]
        assert len(shares[0] | shares[1]) == 8
        for rank in ranks:
            assert_same(rank["parameters"], whole_batch[case.partition(":")[0]], tolerance=2e-6)
        assert ranks[0]["eval"] == ranks[1]["eval"]
        if case == "on_top:2":
            assert all("tune_second" in name for name in ranks[0]["parameters"])


def on_two_processes(folder: Path, cases: list[str]) -> dict[str, list[dict]]:
    """What each rank came to, by `PEFT:MICRO_BATCH`."""
    config = folder / "accelerate.yaml"
    config.write_text(ACCELERATE_CONFIG.format(num_processes=2))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += [str(HERE / "sgd_steps.py"), str(folder), *cases]
    path = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {case: [torch.load(folder / f"{case}_{rank}.pt") for rank in range(2)] for case in cases}


def test_evaluation_moves_nothing(tmp_path: Path) -> None:
    def trained(name: str, **changes) -> dict[str, torch.Tensor]:
        config = TrainConfig(learning_rate=1e-3, lr_scheduler=Scheduler.cosine, **changes)
        (tmp_path / name).mkdir()
        return run_steps(tmp_path / name, peft="lora", config=config)[0]

    never, always = trained("never"), trained("always", eval_every=1)
    for name in never:
        assert torch.equal(never[name], always[name])
    lines = [json.loads(line) for line in (tmp_path / "always" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/loss" in line] == [0, 1, 2, 3, 4, 5]


def test_metrics_lines_have_what_scripts_rely_on(tmp_path: Path) -> None:
    _, trainer = run_steps(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5]
    promised = {"step", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "seconds"}
    assert all(promised | {"memory_peak_bytes"} <= line.keys() for line in training)
    first_epoch, second = divmod(38, 19)
    assert (first_epoch, second) == (2, 0)
    assert training[-1]["tokens"] == 2 * sum(trainer.stage.feed.examples.lengths)
    assert training[-1]["loss"] < training[0]["loss"]


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(tmp_path: Path) -> None:
    config = TrainConfig(
        optimizer=Optimizer.sgd, lr_scheduler=Scheduler.constant, learning_rate=1e30, max_grad_norm=0
    )
    with pytest.raises(TrainingStopped, match="not finite"):
        run_steps(tmp_path, config=config)
    reports = list(tmp_path.glob("non_finite_step_*_rank_0.json"))
    assert len(reports) == 1
    suspects = json.loads(reports[0].read_text())
    assert suspects[0]["examples"][0].startswith("random row ")
