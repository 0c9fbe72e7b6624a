"""Data sets that the `datasets` library reads: from the Hub, and from folders that `save_to_disk` wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli.config.data import SourceConfig
from tunecli.config.data_files import SUFFIXES
from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.data.rows import Row

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

BATCH_ROWS = 1000


def hub_rows(source: SourceConfig, *, streaming: bool) -> Iterator[Row]:
    """`streaming` downloads while it reads; the order is the same."""
    dataset = _load_hub(source.path, source.subset, source.split, source.revision, streaming)
    try:
        yield from _rows(source.path, dataset)
    except Exception as error:  # the network and the files' own readers raise what they like
        raise _hub_error(source.path, error) from error


def hub_fingerprint(source: SourceConfig) -> str:
    return f"hub-{_load_hub(source.path, source.subset, source.split, source.revision, False)._fingerprint}"


def saved_rows(folder: Path, source: SourceConfig) -> Iterator[Row]:
    """The rows of a folder that `save_to_disk` wrote; of its split `source.split` if it has splits."""
    return _rows(source.path, _load_saved(folder, source))


def saved_fingerprint(folder: Path, source: SourceConfig) -> str:
    return f"saved-{_load_saved(folder, source)._fingerprint}"


def _rows(name: str, dataset: Dataset | IterableDataset) -> Iterator[Row]:
    """Labels by their names, where the set has them."""
    number = 0
    labels = {
        column: names for column, feature in (dataset.features or {}).items() if (names := _label_names(feature))
    }
    for batch in dataset.iter(BATCH_ROWS):
        columns = list(batch)
        for values in zip(*batch.values(), strict=True):
            number += 1
            row = dict(zip(columns, values, strict=True))
            yield Row(name, number, row | {column: _named(row[column], names) for column, names in labels.items()})


def _label_names(feature: Any) -> list[str] | None:
    """Of a column of labels, or of lists of labels."""
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def _named(value: Any, names: list[str]) -> Any:
    """A missing label is a number below 0, which stays as it is."""
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


@lru_cache(maxsize=8)
def _load_hub(
    path: str, subset: str | None, split: str, revision: str | None, streaming: bool
) -> Dataset | IterableDataset:
    import datasets

    try:
        return datasets.load_dataset(path, name=subset, split=split, revision=revision, streaming=streaming)
    except Exception as error:  # `datasets` raises a dozen kinds, down to bare ValueError
        raise _hub_error(path, error) from error


def _load_saved(folder: Path, source: SourceConfig) -> Dataset:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        fix = "write it again with `save_to_disk`"
        raise UserError(f"cannot be loaded: {_reason(error)}", where=source.path, fix=fix) from error
    if isinstance(loaded, datasets.Dataset):
        loaded = datasets.DatasetDict({"train": loaded})
    if source.split not in loaded:
        fix = f"{did_you_mean(source.split, loaded)}it has: {', '.join(loaded)}"
        raise UserError(f"has no split {source.split!r}", where=source.path, fix=fix)
    return loaded[source.split]


def _hub_error(path: str, error: Exception) -> UserError:
    from datasets.exceptions import DatasetNotFoundError

    reason = _reason(error)
    where = f"data set {path}"
    if isinstance(error, ConnectionError) or re.search("reach the Hub|offline|ConnectionError|resolve", reason):
        return UserError(
            f"the Hub cannot be reached and there is no copy in the cache ({reason})",
            where=where,
            fix=f"check the network, HF_ENDPOINT and HF_HUB_OFFLINE; a local file must end in {SUFFIXES}",
        )
    if isinstance(error, DatasetNotFoundError):
        return UserError(
            f"not on the Hub, or private ({reason})",
            where=where,
            fix=f"check the id; `hf auth login` for a private set; a local file must end in {SUFFIXES}",
        )
    return UserError(reason, where=where, fix="check data.subset, data.split and data.revision")


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
