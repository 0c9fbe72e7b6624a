"""The labels of classifiers and taggers, by task: their names and numbers.

The order is the one that `stage.labels` gives, else that of the names: whole numbers by size, everything else by
character. So it never depends on the order or the choice of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunecli.config.data import DataConfig, training_sources
from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.config.stage import ClassifyConfig, HeadConfig, ProblemType, RewardConfig, VerbalizeConfig
from tunecli.data.mixture import Mixture

if TYPE_CHECKING:
    from torch import Tensor

UNNAMED = ""
NUMBER = "number"
"""The only label where a number is to be predicted."""
MOST = 1000
"""More labels than this are no labels."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Those of several tasks are numbered one task after the other, as if they were one long list."""

    by_task: Mapping[str, list[str]]
    """at least one task; the rows of sources that name no task are of the task UNNAMED"""

    @property
    def names(self) -> list[str]:
        """Of all tasks; with the task where there are several."""
        if len(self.by_task) == 1:
            return next(iter(self.by_task.values()))
        return [f"{task}: {label}" if task else label for task, labels in self.by_task.items() for label in labels]

    def of(self, source: str) -> list[str]:
        """The labels that rows of `source` may have: where there is one task, rows of any source are of it."""
        return self.by_task[self._task_of(source)]

    def range_of(self, source: str) -> range:
        """The numbers of these labels."""
        start, task = 0, self._task_of(source)
        for name, labels in self.by_task.items():
            if name == task:
                break
            start += len(labels)
        return range(start, start + len(self.by_task[task]))

    def _task_of(self, source: str) -> str:
        if len(self.by_task) == 1:
            return next(iter(self.by_task))
        return source if source in self.by_task else UNNAMED

    def own(self, sources: Sequence[str]) -> Tensor:
        """[sources, labels] bool: which labels the rows of each source may have."""
        import torch

        mask = torch.zeros(len(sources), len(self.names), dtype=torch.bool)
        for row, source in enumerate(sources):
            own = self.range_of(source)
            mask[row, own.start : own.stop] = True
        return mask

    def number(self, source: str, label: str) -> int:
        """Raises ValueError if rows of `source` may not have it."""
        return self.range_of(source).start + self.of(source).index(label)


def run_labels(
    data: DataConfig, stage: HeadConfig | VerbalizeConfig, train: Mixture | None, validation: Mixture | None
) -> Labels:
    """The labels of a run: `stage.labels`, else those of the training rows; one where a number is to be predicted.

    Raises:
        UserError: a row has a label that is not among them, or there are no labels to be had.
    """
    if isinstance(stage, RewardConfig):
        return Labels({UNNAMED: [NUMBER]})
    tasks = list(dict.fromkeys(source.task or UNNAMED for source in training_sources(data)))
    if getattr(stage, "problem_type", None) is ProblemType.regression:
        return Labels({task: [NUMBER] for task in tasks})
    labels = Labels({task: stage.labels or _trained(task, tasks, train) for task in tasks})
    for task, names in labels.by_task.items():
        _check_number(task, names)
    for examples in (train, validation):
        if examples is not None:
            check_rows(labels, examples)
    for label in getattr(stage, "class_weights", ()):
        if label not in labels.names:
            fix = f"{did_you_mean(label, labels.names)}labels: {', '.join(labels.names[:20])}"
            raise UserError("is no label of the data", where=f"stage.class_weights.{label}", fix=fix)
    return labels


def _trained(task: str, tasks: Sequence[str], train: Mixture | None) -> list[str]:
    """The labels of the training rows of a task, in order."""
    assert train is not None  # `stage_checks` asks for stage.labels where rows stream
    counts = [
        count
        for source, count in train.label_counts.items()
        if len(tasks) == 1 or (source if source in tasks else UNNAMED) == task
    ]
    return ordered(sum(counts, Counter()))


def class_weights(stage: ClassifyConfig, train: Mixture | None) -> dict[str, float] | None:
    """Label -> how much its examples count. Balanced ones are those of scikit-learn: the number of examples, divided
    by the number of labels and by the number of examples with this one."""
    if not stage.balanced or train is None:
        return dict(stage.class_weights) or None
    counts = sum(train.label_counts.values(), Counter())
    return {label: counts.total() / (len(counts) * count) for label, count in counts.items()}


def ordered(labels: Iterable[str]) -> list[str]:
    """Whole numbers by size, everything else by character."""
    names = list(labels)
    return sorted(names, key=int) if all(map(_is_whole_number, names)) else sorted(names)


def check_rows(labels: Labels, examples: Mixture) -> None:
    """Raises UserError if an example has a label that is not among `labels`."""
    for source, counts in examples.label_counts.items():
        if len(labels.by_task) > 1 and source not in labels.by_task and UNNAMED not in labels.by_task:
            fix = f"data.validation=0.1 takes a share of each task: {', '.join(labels.by_task)}"
            raise UserError(f"{source!r} is none of the tasks that are trained", where="data.validation", fix=fix)
        known = labels.of(source)
        for label in counts.keys() - set(known):
            i = next(i for i in range(len(examples)) if label in examples[i].labels)
            raise UserError(
                f"the label {label!r} is none of {', '.join(known[:20])}",
                where=examples.origin(i),
                fix=f"{did_you_mean(label, known)}mend the row, or name all labels: stage.labels=[...]",
            )


def _check_number(task: str, names: list[str]) -> None:
    of_task = f" of {task}" if task else ""
    if len(names) < 2:
        raise UserError(
            f"all rows{of_task} have the label {names[0]!r}" if names else f"no row{of_task} has a label",
            where="data",
            fix="rows of two labels or more; or name them all: stage.labels=[negative,positive]",
        )
    if len(names) > MOST:
        raise UserError(
            f"the rows{of_task} have {len(names):,} labels, such as {names[0]!r} and {names[1]!r}",
            where="data",
            fix="stage.problem_type=regression for numbers; or map another column with data.columns.label",
        )


def _is_whole_number(text: str) -> bool:
    return text.lstrip("-").isdecimal() and text.isascii()
