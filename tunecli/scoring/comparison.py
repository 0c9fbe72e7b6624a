"""Several models on the same rows: by how much each differs from the first, and whether that may be chance.

The paired bootstrap (Efron and Tibshirani, 1993; for language technology Koehn, 2004) draws the same rows for both.
Shares of rows that are right have Agresti and Min's interval (2005) and McNemar's test (1947), exact, as only the
rows count that one of both has right: how likely such a split is by coin.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunecli.config.counted import counted
from tunecli.config.errors import UserError
from tunecli.config.paths import display
from tunecli.engine.run_names import names_of
from tunecli.evaluation.kinds import Kind
from tunecli.evaluation.records import Record
from tunecli.evaluation.uncertainty import Difference, McNemar, Metric, differences_of, mcnemar, metrics_of
from tunecli.peft_methods.source import find_source
from tunecli.scoring import Proceed, files, score

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    name: str
    metrics: dict[str, Metric]
    differences: dict[str, Difference]
    """this one minus the first; empty for the first"""
    mcnemar: McNemar | None
    """None for the first, and of what is not right or wrong as a whole"""


@dataclass(frozen=True, slots=True)
class Comparison:
    data: str
    examples: int
    runs: list[Compared]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def metrics(self) -> list[str]:
        """That all of them have."""
        return [name for name in self.runs[0].metrics if all(name in each.metrics for each in self.runs)]


def compare(
    paths: Sequence[str], words: Sequence[str], *, proceed: Proceed = lambda what, done: True, show_progress: bool
) -> Comparison:
    """Score what `paths` name on the same data, and compare the first with each of the others.

    Args:
        paths: runs and models, which are scored now; or folders of evaluations, whose predictions are read.

    Raises:
        UserError: one cannot be scored, or they have no rows in common.
    """
    names = _names(paths)
    found = [_evaluated(path, words, proceed, show_progress) for path in dict.fromkeys(paths)]
    by_path = dict(zip(dict.fromkeys(paths), found, strict=True))
    return compared(names, [by_path[path] for path in paths])


def compared(names: Sequence[str], evaluations: Sequence[tuple[dict[str, Any], list[Record]]]) -> Comparison:
    """
    Args:
        evaluations: result and records of each of `names`, of the first first.

    Raises:
        UserError: they answer in different ways, or have no rows in common.
    """
    results = [result for result, _ in evaluations]
    kinds = {result["kind"] for result in results}
    if len(kinds) > 1:
        raise UserError(
            f"they answer in different ways: {', '.join(sorted(kinds))}", fix="compare models of the same stage"
        )
    kind = Kind(results[0]["kind"])
    records, notes = _common([own for _, own in evaluations], kind)
    first, *others = records
    runs = [Compared(names[0], metrics_of(first, kind), {}, None)]
    for name, own in zip(names[1:], others, strict=True):
        different = differences_of(first, own, kind)
        runs.append(Compared(name, metrics_of(own, kind), different, mcnemar(first, own, kind)))
    return Comparison(results[0]["data"]["name"], len(first), runs, notes)


def _names(paths: Sequence[str]) -> list[str]:
    """The shortest that tell them apart; the same one again gets a number."""
    unique = list(dict.fromkeys(paths))
    short = dict(zip(unique, names_of(unique), strict=True))
    return [
        short[path] if path not in paths[:i] else f"{short[path]} ({paths[:i].count(path) + 1})"
        for i, path in enumerate(paths)
    ]


def _evaluated(
    path: str, words: Sequence[str], proceed: Proceed, show_progress: bool
) -> tuple[dict[str, Any], list[Record]]:
    folder = Path(path).expanduser()
    if files.is_evaluation(folder):
        if words:
            what = f"is an evaluation that was made already, and {words[0]} cannot change it"
            raise UserError(what, where=display(folder), fix="name the run itself")
        return files.read(folder)
    scores = score(path, words, gap=False, proceed=proceed, show_progress=show_progress)
    if os.environ.get("RANK", "0") == "0":
        files.write(scores, files.home(find_source(path), scores.data["name"]))
    return scores.as_json(), scores.records


def _common(each: Sequence[list[Record]], kind: Kind) -> tuple[list[list[Record]], list[str]]:
    """The records of the rows that all have, in the order of the first.

    Raises:
        UserError: there are none.
    """
    keyed = [_keyed(records, kind) for records in each]
    shared = [key for key in keyed[0] if all(key in other for other in keyed[1:])]
    if not shared:
        fix = "name the data: tune eval --compare RUN RUN data.path=FILE"
        raise UserError("they were not scored on the same rows", fix=fix)
    most = max(map(len, each))
    fewer = f"only the rows count that all have: {counted(len(shared), 'row')}, of up to {most:,}"
    notes = [fewer] if len(shared) < most else []
    return [[records[key] for key in shared] for records in keyed], notes


def _keyed(records: Sequence[Record], kind: Kind) -> dict[Key, Record]:
    """By file, row, and which of its examples it is; and by what is right, where that is written alike."""
    found: dict[Key, Record] = {}
    seen: dict[Key, int] = {}
    for record in records:
        place = (record["file"], record["row"], record.get("task"))
        seen[place] = seen.get(place, 0) + 1
        expected = None if kind.of_tokens else repr(record["expected"])
        found[*place, seen[place], expected] = record
    return found
