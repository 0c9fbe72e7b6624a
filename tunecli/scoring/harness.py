"""`tune eval … harness=TASK,…`: tasks of EleutherAI's lm-evaluation-harness (Gao et al., 2021), by its own code and
with its own numbers, for any of our language models. Standard errors are the harness's own too; the intervals are
1.96 of them to each side."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.config.paths import display
from tunecli.config.stage import Task
from tunecli.data.tokens import Encoding
from tunecli.peft_methods.loading import load_base, require_one
from tunecli.peft_methods.saving import load_adapters
from tunecli.report import html
from tunecli.report.numbers import shown
from tunecli.scoring.files import PAGE, PREDICTIONS, RESULT, as_lines, made, written
from tunecli.scoring.subject import Subject, find_subject

PACKAGE = "lm_eval"
BATCH_SIZE = 8
BATCH = "train.micro_batch_size="
WIDTH = 1.96
"""Standard errors from a value to the border of its 95 % interval."""
ASKED = (Task.causal_lm, Task.seq2seq_lm)


@dataclass(frozen=True, slots=True)
class Options:
    tasks: list[str]
    folder: Path | None = None
    """of task files that do not come with the harness"""
    num_fewshot: int | None = None
    """solved examples in front of each question; None: as the task says"""
    limit: int | None = None
    """questions of each task; None: all"""
    chat: bool = False
    """questions go through the chat template"""
    batch_size: int = BATCH_SIZE


@dataclass(frozen=True, slots=True)
class Measured:
    task: str
    metric: str
    filter: str
    """of the answers, which the task names; "none" where they are taken as they are"""
    value: float
    stderr: float | None
    questions: int | None
    """None of a group of tasks"""

    @property
    def interval(self) -> tuple[float, float] | None:
        """None too where a standard error of zero would have it that nothing else can be."""
        return (self.value - WIDTH * self.stderr, self.value + WIDTH * self.stderr) if self.stderr else None


@dataclass(frozen=True, slots=True)
class HarnessScores:
    subject: str
    stage: str
    options: Options
    measured: list[Measured]
    version: str
    task_versions: dict[str, Any]
    samples: list[dict[str, Any]]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        folder = self.options.folder
        return {
            "subject": self.subject,
            "stage": self.stage,
            "harness": {"version": self.version, "tasks": self.task_versions},
            "settings": asdict(self.options) | {"folder": None if folder is None else str(folder)},
            "metrics": [asdict(each) | {"interval": each.interval} for each in self.measured],
            "seconds": round(self.seconds, 3),
        }


def check_installed() -> None:
    """Raises UserError, with the command that installs it."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            "EleutherAI's lm-evaluation-harness is not installed",
            where="harness",
            fix='pip install "tunecli[harness]"',
        )


def score_with_harness(path: str, options: Options) -> HarnessScores:
    """Ask the model that `path` names.

    Raises:
        UserError: the harness is not installed, there is no such model or task, its data cannot be had, or the model
            gives no texts.
    """
    check_installed()
    started = time.monotonic()
    subject = find_subject(path)
    encoding = _encoding(subject)
    with _quiet():
        manager = _task_manager(options)
        found = _evaluated(subject, encoding, options, manager)
    return HarnessScores(
        subject=path,
        stage=subject.config.stage.name,
        options=options,
        measured=list(_measured(found)),
        version=version(PACKAGE),
        task_versions=found["versions"],
        samples=[sample | {"task": task} for task, each in found["samples"].items() for sample in each],
        seconds=time.monotonic() - started,
    )


def build_model(subject: Subject, encoding: Encoding, batch_size: int) -> Any:
    """The `LM` of the harness: the plain model with all its adapters, as `tunecli.load` gives it."""
    from tunecli.scoring.harness_model import Asked

    model = load_base(subject.source)
    load_adapters(model, subject.source.adapters)
    return Asked(model.eval(), subject.tokenizer, encoding, batch_size)


def _encoding(subject: Subject) -> Encoding:
    """Where virtual tokens stand.

    Raises:
        UserError: the model gives no texts, several adapters are alternatives, or a template of columns says what it
            reads, which the tasks have none of.
    """
    where, task = subject.source.path, subject.config.stage.task
    if task not in ASKED:
        fix = "a causal language model or an encoder-decoder; tune eval MODEL data=NAME measures this one"
        raise UserError(f"is a {task.value} model, and the tasks of the harness ask for texts", where=where, fix=fix)
    require_one(subject.source)
    config = replace(subject.config, data=replace(subject.config.data, adapter_column=None))
    encoding = subject.encoding(config)
    if encoding.template:
        what = f"reads rows by the template {encoding.template!r}, and the tasks have no such columns"
        raise UserError(what, where=where, fix="tune eval RUN data=NAME measures it on rows")
    return encoding


