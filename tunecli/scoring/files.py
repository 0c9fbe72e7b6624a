"""What an evaluation leaves behind: `RUN/evaluations/NAME/` with result.json, predictions.jsonl and report.html."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tunecli.config.errors import UserError
from tunecli.evaluation.records import Record
from tunecli.peft_methods.source import Source
from tunecli.scoring import Scores

if TYPE_CHECKING:
    from tunecli.scoring.comparison import Comparison

FOLDER = "evaluations"
RESULT, PREDICTIONS, PAGE = "result.json", "predictions.jsonl", "report.html"


def home(source: Source, name: str) -> Path:
    """Of a run, in its directory; of a model of somebody else's, below the current folder."""
    if source.run_dir is not None:
        return source.run_dir / FOLDER / name
    model = re.sub(r"[^\w.+-]+", "_", source.path.strip("/.~")) or "model"
    return Path(FOLDER) / model / name


def write(scores: Scores, folder: Path) -> None:
    """Raises UserError where the folder cannot be written."""
    from tunecli.scoring.page import write_page

    made(folder)
    with written(folder / PREDICTIONS) as file:
        file.writelines(as_lines(scores.records))
    with written(folder / RESULT) as file:
        file.write(json.dumps(scores.as_json(), indent=2, ensure_ascii=False) + "\n")
    write_page(scores, folder / PAGE)


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Raises UserError where the folder cannot be written."""
    from tunecli.scoring import page

    made(folder)
    with written(folder / RESULT) as file:
        file.write(json.dumps(comparison.as_json(), indent=2, ensure_ascii=False) + "\n")
    page.write_comparison(comparison, folder / PAGE)


def as_lines(records: Iterable[Record]) -> Iterator[str]:
    for record in records:
        yield json.dumps(record, ensure_ascii=False) + "\n"


def is_evaluation(folder: Path) -> bool:
    return (folder / RESULT).is_file() and (folder / PREDICTIONS).is_file()


def read(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """What `write` wrote. Raises UserError where it is damaged."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        with (folder / PREDICTIONS).open(encoding="utf-8") as file:
            return result, [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=str(folder), fix="evaluate again: tune eval RUN") from None


def made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be made: {error.strerror}", where=str(folder), fix="--out DIR") from None


@contextmanager
def written(path: Path) -> Iterator[TextIO]:
    """A file whose readers see the old one or the whole new one."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        beside.replace(path)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(path), fix="another path") from None
    finally:
        beside.unlink(missing_ok=True)
