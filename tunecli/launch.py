"""Compose, check, write the run directory, and start the processes of a run.

Imports nothing that is heavy: torch is loaded once, in the worker. One process needs no launcher, so the worker
replaces this process; several are started by `accelerate launch`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from tunecli.config.begun import NEW, discard
from tunecli.config.change import override_config
from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run, load_config
from tunecli.config.counted import counted
from tunecli.config.data_files import exists, is_glob
from tunecli.config.errors import ConfigError, Problem, UserError
from tunecli.config.judge import with_paths
from tunecli.config.launch import Strategy
from tunecli.config.origins import find_origins
from tunecli.config.paths import display, point_latest_at
from tunecli.config.reward import RewardEntry, RewardModelConfig
from tunecli.config.run import RunConfig, to_yaml, with_head
from tunecli.config.run_lock import lock_run
from tunecli.config.stage import LabelConfig, PPOConfig, StageConfig
from tunecli.config.train import Precision

PathOrNone = TypeVar("PathOrNone", str, str | None)

# Ranks on a CPU find each other through gloo; accelerate's own `--cpu --num_processes N` would start one process.
ACCELERATE_CONFIG = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
num_processes: {num_processes}
main_process_port: 0
mixed_precision: 'no'
use_cpu: false
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is about to be started, and from which files."""

    config: RunConfig
    run_dir: Path
    commands: list[list[str]]
    files: dict[str, str]
    """name in the run directory -> content"""
    new: bool = False
    """the run directory was made for it"""


def run(recipe: str, overrides: list[str], dry_run: bool = False, detach: bool = False) -> int:
    """Start a new run of `recipe`. Returns its exit status; with one process it does not return, unless detached.

    Raises:
        ConfigError: all problems of the configuration at once, before anything is written.
    """
    composed = compose_run(recipe, overrides)
    for note in composed.notes:
        print(note)
    run_dir = _run_dir(composed.config)
    config = _resolve(composed.config, run_dir)
    if problems := [*find_problems(config, new_run=True), *machine_problems(config)]:
        raise ConfigError(problems)
    plan = _plan(config, run_dir, overrides)
    if dry_run:
        _print_plan(plan)
        return 0
    plan.files["origins.json"] = json.dumps(find_origins(composed), indent=2)
    plan = replace(plan, new=not run_dir.exists())
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{run_dir} cannot be made: {error.strerror}", where="output_dir", fix="another folder"
        ) from None
    for name, content in plan.files.items():
        (run_dir / name).write_text(content, encoding="utf-8")
    print(f"run directory: {display(run_dir)}", flush=True)
    return _detach(plan) if detach else _start(plan)


def resume(run_dir: Path, overrides: list[str], detach: bool = False) -> int:
    """Go on from the newest complete checkpoint of `run_dir` (from the start if there is none yet).

    Overrides become part of the run's configuration (`train.max_steps=200` trains further).

    Raises:
        UserError: not a run directory, or a run that has finished and was not asked for more steps.
    """
    run_dir = run_dir.resolve()
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir} is not a run directory", fix="name one that holds a config.yaml")
    if not overrides and _status(run_dir).get("state") == "finished":
        raise UserError(
            f"{display(run_dir)} has finished",
            fix=f"for more steps: tune resume {display(run_dir)} train.max_steps=NUMBER",
        )
    written = load_config(run_dir / "config.yaml")
    config = _resolve(override_config(written, overrides), run_dir)
    done = _newest_step(run_dir)
    if config.train.max_steps is not None and done > config.train.max_steps:
        raise UserError(
            f"the run has taken {counted(done, 'step')} already, more than train.max_steps={config.train.max_steps}",
            fix="a number above that trains further; to train less, start a new run",
        )
    if problems := [*find_problems(config), *machine_problems(config)]:
        raise ConfigError(problems)
    lock_run(run_dir).close()
    plan = _plan(config, run_dir, overrides)
    for name in plan.files.keys() - {"overrides.txt"}:
        (run_dir / name).write_text(plan.files[name], encoding="utf-8")
    if overrides:
        with (run_dir / "overrides.txt").open("a", encoding="utf-8") as file:
            file.write("".join(f"{override}\n" for override in ["# resumed with:", *overrides]))
    return _detach(plan) if detach else _start(plan)