def _task_manager(options: Options) -> Any:
    """Raises UserError: there is no such folder or task."""
    from lm_eval.tasks import TaskManager

    if options.folder is not None and not options.folder.is_dir():
        raise UserError("there is no such folder", where=str(options.folder), fix="--task-files DIR")
    if options.folder is not None:
        own = TaskManager(include_path=str(options.folder), include_defaults=False)
        if all(map(own.match_tasks, ([task] for task in options.tasks))):
            return own  # the harness's own tasks are thousands of files, which takes a while to look through
    manager = TaskManager(include_path=None if options.folder is None else str(options.folder))
    for task in options.tasks:
        if not manager.match_tasks([task]) and not Path(task).is_file():
            place = "lm-eval ls tasks lists what comes with the harness; --task-files DIR adds your own"
            fix = f"{did_you_mean(task, manager.all_tasks)}{place}"
            raise UserError(f"the harness has no task {task!r}", where="harness", fix=fix)
    return manager


def _evaluated(subject: Subject, encoding: Encoding, options: Options, manager: Any) -> dict[str, Any]:
    """Raises UserError: the data of a task cannot be had, or a task file is wrong."""
    from lm_eval import simple_evaluate

    try:
        tasks = manager.load(options.tasks)["tasks"]  # before the weights: reads the data
    except Exception as error:  # noqa: BLE001 - what a task file or its code raises
        fix = "data from this disk: dataset_path: json and dataset_kwargs: {data_files: FILE} in the task file"
        what = f"cannot be prepared: {type(error).__name__}: {_first_line(error)}"
        raise UserError(what, where=f"harness={','.join(options.tasks)}", fix=fix) from None
    if options.chat and not subject.tokenizer.chat_template:
        raise UserError("has no chat template", where=subject.source.path, fix="leave out --chat")
    del tasks
    return simple_evaluate(
        model=build_model(subject, encoding, options.batch_size),
        tasks=options.tasks,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        apply_chat_template=options.chat,
        fewshot_as_multiturn=options.chat,
        task_manager=manager,
    )


def _measured(found: dict[str, Any]) -> Iterator[Measured]:
    for task, values in found["results"].items():
        counts = found.get("n-samples", {}).get(task, {})
        for key, value in values.items():
            metric, comma, filter = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{filter}")
            known = isinstance(stderr, int | float)
            yield Measured(
                task, metric, filter, float(value), float(stderr) if known else None, counts.get("effective")
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the harness says of a model that it did not load itself."""
    logger = logging.getLogger(PACKAGE)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]


def name_of(options: Options) -> str:
    """Of a folder."""
    tasks = "+".join(Path(task).stem for task in options.tasks)
    return f"harness_{tasks[:80]}"


def text_of(measured: Measured) -> str:
    """As in 0.25 [0.1651, 0.3349]."""
    if measured.interval is None:
        return shown(measured.value)
    low, high = measured.interval
    return f"{shown(measured.value)} [{shown(low)}, {shown(high)}]"


def write(scores: HarnessScores, folder: Path) -> None:
    """Raises UserError where the folder cannot be written."""
    made(folder)
    with written(folder / PREDICTIONS) as file:
        file.writelines(as_lines(json.loads(json.dumps(each, default=str)) for each in scores.samples))
    with written(folder / RESULT) as file:
        file.write(json.dumps(scores.as_json(), indent=2, ensure_ascii=False) + "\n")
    page = html.render(
        "harness.html.jinja",
        package="tunecli.scoring",
        scores=scores,
        rows=[(each, text_of(each)) for each in scores.measured],
        settings=_settings(scores.options),
    )
    html.write_page(page, folder / PAGE)


def _settings(options: Options) -> list[tuple[str, str]]:
    few = "as each task says" if options.num_fewshot is None else f"{options.num_fewshot}"
    rows = [("solved examples in front of a question", few)]
    rows.append(("chat template", "yes" if options.chat else "no"))
    if options.limit is not None:
        rows.append(("questions of each task, at most", f"{options.limit:,}"))
    if options.folder is not None:
        rows.append(("task files", display(options.folder.resolve())))
    return rows


def options_of(
    words: Sequence[str],
    *,
    folder: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    chat: bool = False,
) -> Options:
    """
    Args:
        words: `harness=TASK,TASK` and `train.micro_batch_size=N`.

    Raises:
        UserError: a word or a number has no meaning here.
    """
    for word in words:
        if not word.startswith(("harness=", BATCH)):
            fix = "leave it out; --few-shot, --limit, --chat, --task-files and train.micro_batch_size=N are for it"
            raise UserError("has no meaning beside harness=TASK, whose tasks bring their data", where=word, fix=fix)
    size = next((word.removeprefix(BATCH) for word in reversed(words) if word.startswith(BATCH)), str(BATCH_SIZE))
    for name, least, number in ((BATCH[:-1], 1, size), ("--limit", 1, limit), ("--few-shot", 0, num_fewshot)):
        if number is not None and not (str(number).isdecimal() and int(number) >= least):
            raise UserError(f"is {number}", where=name, fix=f"a whole number, {least} or more")
    tasks = tasks_in(words)
    if not tasks:
        raise UserError("names no task", where="harness", fix="harness=TASK,TASK")
    return Options(tasks, folder, num_fewshot, limit, chat, int(size))


def tasks_in(words: Sequence[str]) -> list[str]:
    """Of `harness=A,B`."""
    named = [word.partition("=")[2] for word in words if word.startswith("harness=")]
    return [task for each in named for task in each.strip("[]").split(",") if task]
