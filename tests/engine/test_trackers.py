"""Trackers are guests: what they get is what metrics.jsonl gets, and no failure of theirs reaches the run."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from tunecli.config.checks import TRACKERS, find_problems
from tunecli.config.run import RunConfig
from tunecli.config.train import TrainConfig
from tunecli.engine.console import Display
from tunecli.engine.recorder import Recorder
from tunecli.engine.trackers import KINDS, Kind, Start, Trackers

CONFIG = {"recipe": "tiny", "train": {"learning_rate": 0.1, "trackers": ["fake"]}, "peft": {"lora": {"r": 4}}}
METRICS = {
    "loss": 1.0,
    "learning_rate": 0.1,
    "grad_norm": 1.0,
    "tokens_per_second": 9.0,
    "memory_peak_bytes": 1,
    "seconds_per_step": 1.0,
}


class FakeTracker(GeneralTracker):
    """Keeps what it gets, and fails in the method named `failing`."""

    name = "fake"
    requires_logging_directory = False
    tracker = None
    failing = ""

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.started_with = start
        self.calls: list[tuple[Any, ...]] = []

    def _call(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        if name == self.failing:
            raise ConnectionError("no\x1b[31m server\nat all")

    def start(self) -> None:
        self._call("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._call("configuration", values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._call("log", values, step)

    def finish(self) -> None:
        self._call("finish")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeTracker]:
    """The fake trackers as they are made; `fake` is one of the names."""
    all_made: list[FakeTracker] = []

    def make(start: Start) -> FakeTracker:
        all_made.append(FakeTracker(start))
        return all_made[-1]

    monkeypatch.setitem(KINDS, "fake", Kind(make, lambda tracker: "7", lambda tracker, folder: "nowhere", False))
    return all_made


def recorder(run_dir: Path, *, step: int = 0, names: tuple[str, ...] = ("fake",), enabled: bool = True) -> Recorder:
    display = Display(enabled=enabled, log_file=run_dir / "log.txt")
    tracked = Trackers(names, run_dir, CONFIG, display, step=step)
    return Recorder(run_dir, display, num_steps=3, trackers=tracked)


def test_every_tracker_that_checks_allow_is_known():
    assert set(KINDS) == set(TRACKERS)


def test_a_tracker_gets_the_configuration_and_every_line(tmp_path: Path, made: list[FakeTracker]):
    run = recorder(tmp_path)
    run.evaluation({"step": 0, "eval/loss": 2.0}, {})
    run.training({"step": 1, **METRICS, "loss/a:b": 3.0})
    run.trackers.finish()
    (tracker,) = made
    assert tracker.started_with.name == f"tiny/{tmp_path.name}"
    assert tracker.calls == [
        ("start",),
        (
            "configuration",
            {"recipe": "tiny", "train.learning_rate": 0.1, "train.trackers": '["fake"]', "peft.lora.r": 4},
        ),
        ("log", {"eval/loss": 2.0}, 0),
        ("log", {**METRICS, "loss/a_b": 3.0}, 1),
        ("finish",),
    ]


def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker(tmp_path: Path, made: list[FakeTracker]):
    recorder(tmp_path).trackers.finish()
    recorder(tmp_path, step=2)
    first, second = made
    assert (first.started_with.id, second.started_with.id) == (None, "7")
    assert second.started_with.step == 2
    assert ("configuration",) not in [call[:1] for call in second.calls]


@pytest.mark.parametrize("failing", ["start", "configuration", "log", "finish"])
def test_a_failure_costs_one_line_and_that_tracker(
    tmp_path: Path, made: list[FakeTracker], monkeypatch: pytest.MonkeyPatch, failing: str
):
    monkeypatch.setattr(FakeTracker, "failing", failing)
    run = recorder(tmp_path)
    for step in (1, 2):
        run.training({"step": step, **METRICS})
    run.trackers.finish()
    assert [call[0] for call in made[0].calls].count(failing) == 1
    assert made[0].calls[-1][0] == failing
    warnings = [line for line in (tmp_path / "log.txt").read_text().split("\n") if " is off" in line]
    assert warnings == ["fake is off from here on, training goes on: no\\x1b[31m server"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_package_that_breaks_when_imported_is_a_failure_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    recorder(tmp_path, names=("wandb",)).trackers.finish()
    assert "wandb is off" in (tmp_path / "log.txt").read_text()


def test_other_ranks_track_nothing(tmp_path: Path, made: list[FakeTracker]):
    run = recorder(tmp_path, enabled=False)
    run.training({"step": 1, **METRICS})
    run.samples(1, [{"prompt": "p", "answer": "a"}])
    assert not made and not list(tmp_path.iterdir())


def test_tensorboard_holds_each_step_once_after_a_kill(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from accelerate import PartialState
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    PartialState(cpu=True)
    killed = recorder(tmp_path, names=("tensorboard",))
    for step in (1, 2, 3):
        killed.training({"step": step, **METRICS})
    resumed = recorder(tmp_path, names=("tensorboard",), step=1)
    for step in (2, 3):
        resumed.training({"step": step, **METRICS, "loss": 0.5})
    resumed.samples(3, [{"prompt": "# no heading", "answer": "yes"}])
    resumed.trackers.finish()
    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.5)]
    (text,) = events.Tensors("samples/1/text_summary")
    assert b"    # no heading" in text.tensor_proto.string_val[0]


def test_samples_are_kept_and_forgotten_with_their_steps(tmp_path: Path):
    run = recorder(tmp_path, names=())
    for step in (0, 2, 4):
        run.samples(step, [{"prompt": "one\ntwo", "answer": "a\u2028b", "expected": "é"}])
    run.forget_after(2)
    kept = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert kept == [{"step": step, "prompt": "one\ntwo", "answer": "a\u2028b", "expected": "é"} for step in (0, 2)]


def test_a_tracker_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch):
    left_behind = importlib.machinery.ModuleSpec("wandb", None)  # a folder ./wandb
    monkeypatch.setattr(importlib.util, "find_spec", {"wandb": left_behind, "mlflow": None}.get)
    config = RunConfig(train=TrainConfig(trackers=["wandb", "mlflow", "tensor_board"]))
    problems = [problem for problem in find_problems(config) if problem.where == "train.trackers"]
    assert [problem.fix.partition("?")[0] for problem in problems] == [
        'pip install "tunecli[wandb]"',
        'pip install "tunecli[mlflow]"',
        "did you mean tensorboard",
    ]