def stop(run_dir: Path) -> int:
    """Ask a run to save and end, and wait until it has.

    Raises:
        UserError: no process of it runs on this machine.
    """
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir} is not a run directory", fix="name one that holds a config.yaml")
    workers = _workers(run_dir)
    if not workers:
        raise UserError(
            f"no process of this machine works on {run_dir}", fix=f"tune logs {run_dir} says how it ended"
        )
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGTERM)
    print("stopping after this step ...", flush=True)
    while processes(run_dir):
        time.sleep(0.2)
    finished = _status(run_dir).get("state") == "finished"
    print("it came to its end by itself" if finished else f"stopped; go on with: tune resume {run_dir}")
    return 0


def processes(run_dir: Path) -> list[Any]:
    """The psutil processes on this machine that prepare or train the run, or supervise that."""
    import psutil

    named = str(run_dir.resolve())
    running = psutil.process_iter(["cmdline"])
    return [process for process in running if _works_on(process.info["cmdline"] or [], named)]


def machine_problems(config: RunConfig) -> list[Problem]:
    """What this machine cannot do, without importing torch."""
    if config.train.precision is not Precision.fp16 or config.launch.strategy is Strategy.cpu or visible_gpus():
        return []
    return [Problem("train.precision", "fp16 is for GPUs, and there is none here", "train.precision=auto")]


def num_processes(config: RunConfig) -> int:
    """As asked; else one per visible GPU, or one where there is none or one model spreads over all."""
    if config.launch.num_processes is not None:
        return config.launch.num_processes
    if config.launch.strategy is Strategy.cpu or config.model.device_map is not None:
        return 1
    return max(visible_gpus(), 1)


