"""`stage=label`: answers of a model, judged, as a data set.

The prompts are cut into units of a few, each with a seed of its own. What a unit gives depends on nothing else, so
processes share the units out, a killed run goes on with those that are missing, and the file is the same in the end.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from tunecli.config.data import training_sources
from tunecli.config.data_checks import formats_for
from tunecli.config.errors import UserError
from tunecli.config.judge import JudgeConfig
from tunecli.config.launch import Strategy
from tunecli.config.paths import display as typed
from tunecli.config.paths import point_latest_at
from tunecli.config.run import RunConfig
from tunecli.config.stage import LabelConfig, Labelling
from tunecli.data.source import fingerprint as content_of
from tunecli.engine.checkpoint import write_atomically
from tunecli.engine.console import Display
from tunecli.engine.distributed import make_deterministic
from tunecli.engine.environment import describe_environment
from tunecli.engine.signals import StopSignal
from tunecli.judging.fingerprint import fingerprint
from tunecli.judging.judge import Judge, open_judge
from tunecli.judging.questions import digest
from tunecli.judging.rows import Found, read
from tunecli.judging.terminal import lines_of as cost_lines
from tunecli.judging.trial import summary_of
from tunecli.labelling.modes import Worker, label
from tunecli.labelling.policy import Policy
from tunecli.labelling.statistics import lines_of, statistics
from tunecli.labelling.store import Store
from tunecli.labelling.units import Unit, units_of

LABELS, STATISTICS, LEFT_OUT = "labels.jsonl", "statistics.json", "left_out.jsonl"


def main(config: RunConfig, run_dir: Path) -> int:
    """Do the share of one process, and write the files if all others are done.

    Returns:
        The exit status: 0, or 128 + the number of the signal that ended it after a unit.

    Raises:
        UserError: rows that cannot be used, a judge that does not answer, a run that was begun in another way.
    """
    stop = StopSignal(announce=_rank() == 0).install()
    cpu = config.launch.strategy is Strategy.cpu or not torch.cuda.is_available()
    make_deterministic(cpu=cpu)
    if not cpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    display = Display(enabled=_rank() == 0, log_file=run_dir / "log.txt")
    rows, left_out = read_rows(config)
    worker, inputs = _worker(config, rows)
    store = Store(run_dir, inputs)
    units = units_of(rows, worker.stage.prompts_together)
    if _rank() == 0:
        _write_environment(config, run_dir, len(rows))
    done = store.done()
    display.note(_announcement(worker, units, len(done), left_out))
    _status(run_dir, "running", 0)
    finished = _work(worker, store, units, done, stop, display)
    if not finished:
        if _rank() == 0:
            _status(run_dir, "interrupted", 128 + stop.number)
            display.note(f"stopped; go on with: tune resume {typed(run_dir)}", style="yellow")
        return 128 + stop.number
    if len(store.done()) == len(units):
        _finish(config, run_dir, store, rows)
    return 0


def read_rows(config: RunConfig) -> tuple[list[Found], int]:
    """What is labelled, and how many rows were left out.

    Raises:
        UserError: a row cannot be used.
    """
    stage = config.stage
    assert isinstance(stage, LabelConfig)
    rows, left_out = read(config.data, formats_for(stage.reads))
    if not rows:
        raise UserError("holds no rows", where=config.data.path or "data.mix", fix="check the files")
    return rows, left_out


def _worker(config: RunConfig, rows: list[Found]) -> tuple[Worker, dict[str, Any]]:
    """Who does the work, and everything that its outcome depends on.

    Raises:
        UserError: no such model or judge.
    """
    stage = config.stage
    assert isinstance(stage, LabelConfig)
    policy = None if stage.mode is Labelling.given_pairs else Policy(config)
    if stage.mode is Labelling.revise and policy is not None and not policy.tokenizer.chat_template:
        fix = "another model, or data.chat_template=chatml"
        raise UserError(
            "has no chat template, in which it could be asked for a critique", where="model.path", fix=fix
        )
    judge = None if config.judge is None else open_judge(config.judge, seed=config.seed)
    asked = None
    if policy is not None:
        asked = [fingerprint(policy.source), config.model.dtype.value, policy.encoding.plain]
    inputs = {
        "data": digest([content_of(each, config.data.sample_by) for each in training_sources(config.data)]),
        "rows": digest([row.place for row in rows]),
        "stage": digest({name: str(getattr(stage, name)) for name in stage.__dataclass_fields__}),
        "model": digest(asked),
        "judge": None if judge is None else digest(judge.identity),
        "seed": config.seed,
    }
    origin = {
        "policy": None if policy is None else {"path": config.model.path, "hash": inputs["model"]},
        "judge": None if judge is None else {"name": judge.name, "hash": inputs["judge"]},
        "seed": config.seed,
    }
    margin = config.judge.tie_margin if isinstance(config.judge, JudgeConfig) else 0.0
    return Worker(stage, rows, policy, judge, margin, config.seed, origin), inputs


def _work(
    worker: Worker, store: Store, units: list[Unit], done: set[int], stop: StopSignal, display: Display
) -> bool:
    """The units of this process that are missing. Whether it came to their end."""
    process, started = f"{os.getpid()} {time.time():.3f}", time.monotonic()
    own = [unit for unit in units if unit.number % _world() == _rank() and unit.number not in done]
    for number, unit in enumerate(own, start=1):
        if stop.requested:
            return False
        outcome = label(worker, unit)
        store.put(unit.number, outcome)
        store.count(process, _usage(worker.judge))
        seconds = time.monotonic() - started
        left = seconds / number * (len(own) - number)
        display.note(f"unit {unit.number + 1}/{len(units)}  {seconds:.0f} s, {left:.0f} s left")
    return True


def _usage(judge: Judge | None) -> dict[str, Any]:
    return {} if judge is None else summary_of(judge)


def _finish(config: RunConfig, run_dir: Path, store: Store, rows: list[Found]) -> None:
    """Write the files, whichever process comes last."""
    with (run_dir / ".finish").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_finished(run_dir):
            return
        outcomes = list(store.outcomes())
        records = {row: each for outcome in outcomes for row, each in outcome.records.items()}
        why = {row: each for outcome in outcomes for row, each in outcome.left_out.items()}
        lines = [record for row in sorted(records) for record in records[row]]
        left = [rows[row].place | {"why": text} for row in sorted(why) for text in why[row]]
        margin = config.judge.tie_margin if config.judge is not None else 0.0
        found = statistics(outcomes, len(rows), margin)
        write_atomically(run_dir / LEFT_OUT, _as_lines(left))
        write_atomically(run_dir / STATISTICS, json.dumps(found | {"judge": store.usage()}, indent=2) + "\n")
        write_atomically(run_dir / LABELS, _as_lines(lines))
        _status(run_dir, "finished", 0)
    display = Display(log_file=run_dir / "log.txt")
    for line in [*lines_of(found), *(cost_lines(store.usage()) if config.judge is not None else [])]:
        display.note(line)
    display.note(f"done: {typed(run_dir / LABELS)}", style="bold green")


def _is_finished(run_dir: Path) -> bool:
    return (run_dir / LABELS).is_file()


def _as_lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write_environment(config: RunConfig, run_dir: Path, num_rows: int) -> None:
    record = describe_environment() | {"data": {"train": {"rows": num_rows}}}
    write_atomically(run_dir / "environment.json", json.dumps(record, indent=2))
    point_latest_at(run_dir, config.recipe)


def _announcement(worker: Worker, units: list[Unit], done: int, left_out: int) -> str:
    judge = "" if worker.judge is None else f", judged by {worker.judge.name}"
    before = f"; {done} of {len(units)} units are done already" if done else ""
    lost = f"; {left_out} rows left out" if left_out else ""
    return f"labels {len(worker.rows):,} rows in {len(units):,} units{judge}{before}{lost}"


def _status(run_dir: Path, state: str, exit_status: int) -> None:
    if state != "running" or _rank() == 0:
        write_atomically(run_dir / "status.json", json.dumps({"state": state, "exit_status": exit_status}))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
