"""The examples of a run: one source or several end to end, training kept apart from validation."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tunecli.config.counted import counted
from tunecli.config.data import (
    DataConfig,
    Mixing,
    Overlap,
    SourceConfig,
    training_sources,
    validation_share,
    validation_source,
)
from tunecli.config.errors import UserError
from tunecli.data.dataset import TokenizedDataset, tokenized
from tunecli.data.encoded import Encoded
from tunecli.data.templates import apply_chat_template_choice
from tunecli.data.tokens import Encoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Mixture:
    """Examples of several sources, source after source; each example once, whatever the shares in training are."""

    def __init__(
        self,
        parts: Sequence[TokenizedDataset],
        names: Sequence[str],
        selected: Sequence[np.ndarray] | None = None,
        left_out: Sequence[dict[str, Any]] = (),
    ) -> None:
        """`names`: label of each part. `selected`: indices of its examples that take part; None: all."""
        self._parts = parts
        self._selected: Sequence[np.ndarray | None] = [None] * len(parts) if selected is None else selected
        sizes = [len(part) if kept is None else len(kept) for part, kept in self._pairs()]
        self.starts = np.cumsum([0, *sizes])
        """[parts + 1] int64: index of the first example of each part, and the end of the last"""
        self.names = list(dict.fromkeys(names))
        """the labels; parts of the same label are counted together"""
        self._source_of_part = np.array([self.names.index(name) for name in names], np.int32)
        self.sources = np.repeat(self._source_of_part, np.diff(self.starts))
        """[examples] int32 index into `names`"""
        self.formats = [part.format for part in parts]
        self.left_out = [entry for part in parts for entry in part.left_out] + list(left_out)
        """rows that are not used: source, row, why (bad | overlong | in validation), what, fix"""

    @cached_property
    def lengths(self) -> np.ndarray:
        """[examples] int64: tokens of each"""
        return self._column("lengths")

    @cached_property
    def trained_counts(self) -> np.ndarray:
        """[examples] int64: trained tokens of each"""
        return self._column("trained_counts")

    @cached_property
    def rows(self) -> np.ndarray:
        """[examples] int64: row in its file"""
        return self._column("rows")

    @cached_property
    def files(self) -> np.ndarray:
        """[examples] int64: a number for each file"""
        before = np.cumsum([0, *(part.num_files for part in self._parts)])
        columns = [part.files if kept is None else part.files[kept] for part, kept in self._pairs()]
        return np.concatenate([column + first for column, first in zip(columns, before, strict=False)])

    @cached_property
    def contents(self) -> np.ndarray:
        """[examples] int64: equal for rows of equal content"""
        return self._column("contents")

    @cached_property
    def truncated(self) -> np.ndarray:
        """[examples] bool"""
        return self._column("truncated").astype(np.bool_)

    @cached_property
    def adapters(self) -> np.ndarray:
        """[examples] int32: which adapter each is for; -1: all of them"""
        return self._column("adapters")

    @cached_property
    def label_counts(self) -> dict[str, Counter[str]]:
        """Source -> label -> how often it is that of an example or of a word; examples left out are counted too."""
        counts: dict[str, Counter[str]] = {name: Counter() for name in self.names}
        for part, number in zip(self._parts, self._source_of_part, strict=True):
            counts[self.names[number]] += part.label_counts
        return counts

    def _pairs(self) -> Iterator[tuple[TokenizedDataset, np.ndarray | None]]:
        return zip(self._parts, self._selected, strict=True)

    def _column(self, name: str) -> np.ndarray:
        columns = [getattr(part, name) if kept is None else getattr(part, name)[kept] for part, kept in self._pairs()]
        return columns[0] if len(columns) == 1 else np.concatenate(columns)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Encoded:
        part, i = self._home(index)
        return part[i]

    def origin(self, index: int) -> str:
        """File and row of an example, as in "train.jsonl row 17"."""
        part, i = self._home(index)
        return part.origin(i)

    def _home(self, index: int) -> tuple[TokenizedDataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        home = int(np.searchsorted(self.starts, index, side="right")) - 1
        i, kept = index - int(self.starts[home]), self._selected[home]
        return self._parts[home], i if kept is None else int(kept[i])

    def only(self, indices: np.ndarray) -> Mixture:
        """The examples of these ascending `indices`."""
        selected = []
        for (start, end), (_, kept) in zip(pairwise(self.starts), self._pairs(), strict=True):
            own = indices[(indices >= start) & (indices < end)] - start
            selected.append(own if kept is None else kept[own])
        names = [self.names[number] for number in self._source_of_part]
        own_left_out = self.left_out[sum(len(part.left_out) for part in self._parts) :]
        return Mixture(self._parts, names, selected, own_left_out)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Totals, and what the data were read from."""
        return {
            "rows": sum(part.summary["rows"] for part in self._parts),
            "examples": len(self),
            "tokens": int(self.lengths.sum()),
            "trained_tokens": int(self.trained_counts.sum()),
            "truncated": int(self.truncated.sum()),
            "split_rows": sum(part.summary["split_rows"] for part in self._parts),
            "left_out": dict(Counter(entry["why"] for entry in self.left_out)),
            "formats": [str(part.format) for part in self._parts],
            "fingerprints": [part.summary["fingerprint"] for part in self._parts],
        }

    @cached_property
    def found(self) -> dict[str, tuple[int, list[str]]]:
        """What is odd about rows that are used -> how many, and the first of them."""
        found: dict[str, tuple[int, list[str]]] = {}
        for part in self._parts:
            for kind, (count, places) in part.summary["found"].items():
                before, known = found.get(kind, (0, []))
                found[kind] = (before + count, [*known, *places])
        return found


