"""Where rows come from: local files, folders and patterns, the Hub, rows shipped in the package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tunecli.config.data import SampleBy, SourceConfig
from tunecli.config.data_files import (
    SPLIT_NAMES,
    SUFFIXES,
    is_data_file,
    is_glob,
    is_local,
    is_saved_dataset,
    kind_of,
    matches,
    split_of,
)
from tunecli.config.errors import UserError
from tunecli.config.nearest import nearest
from tunecli.data import hub
from tunecli.data.readers import read_file
from tunecli.data.readers.opened import DataFile
from tunecli.data.rows import BadRow, Row

BUILTIN = {f"builtin:{file.stem}": file for file in sorted((Path(__file__).parent / "builtin").glob("*.jsonl"))}

ABOUT_DATA = {"dataset_info.json", "dataset_infos.json"}
"""What `datasets` writes beside data."""


def read_rows(source: SourceConfig, sample_by: SampleBy, *, streaming: bool = False) -> Iterator[Row | BadRow]:
    """The first `source.max_samples` rows; a row that cannot be read counts, and comes as a BadRow.

    `sample_by`: what is one row of a text file. `streaming`: a Hub set is downloaded while it is read.
    Raises UserError where a whole file or set cannot be read.
    """
    return islice(_all_rows(source, sample_by, streaming), source.max_samples)


def fingerprint(source: SourceConfig, sample_by: SampleBy) -> str:
    """A hash of all that the rows follow from but `source.max_samples`: of the bytes of local files and how they are
    read, not of their names; of what the Hub serves for this revision."""
    if folder := _saved_folder(source):
        return hub.saved_fingerprint(folder, source)
    found = _data_files(source, sample_by)
    if not found:
        return hub.hub_fingerprint(source)
    digest = hashlib.blake2b(digest_size=16)
    for file in found:
        _update(digest, file)
    return digest.hexdigest()


def files(source: SourceConfig) -> list[Path]:
    """The data files behind `source.path`, in the order in which they are read; empty for what `datasets` reads:
    a Hub set, or a folder that `save_to_disk` wrote. Raises UserError if there is none."""
    path = source.path
    if path.startswith("builtin:") and path not in BUILTIN:
        raise UserError("no such built-in data set", where=path, fix=f"use one of: {', '.join(BUILTIN)}")
    if "://" in path:
        raise UserError("is an address on the web", where=path, fix="download it, and name the file")
    if path not in BUILTIN and (not is_local(path) or _saved_folder(source)):
        return []
    if path not in BUILTIN and Path(path).expanduser().is_dir():
        return _files_below(Path(path).expanduser(), path, source.split)
    if source.split != "train":
        raise UserError(
            f"the split {source.split!r} is asked for, and files have no splits",
            where=path,
            fix="name a second file (data.validation=FILE.jsonl); data.max_samples=N reads a part of one",
        )
    return [BUILTIN[path]] if path in BUILTIN else _local_files(path)


def file_names(source: SourceConfig, sample_by: SampleBy) -> list[str]:
    """What the rows say that they come from: the files as a user would find them, or the Hub id."""
    return [file.name for file in _data_files(source, sample_by)] or [source.path]


def _all_rows(source: SourceConfig, sample_by: SampleBy, streaming: bool) -> Iterator[Row | BadRow]:
    if folder := _saved_folder(source):
        yield from hub.saved_rows(folder, source)
        return
    found = _data_files(source, sample_by)
    if not found:
        yield from hub.hub_rows(source, streaming=streaming)
    for file in found:
        yield from read_file(file)


def _data_files(source: SourceConfig, sample_by: SampleBy) -> list[DataFile]:
    found = files(source)
    typed = source.path in BUILTIN or Path(source.path).expanduser() in found
    return [DataFile(path, source.path if typed else str(path), sample_by) for path in found]


def _saved_folder(source: SourceConfig) -> Path | None:
    folder = Path(source.path).expanduser()
    return folder if is_saved_dataset(folder) else None


def _update(digest: hashlib.blake2b, file: DataFile) -> None:
    sample_by = file.sample_by.value if file.kind == "text" else ""
    compression = kind_of(file.path.name)[1]
    digest.update(f"{file.kind} {compression} {sample_by} {file.path.stat().st_size}\n".encode())
    with file.path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)


def _local_files(path: str) -> list[Path]:
    file = Path(path).expanduser()
    if is_glob(path):
        found = [match for match in matches(path) if match.is_file() and is_data_file(match.name)]
        if not found:
            fix = f"check the pattern: * is any name, ** any folders; names of data files end in {SUFFIXES}"
            raise UserError("no data file matches", where=path, fix=fix)
        return found
    if not file.exists():
        named = kind_of(file.name) != (None, "")
        raise UserError("no such file" if named else "no such file or folder", where=path, fix=_near_names(file))
    return [file]


def _files_below(folder: Path, path: str, split: str) -> list[Path]:
    """The data files of a split; texts (README.md, LICENSE.txt) only where there is nothing else."""
    found = [file for file in sorted(folder.rglob("*")) if file.is_file() and _is_data(file.relative_to(folder))]
    if not found:
        fix = f"name a folder with data files; their names end in {SUFFIXES}"
        raise UserError("there is no data file in the folder", where=path, fix=fix)
    tables = [file for file in found if kind_of(file.name)[0] != "text"] or found
    splits = {file: split_of(file.relative_to(folder)) for file in tables}
    wanted = SPLIT_NAMES.get(split, split)
    if wanted not in splits.values():
        names = ", ".join(dict.fromkeys(splits.values()))
        raise UserError(f"the folder has no split {split!r}", where=path, fix=f"its files are of the splits: {names}")
    return [file for file in tables if splits[file] == wanted]


def _is_data(file: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.parts)
    return is_data_file(file.name) and not hidden and file.name not in ABOUT_DATA


def _near_names(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either: check data.path"
    names = sorted(found.name for found in folder.iterdir() if is_data_file(found.name))
    if near := nearest(file.name, names, count=3):
        return f"did you mean {' or '.join(str(folder / name) for name in near)}?"
    listed = ", ".join(names[:10])
    return f"{folder} has these data files: {listed}" if listed else f"{folder} has no data file"
