"""Metrics, configuration and samples for TensorBoard, Weights & Biases, MLflow and Trackio, by accelerate's classes.

They are guests: whatever goes wrong in one of them costs a line of warning and that tracker, never the run.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from tunecli.config.paths import display as typed
from tunecli.engine.checkpoint import write_atomically
from tunecli.engine.console import Display
from tunecli.engine.text import harmless

PROJECT = "tunecli"
"""What runs are gathered under; WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME go before it."""


MLFLOW_SETTINGS = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # Training waits while a server does not answer; the defaults are 7 tries of 120 seconds.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


@dataclass(frozen=True, slots=True)
class Start:
    """What a tracker's run is started with."""

    name: str
    """recipe/time"""
    folder: Path
    step: int
    """steps taken before; what a killed run logged after it comes a second time"""
    id: str | None
    """of the tracker's run that this one continues"""


class Trackers:
    """Only the main process has any. `step`: after which this start of the run goes on."""

    def __init__(
        self, names: Sequence[str], run_dir: Path, config: dict[str, Any], display: Display, *, step: int = 0
    ) -> None:
        self.folder = run_dir / "trackers"
        self.display = display
        self._running: dict[str, GeneralTracker] = {}
        for name in dict.fromkeys(names) if display.enabled else ():
            self._start(name, f"{config['recipe']}/{run_dir.name}", config, step)

    def log(self, record: Mapping[str, Any], step: int) -> None:
        # MLflow refuses other characters, which the name of a data source may hold.
        values = {re.sub(r"[^\w\-. /]", "_", name): value for name, value in record.items() if name != "step"}
        for name, tracker in list(self._running.items()):
            self._attempt(name, partial(tracker.log, values, step=step))

    def samples(self, samples: Sequence[Mapping[str, str]], step: int) -> None:
        """To those trackers that take text."""
        for name, tracker in list(self._running.items()):
            if show := KINDS[name].samples:
                self._attempt(name, partial(show, tracker, samples, step))

    def finish(self) -> None:
        for name, tracker in list(self._running.items()):
            self._attempt(name, tracker.finish)
        self._running.clear()

    def _start(self, name: str, run_name: str, config: dict[str, Any], step: int) -> None:
        known = self._known()

        def start() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            kind = KINDS[name]
            tracker = kind.make(Start(run_name, self.folder, step, known.get(name)))
            tracker.start()
            if name not in known or kind.takes_new_configuration:
                tracker.store_init_configuration(flat(config))
            self._running[name] = tracker
            known[name] = kind.id(tracker)
            write_atomically(self.folder / "trackers.json", json.dumps(known))

        self._attempt(name, start)
        if name in self._running:
            self.display.note(f"{name}: {KINDS[name].where(self._running[name], self.folder)}")

    def _known(self) -> dict[str, str]:
        """Tracker -> its id of this run, from earlier starts."""
        path = self.folder / "trackers.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def _attempt(self, name: str, action: Callable[[], object]) -> None:
        try:
            with redirect_stdout(io.StringIO()):  # Trackio prints colours even where nobody can see them
                action()
        except Exception as error:  # guests' errors are of every kind
            self._running.pop(name, None)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.display.note(f"{name} is off from here on, training goes on: {harmless(reason)}", style="yellow")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> number, text or truth value; lists and what is unset as JSON."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return values


def _tensorboard(start: Start) -> GeneralTracker:
    # Hides what was logged after the checkpoint that this run goes on from.
    return TensorBoardTracker("tensorboard", start.folder, purge_step=start.step + 1 if start.step else None)


def _wandb(start: Start) -> GeneralTracker:
    # Its steps only grow: steps that are trained a second time are dropped there, and they are the same.
    import wandb

    return WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        name=start.name,
        dir=str(start.folder),
        id=start.id,
        resume="allow",
        # Its capture of the output and the live line do not go together.
        settings=wandb.Settings(console="off", silent=True),
    )


def _wandb_place(run: Any) -> str:
    return shlex.join(["wandb", "sync", typed(Path(run.dir).parent)]) if run.offline else run.url


def _mlflow(start: Start) -> GeneralTracker:
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    mlflow.set_tracking_uri(_mlflow_uri(start.folder))
    artifacts = None if "MLFLOW_TRACKING_URI" in os.environ else str(start.folder / "mlflow")
    return MLflowTracker(PROJECT, artifacts, run_id=start.id, run_name=start.name)


def _mlflow_uri(folder: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")


def _trackio(start: Start) -> GeneralTracker:
    os.environ.setdefault("TRACKIO_DIR", str(start.folder / "trackio"))  # read when it is imported
    return TrackioTracker(PROJECT, name=start.name, resume="allow")


def _tensorboard_samples(tracker: GeneralTracker, samples: Sequence[Mapping[str, str]], step: int) -> None:
    """As indented blocks: what stands in them is no Markdown."""
    for number, sample in enumerate(samples, start=1):
        blocks = (
            f"**{part}**\n\n" + "".join(f"    {line}\n" for line in sample[part].splitlines()) for part in sample
        )
        tracker.log({f"samples/{number}": "\n".join(blocks)}, step=step)


def _wandb_samples(tracker: GeneralTracker, samples: Sequence[Mapping[str, str]], step: int) -> None:
    known = [column for column in ("score", "kl") if any(column in sample for sample in samples)]
    columns = ["prompt", "answer", *(known or ["expected"])]
    rows = [[sample.get(column) for column in columns] for sample in samples]
    tracker.log_table("samples", columns=columns, data=rows, step=step)


@dataclass(frozen=True, slots=True)
class Kind:
    make: Callable[[Start], GeneralTracker]
    id: Callable[[Any], str]
    """of the started tracker's run"""
    where: Callable[[Any, Path], str]
    """what a person types or opens to look at it"""
    takes_new_configuration: bool
    """when a run is resumed; MLflow refuses other values, and Trackio forgets those that it is not told again"""
    samples: Callable[[Any, Sequence[Mapping[str, str]], int], None] | None = None


KINDS = {
    "tensorboard": Kind(
        make=_tensorboard,
        takes_new_configuration=False,
        id=lambda tracker: "tensorboard",
        where=lambda tracker, folder: shlex.join(["tensorboard", "--logdir", typed(folder)]),
        samples=_tensorboard_samples,
    ),
    "wandb": Kind(
        make=_wandb,
        takes_new_configuration=True,
        id=lambda tracker: tracker.run.id,
        where=lambda tracker, folder: _wandb_place(tracker.run),
        samples=_wandb_samples,
    ),
    "mlflow": Kind(
        make=_mlflow,
        takes_new_configuration=False,
        id=lambda tracker: tracker.active_run.info.run_id,
        where=lambda tracker, folder: shlex.join(["mlflow", "ui", "--backend-store-uri", _mlflow_uri(folder)]),
    ),
    "trackio": Kind(
        make=_trackio,
        takes_new_configuration=True,
        id=lambda tracker: tracker.run.name,
        where=lambda tracker, folder: f"TRACKIO_DIR={shlex.quote(os.environ['TRACKIO_DIR'])} trackio show",
    ),
}
"""The names that `train.trackers` may hold; each is also its package and an extra of ours."""