def build(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, *, show_progress: bool
) -> tuple[Mixture | None, Mixture | None]:
    """The training and validation examples of `data`, from the cache or tokenized now. No row is in both.

    With `data.streaming` no training examples: `tunecli.data.feed.stream` reads them.

    Applies `data.chat_template` to the tokenizer, so that what is saved with the model is what it was trained with.

    Raises:
        UserError: a source cannot be read or has no example, or a row cannot be used and `on_bad_row` is `error`.
    """
    apply_chat_template_choice(tokenizer, data.chat_template)

    def of(source: SourceConfig) -> TokenizedDataset:
        return tokenized(
            source,
            tokenizer,
            encoding,
            sample_by=data.sample_by,
            on_bad_row=data.on_bad_row,
            num_workers=data.num_workers,
            show_progress=show_progress,
        )

    validation = validation_source(data)
    held_out = Mixture([of(validation)], labels([validation])) if validation else None
    if held_out is not None and not len(held_out):
        raise _empty(data.validation or "", held_out)
    if data.streaming:
        return None, held_out
    sources = training_sources(data)
    parts, names = [of(source) for source in sources], labels(sources)
    for part, source in zip(parts, sources, strict=True):
        if not len(part):
            raise _empty(source.path, part)
    if (share := validation_share(data)) is not None:
        return _split(parts, names, share)
    if held_out is not None and data.overlap is Overlap.drop:
        return _without(parts, names, held_out.contents), held_out
    return Mixture(parts, names), held_out


def shares(data: DataConfig, sizes: Sequence[int]) -> list[float] | None:
    """How often each source of `data.mix` comes up; None where every example comes up once per epoch.

    The temperature is that of multilingual T5 (Xue et al., 2021) and T5 (Raffel et al., 2020, section 3.5.2).
    """
    if not data.mix or data.mixing is Mixing.proportional:
        return None
    if data.mixing is Mixing.equal:
        return [1.0] * len(sizes)
    if data.mixing is Mixing.temperature:
        return [size ** (1 / data.mixing_temperature) for size in sizes]
    return [source.weight or 0.0 for source in data.mix]


def labels(sources: Sequence[SourceConfig]) -> list[str]:
    """The names of the sources in the metrics: their tasks, or else what tells the ends of their paths apart."""
    plain = [re.sub(r"(\.[a-z0-9]+)+$", "", source.path.rstrip("/")) or source.path for source in sources]
    named = [source.task or _short(path, plain) for source, path in zip(sources, plain, strict=True)]
    paths: dict[str, set[str]] = defaultdict(set)
    for source, name in zip(sources, named, strict=True):
        paths[name].add(source.task or source.path)
    return [name if len(paths[name]) == 1 else source.path for source, name in zip(sources, named, strict=True)]


def _short(path: str, others: Sequence[str]) -> str:
    """The shortest end of `path` that is not the end of another one."""
    own, rest = re.split("[/:]", path), [re.split("[/:]", other) for other in others if other != path]
    lengths = (n for n in range(1, len(own)) if all(own[-n:] != other[-n:] for other in rest))
    return "/".join(own[-next(lengths, len(own)) :])


def is_held_out(contents: np.ndarray, share: float) -> np.ndarray:
    """[examples] bool: the examples whose content falls into the share that is held out for validation."""
    return contents.astype(np.int64).view(np.uint64) < np.uint64(share * 2.0**64)


def _split(parts: list[TokenizedDataset], names: list[str], share: float) -> tuple[Mixture, Mixture]:
    """By content, so that equal rows fall on the same side whatever their source, and more rows move none."""
    held = [is_held_out(part.contents, share) for part in parts]
    if not any(mask.any() for mask in held):
        # Few rows, none of which fell below the share: the one that came nearest.
        lowest = min(int(part.contents.view(np.uint64).min()) for part in parts)
        held = [part.contents.view(np.uint64) == lowest for part in parts]
    train = Mixture(parts, names, [np.flatnonzero(~mask) for mask in held])
    validation = Mixture(parts, names, [np.flatnonzero(mask) for mask in held])
    if not len(train):
        raise UserError(
            f"a share of {share:g} leaves none of {counted(len(validation), 'example')} for training: "
            "too few, or all equal",
            where="data.validation",
            fix="a smaller share, a second file, or data.validation=null",
        )
    return train, validation


def _without(parts: list[TokenizedDataset], names: list[str], contents: np.ndarray) -> Mixture:
    """The parts without the examples of rows that are validation rows too."""
    kept, left_out = [], []
    for part in parts:
        both = np.isin(part.contents, contents)
        kept.append(np.flatnonzero(~both))
        places = dict.fromkeys(part.origin(int(i)) for i in np.flatnonzero(both))
        left_out += [in_validation(place) for place in places]
    train = Mixture(parts, names, kept, left_out)
    if not len(train):
        raise UserError(
            "every training row is a validation row too",
            where="data.validation",
            fix="name other rows, a share (data.validation=0.1), or keep both with data.overlap=keep",
        )
    return train


def in_validation(origin: str) -> dict[str, Any]:
    """The entry in the list of rows that are left out."""
    source, _, row = origin.rpartition(" row ")
    return {
        "source": source,
        "row": int(row),
        "why": "in validation",
        "what": "is a validation row too",
        "fix": "remove it from one of the two, or set data.overlap=keep",
    }


def _empty(path: str, found: Mixture | TokenizedDataset) -> UserError:
    if not found.left_out:
        return UserError("holds no rows", where=path, fix="check the file, and data.max_samples")
    first = found.left_out[0]
    return UserError(
        f"none of its {counted(len(found.left_out), 'row')} can be used; row {first['row']}: {first['what']}",
        where=path,
        fix=first["fix"],
    )
