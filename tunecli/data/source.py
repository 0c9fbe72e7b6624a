"""Where rows come from: local .json and .jsonl files, the Hub through `datasets`, rows shipped in the package."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli.config.data import DataConfig
from tunecli.config.errors import UserError
from tunecli.config.nearest import nearest

if TYPE_CHECKING:
    from datasets import Dataset

BUILTIN = {"builtin:smoke": Path(__file__).parent / "builtin" / "smoke.jsonl"}
LOCAL_SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True, slots=True)
class Row:
    source: str
    """The path or Hub id, as the user wrote it."""
    number: int
    """From 1: the line of a .jsonl file, the element of a .json list, the row of a Hub set."""
    values: dict[str, Any]

    @property
    def where(self) -> str:
        return f"{self.source} row {self.number}"


def read_rows(data: DataConfig, path: str) -> Iterator[Row]:
    """The first `data.max_samples` rows of `path`: `data.path`, or `data.validation` (also as `split:NAME`).

    Raises UserError, with file and row, for what cannot be read.
    """
    return islice(_all_rows(data, path), data.max_samples)


def fingerprint(data: DataConfig, path: str) -> str:
    """A hash of the content: of the bytes of a local file, of what the Hub serves for this revision otherwise."""
    file = _local_file(path)
    if file is None:
        return f"hub-{_hub_dataset(data, path)._fingerprint}"
    digest = hashlib.blake2b(digest_size=16)
    with _open(file, path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _all_rows(data: DataConfig, path: str) -> Iterator[Row]:
    file = _local_file(path)
    if file is None:
        rows = enumerate(_hub_dataset(data, path), start=1)
        return (Row(path, number, values) for number, values in rows)
    return _json_lines(file, path) if file.suffix == ".jsonl" else _json_list(file, path)


def _local_file(path: str) -> Path | None:
    """The file behind `path`; None for a Hub set."""
    if path in BUILTIN:
        return BUILTIN[path]
    if path.startswith("builtin:"):
        raise UserError("no such built-in data set", where=path, fix=f"use one of: {', '.join(BUILTIN)}")
    file = Path(path).expanduser()
    if file.suffix in LOCAL_SUFFIXES:
        return file
    if file.is_file():
        raise UserError(
            f"cannot read a {file.suffix or 'file without a suffix'}",
            where=path,
            fix="convert it to .jsonl (one object per line) or .json (a list of objects)",
        )
    if path.startswith(("/", ".", "~")) and not file.exists():
        raise UserError("no such file or folder", where=path, fix=_near_names(file))
    return None


def _open(file: Path, path: str) -> Any:
    try:
        return file.open("rb")
    except FileNotFoundError:
        raise UserError("no such file", where=path, fix=_near_names(file)) from None
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}", where=path, fix="check the path and permissions"
        ) from None


def _near_names(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either: check data.path"
    names = sorted(found.name for found in folder.iterdir() if found.suffix in LOCAL_SUFFIXES)
    if near := nearest(file.name, names, count=3):
        return f"did you mean {' or '.join(str(folder / name) for name in near)}?"
    listed = ", ".join(names[:10])
    return f"{folder} has these data files: {listed}" if listed else f"{folder} has no .json or .jsonl file"


def _json_lines(file: Path, path: str) -> Iterator[Row]:
    with _open(file, path) as stream:
        # Bytes, because a text file would also break lines at \r and at what str.splitlines breaks at.
        for number, line in enumerate(stream, start=1):
            if line.strip():
                where = f"{path} row {number}"
                yield Row(path, number, _object(_parse(line, where), where))


def _json_list(file: Path, path: str) -> Iterator[Row]:
    with _open(file, path) as stream:
        values = _parse(stream.read(), path)
    if not isinstance(values, list):
        raise UserError(
            f"holds {_kind(values)}, not a list of objects",
            where=path,
            fix="wrap it as [{...}, {...}], or write one object per line and name the file .jsonl",
        )
    for number, value in enumerate(values, start=1):
        yield Row(path, number, _object(value, f"{path} row {number}"))


def _parse(raw: bytes, where: str) -> Any:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise UserError(
            f"not UTF-8 (byte 0x{byte:02x} at position {error.start})", where=where, fix="save the file as UTF-8"
        ) from None
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {_json_problem(error)}", where=where, fix=_json_fix(error)) from None
    except UnicodeEncodeError:
        raise UserError(
            "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character",
            where=where,
            fix="write the character itself, or both halves",
        ) from None
    return value


def _json_problem(error: json.JSONDecodeError) -> str:
    position = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno}"
    return f"{error.msg} at {position}"


def _json_fix(error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data" and error.lineno > 1:
        return "this looks like one object per line: name the file .jsonl"
    return 'write JSON: double quotes, no comma after the last item, "\\n" for a line break inside text'


def _object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise UserError(f"is {_kind(value)}, not an object", where=where, fix='each row must be {"column": value, ...}')


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _hub_dataset(data: DataConfig, path: str) -> Dataset:
    if path.startswith("split:"):
        return _load_hub(data.path, data.subset, path.removeprefix("split:"), data.revision)
    return _load_hub(path, data.subset, data.split, data.revision)


@lru_cache(maxsize=4)
def _load_hub(path: str, subset: str | None, split: str, revision: str | None) -> Dataset:
    import datasets

    if path in BUILTIN or Path(path).suffix in LOCAL_SUFFIXES:
        raise UserError(
            f"`split:{split}` needs data.path to be a Hub set, and it is {path}",
            where="data.validation",
            fix="name a second file: data.validation=FILE.jsonl",
        )
    try:
        return datasets.load_dataset(path, name=subset, split=split, revision=revision)
    except Exception as error:  # `datasets` raises a dozen kinds, down to bare ValueError
        raise _hub_error(path, error) from error


def _hub_error(path: str, error: Exception) -> UserError:
    from datasets.exceptions import DatasetNotFoundError

    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    where = f"data set {path}"
    if isinstance(error, ConnectionError) or re.search("reach the Hub|offline|ConnectionError|resolve", reason):
        return UserError(
            f"the Hub cannot be reached and there is no copy in the cache ({reason})",
            where=where,
            fix="check the network, HF_ENDPOINT and HF_HUB_OFFLINE; a local file must end in .json or .jsonl",
        )
    if isinstance(error, DatasetNotFoundError):
        return UserError(
            f"not on the Hub, or private ({reason})",
            where=where,
            fix="check the id; `hf auth login` for a private set; a local file must end in .json or .jsonl",
        )
    return UserError(reason, where=where, fix="check data.subset, data.split and data.revision")