def visible_gpus() -> int:
    """Number of GPUs, without importing torch."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return len([device for device in listed.split(",") if device.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0


def _run_dir(config: RunConfig) -> Path:
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser().resolve()
    return Path("outputs", config.recipe, datetime.now().strftime("%Y-%m-%d_%H-%M-%S")).resolve()


def _resolve(config: RunConfig, run_dir: Path) -> RunConfig:
    """Fill in what depends on this machine, so that every rank and every resume reads the same."""
    if config.launch.strategy is Strategy.ddp and visible_gpus() == 0:
        raise UserError("there is no GPU here", where="launch.strategy", fix="launch=cpu, or launch=auto")
    config = with_head(config)
    return replace(
        config,
        model=replace(config.model, path=_absolute(config.model.path)),
        data=replace(
            config.data,
            path=_absolute(config.data.path),
            mix=[replace(source, path=_absolute(source.path)) for source in config.data.mix],
            validation=_absolute(config.data.validation),
            chat_template=_absolute(config.data.chat_template),
        ),
        judge=None if config.judge is None else with_paths(config.judge, _absolute),
        peft={name: replace(entry, init_from=_absolute(entry.init_from)) for name, entry in config.peft.items()},
        stage=_with_place_of_values(config.stage),
        reward={name: _with_place(reward) for name, reward in config.reward.items()},
        launch=replace(config.launch, num_processes=num_processes(config)),
        output_dir=str(run_dir),
    )


def _with_place(reward: RewardEntry) -> RewardEntry:
    """What a link such as `latest` leads to now is the reward model, also when the run is resumed."""
    return replace(reward, path=_followed(reward.path)) if isinstance(reward, RewardModelConfig) else reward


def _with_place_of_values(stage: StageConfig) -> StageConfig:
    """The same for what a value model starts from."""
    if not isinstance(stage, PPOConfig) or stage.value_path is None:
        return stage
    return replace(stage, value_path=_followed(stage.value_path))


def _followed(path: str) -> str:
    place = Path(path).expanduser()
    return str(place.resolve()) if place.exists() else path


def _absolute(path: PathOrNone) -> PathOrNone:
    """A run is resumed and loaded from any folder, so what lies on this machine is named from its root."""
    if path is None or not exists(path):
        return path
    # The folder is resolved, not the name: a link may be called train.jsonl and lead to a file without a suffix.
    place = Path(path).expanduser().absolute()
    return str(place) if is_glob(path) else str(place.parent.resolve() / place.name)


def _plan(config: RunConfig, run_dir: Path, overrides: list[str]) -> Plan:
    files = {"config.yaml": to_yaml(config), "overrides.txt": "".join(f"{override}\n" for override in overrides)}
    worker = ["-m", "tunecli.worker", str(run_dir)]
    if config.launch.num_processes == 1:
        return Plan(config, run_dir, [[sys.executable, *worker]], files)
    files["accelerate.yaml"] = ACCELERATE_CONFIG.format(num_processes=config.launch.num_processes)
    accelerate = ["-m", "accelerate.commands.launch", "--config_file", str(run_dir / "accelerate.yaml")]
    ranks = [sys.executable, *accelerate, *worker]
    if isinstance(config.stage, LabelConfig):  # there are no tokens to prepare
        return Plan(config, run_dir, [ranks], files)
    return Plan(config, run_dir, [[sys.executable, "-m", "tunecli.prepare", str(run_dir)], ranks], files)


def _print_plan(plan: Plan) -> None:
    for name, content in plan.files.items():
        print(f"# {plan.run_dir / name}\n{content}")
    print("# commands")
    for command in plan.commands:
        print(shlex.join(command))


def _start(plan: Plan) -> int:
    *before, last = plan.commands
    (plan.run_dir / "status.json").unlink(missing_ok=True)
    if plan.new:
        os.environ[NEW] = str(plan.run_dir)
    for command in before:
        if status := subprocess.run(command, check=False).returncode:
            return _refused(plan.run_dir, status)
    sys.stdout.flush()
    if plan.config.launch.num_processes == 1:
        if sys.platform != "win32":  # until the worker can end in good order; it takes them up again
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        os.execv(last[0], last)
    status = _supervise(last, plan.run_dir)
    if status == 0 and plan.config.evaluation.retain:
        status = subprocess.run([sys.executable, "-m", "tunecli.retain", str(plan.run_dir)], check=False).returncode
    return _refused(plan.run_dir, status)


def _refused(run_dir: Path, status: int) -> int:
    """`status`, after a new run directory is gone where that is the one of what a user got wrong."""
    if status == UserError.exit_status:
        discard(run_dir)
    return status


def _detach(plan: Plan) -> int:
    """Start the run in a session of its own, so that it outlives this terminal; it prints into console.txt."""
    sys.stdout.flush()
    point_latest_at(plan.run_dir, plan.config.recipe)
    if process := os.fork():
        where = display(plan.run_dir)
        print(f"detached as process {process}\n  follow it: tune logs -f {where}\n  end it:    tune stop {where}")
        return 0
    os.setsid()
    with open(os.devnull, "rb") as nothing, (plan.run_dir / "console.txt").open("ab") as console:
        os.dup2(nothing.fileno(), 0)
        os.dup2(console.fileno(), 1)
        os.dup2(console.fileno(), 2)
    sys.exit(_start(replace(plan, new=False)))  # console.txt is the account of what happens


def _supervise(command: list[str], run_dir: Path) -> int:
    """Run `accelerate launch` in a session of its own, and pass one SIGTERM on to the ranks themselves.

    The elastic agent between us would kill the ranks 30 seconds after a signal, in the middle of a checkpoint.
    """
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_parent)
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if not asked:
            print("stopping after this step ...", flush=True)
            asked.append(number)
            for rank in _worker_pids(process.pid):
                os.kill(rank, signal.SIGTERM)
        elif number == signal.SIGINT:
            os.killpg(process.pid, signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    status = process.wait()
    if status != 0:  # what a rank says of it is more exact than accelerate's 1
        return int(_status(run_dir).get("exit_status") or (status if status > 0 else 128 - status))
    if asked and _status(run_dir).get("state") == "interrupted":
        return 128 + asked[0]
    return int(_status(run_dir).get("exit_status", 0))


def _end_with_parent() -> None:
    """On Linux: if this launcher is killed outright, the ranks are asked to save and end, not left behind."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _newest_step(run_dir: Path) -> int:
    """Of the newest checkpoint; 0 where there is none."""
    manifests = (run_dir / "checkpoints").glob("step_*/manifest.json")
    return max((int(manifest.parent.name.removeprefix("step_")) for manifest in manifests), default=0)


def _worker_pids(agent: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(agent).children(recursive=True) if _is_rank(child.cmdline())]


def _is_rank(command: list[str]) -> bool:
    return "tunecli.worker" in command


def _workers(run_dir: Path) -> list[int]:
    """Without the elastic agent, which would kill its ranks in the middle of a checkpoint."""
    return [
        process.pid for process in processes(run_dir) if "accelerate.commands.launch" not in process.info["cmdline"]
    ]


def _works_on(command: list[str], run_dir: str) -> bool:
    return command[-3:] in (["-m", "tunecli.worker", run_dir], ["-m", "tunecli.prepare", run_dir])


def _status(run_dir: Path) -> dict[str, object]:
    path = run_dir / "status.json"
    return json.loads(path.read_text()) if path.is_file() else {}
