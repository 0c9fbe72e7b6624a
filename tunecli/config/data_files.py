"""Which names mean data files here, and of which kind. Only the standard library: `checks` and `data` both ask."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path, PurePath

KINDS = {
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".conll": "conll",
    ".bio": "conll",
    ".iob2": "conll",
}
"""Suffix -> key of the READERS table of `tunecli.data.readers`."""

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
"""May follow one of KINDS, as in train.jsonl.gz; train.zip alone is told by the file in it."""

SUFFIXES = (
    ".jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt, .md or .conll, and then .gz, .bz2, .xz, .zst, .lz4 or .zip"
)
"""For messages."""

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words in the names of files and folders -> the split they mean, as `datasets` reads them."""

LOCAL_PREFIXES = ("./", "../", "/", "~", "assets/")


def kind_of(name: str) -> tuple[str | None, str]:
    """`train.csv.gz` -> ("csv", ".gz"), `train.xlsx` -> (None, "")."""
    path = PurePath(name.lower())
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    return KINDS.get(PurePath(path.name.removesuffix(compression)).suffix), compression


def is_data_file(name: str) -> bool:
    """Whether a file of this name can be read."""
    kind, compression = kind_of(name)
    return kind is not None or compression == ".zip"


def is_glob(path: str) -> bool:
    """Whether `path` is a pattern; a file that has just this name is none."""
    return glob.has_magic(path) and not Path(path).expanduser().exists()


def is_local(path: str) -> bool:
    """Whether a model or data path means something on this disk, not an id on the Hub."""
    named = path.startswith(LOCAL_PREFIXES) or kind_of(path) != (None, "") or glob.has_magic(path)
    return named or Path(path).expanduser().exists()


def exists(path: str) -> bool:
    """Whether there is such a file or folder, or one that matches the pattern."""
    return bool(matches(path)) if is_glob(path) else Path(path).expanduser().exists()


def matches(pattern: str) -> list[Path]:
    """What a pattern such as `data/*.jsonl` or `~/data/**/*.csv` finds, sorted."""
    return [Path(found) for found in sorted(glob.glob(os.path.expanduser(pattern), recursive=True))]


def split_of(file: PurePath) -> str:
    """`data/test-00000.parquet`, `dev.jsonl`, `validation/1.csv` -> the split that the name or the folder tells; else
    train."""
    for name in (file.stem, file.parent.name):
        for word in re.split(r"[^a-z]+", name.lower()):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return "train"


def has_splits(path: str) -> bool:
    """Whether `data.split` means something: on the Hub, in a DatasetDict that `save_to_disk` wrote, and in a folder
    whose files are named after splits."""
    folder = Path(path).expanduser()
    if path.startswith("builtin:"):
        return False
    if not is_local(path) or (folder / "dataset_dict.json").is_file():
        return True
    return folder.is_dir() and any(split_of(file.relative_to(folder)) != "train" for file in folder.rglob("*"))


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
