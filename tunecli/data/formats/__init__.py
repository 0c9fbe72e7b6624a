"""The formats: each a module with one function from a row's values to a canonical example."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunecli.config.data_checks import FORMATS as READS
from tunecli.config.data_checks import OF_JUDGEMENTS, formats_for
from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.config.stage import Task
from tunecli.data.examples import Example, Unusable
from tunecli.data.formats import (
    alpaca,
    custom,
    judged,
    labelled,
    messages,
    prompt_completion,
    prompts,
    row,
    seq2seq,
    sharegpt,
    tagging,
    text,
)
from tunecli.data.formats.columns import mapped, missing, no_column
from tunecli.data.formats.detect import LABELS, candidates

FORMATS: dict[str, Callable[[dict[str, Any]], Example]] = {
    "messages": messages.convert,
    "sharegpt": sharegpt.convert,
    "alpaca": alpaca.convert,
    "prompt_completion": prompt_completion.convert,
    "text": text.convert,
    "classification": labelled.convert,
    "pair_classification": labelled.convert_pair,
    "tagging": tagging.convert,
    "seq2seq": seq2seq.convert,
    "columns": row.convert,
    "preference": judged.convert_pair,
    "scored": judged.convert_scored,
    "feedback": judged.convert_feedback,
    "prompts": prompts.convert,
}
_OTHERS = tuple(name for name in FORMATS if name not in OF_JUDGEMENTS)


@dataclass(frozen=True, slots=True)
class Format:
    """How the rows of one source become examples: call it with a row's values. Raises Unusable for a bad row."""

    name: str
    columns: dict[str, str] = field(default_factory=dict)
    """names that the format expects -> a column, or a text with columns in braces"""
    detected: bool = False
    """whether the columns told it"""
    note: str = ""
    """what a user should know: the file of a custom function, a column that is not read"""
    known: tuple[str, ...] = _OTHERS
    """formats of the columns that a custom function may return"""

    def __call__(self, values: dict[str, Any]) -> Example:
        if self.columns:
            values = mapped(values, self.columns)
        if not self.name.startswith(custom.PREFIX):
            return FORMATS[self.name](values)
        found = custom.call(self.name, values)
        return _by_its_keys(found, self.name, self.known) if isinstance(found, dict) else found

    @property
    def fingerprint(self) -> list[Any]:
        """Of what it makes of a row: its name, its columns, and the content of the file of a custom function."""
        code = Path(custom.file_of(self.name)).read_bytes() if self.name.startswith(custom.PREFIX) else b""
        return [self.name, sorted(self.columns.items()), hashlib.blake2b(code, digest_size=16).hexdigest()]

    def __str__(self) -> str:
        """As in "alpaca, told from the columns (instruction: question, output: answer)"."""
        how = ", told from the columns" if self.detected else ""
        columns = ", ".join(f"{name}: {column}" for name, column in self.columns.items())
        return f"{self.name}{how}{f' ({columns})' if columns else ''}"


FOR_LANGUAGE_MODELS = formats_for(Task.causal_lm)


def choose_format(
    name: str, columns: dict[str, str], first: dict[str, Any], known: Collection[str] = FOR_LANGUAGE_MODELS
) -> Format:
    """The format `name`, or for "auto" the only one of `known` that can read the `first` row. Raises UserError."""
    for expected, source in columns.items():
        absent = missing(first, source)
        if absent is not None:
            what, fix = no_column(first, expected, absent)
            raise UserError(what, where=f"data.columns.{expected}", fix=fix)
    if name.startswith(custom.PREFIX):
        note = f"{name} is in {custom.file_of(name)}"
        return Format(name, columns, note=note, known=tuple(known) if {*known} & {*OF_JUDGEMENTS} else _OTHERS)
    if name == "auto":
        return _detected(columns, first, known)
    if name not in FORMATS:
        fix = f"{did_you_mean(name, FORMATS)}the formats are: auto, {', '.join(FORMATS)}, custom:module:function"
        raise UserError(f"no format {name!r}", where="data.format", fix=fix)
    return Format(name, columns)


def _detected(columns: dict[str, str], first: dict[str, Any], known: Collection[str]) -> Format:
    found = candidates(first, columns, known) or _whatever_the_case(first, columns, known)
    if len(found) == 1:
        name, renamed = found[0]
        note = _labels_not_read(first) if name == "text" else ""
        return Format(name, {**_resolved(renamed, columns), **columns}, detected=True, note=note)
    if found:
        raise UserError(
            f"the columns fit several formats: {', '.join(first)}",
            where="data.format",
            fix=f"choose one: {', or '.join(_overrides(name, renamed) for name, renamed in found)}",
        )
    raise UserError(
        f"no format reads these columns: {', '.join(first) or 'none'}",
        where="data.format",
        fix=_how_to_map(known),
    )


def _labels_not_read(first: dict[str, Any]) -> str:
    """Said of labelled rows whose texts alone are learnt."""
    names = [name for name in first if name.strip().lower() in LABELS]
    return f"{names[0]} is not read; stage=classify learns labels" if names else ""


def _how_to_map(known: Collection[str]) -> str:
    if "seq2seq" in known:
        return "say which columns hold what: data.columns.source=COLUMN data.columns.target=COLUMN"
    if "preference" in known:
        return "name the columns of two answers: data.columns.chosen=COLUMN data.columns.rejected=COLUMN" + (
            ", or of an answer and its score: data.columns.completion=COLUMN data.columns.score=COLUMN"
            if "scored" in known
            else ""
        )
    if "feedback" in known or "prompts" in known:
        columns = ("prompt", "completion", "label") if "feedback" in known else ("prompt",)
        return f"say which columns hold what: {' '.join(f'data.columns.{column}=COLUMN' for column in columns)}"
    if "alpaca" not in known:
        formats = [" ".join(f"data.columns.{column}=COLUMN" for column in READS[name]) for name in known]
        return f"say which columns hold what: {', or '.join(formats)}"
    return (
        "say which columns hold question and answer: data.format=alpaca data.columns.instruction=COLUMN "
        "data.columns.output=COLUMN; or map data.columns.messages or data.columns.text"
    )


def _whatever_the_case(
    first: dict[str, Any], columns: dict[str, str], known: Collection[str]
) -> list[tuple[str, dict[str, str]]]:
    """The same for names in capitals and with blanks around them, as people write them in spreadsheets."""
    own = {name.strip().lower(): name for name in first}
    found = candidates({plain: first[name] for plain, name in own.items()}, columns, known)
    return [
        (
            name,
            {
                column: own[renamed.get(column, column)]
                for column in READS[name]
                if renamed.get(column, column) in own
            },
        )
        for name, renamed in found
    ]


def _resolved(renamed: dict[str, str], columns: dict[str, str]) -> dict[str, str]:
    """With names that are themselves mapped by the user replaced by what they are mapped to."""
    return {name: columns.get(column, column) for name, column in renamed.items()}


def _overrides(name: str, renamed: dict[str, str]) -> str:
    return " ".join([f"data.format={name}", *(f"data.columns.{new}={old}" for new, old in renamed.items())])


def _by_its_keys(values: dict[str, Any], name: str, known: Collection[str]) -> Example:
    """The example in what a custom function returned."""
    found = candidates(values, {}, known)
    if len(found) != 1:
        raise Unusable(
            f"{name} returns a dict with the keys {', '.join(map(str, values)) or 'none'}, "
            f"which {'fit several formats' if found else 'no format reads'}",
            "return the columns of one format, such as messages, or one of tunecli.data.examples",
        )
    format, renamed = found[0]
    return FORMATS[format](mapped(values, renamed))
