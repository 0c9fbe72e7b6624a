"""The `data` group: where rows come from and how they become examples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from omegaconf import MISSING

from tunecli.config.data_files import is_local


class Mixing(Enum):
    proportional = "proportional"
    equal = "equal"
    temperature = "temperature"
    weights = "weights"


class SampleBy(Enum):
    line = "line"
    paragraph = "paragraph"
    document = "document"


class OnBadRow(Enum):
    error = "error"
    skip = "skip"


class SystemPolicy(Enum):
    keep = "keep"
    add = "add"
    replace = "replace"
    drop = "drop"


class Thinking(Enum):
    keep = "keep"
    drop = "drop"


class Overlong(Enum):
    truncate = "truncate"
    drop = "drop"
    split = "split"


class Side(Enum):
    left = "left"
    right = "right"


class Overlap(Enum):
    drop = "drop"
    keep = "keep"


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """One entry of `data.mix`."""

    path: str = MISSING
    """As `data.path`."""
    format: str = "auto"
    """As `data.format`."""
    columns: dict[str, str] = field(default_factory=dict)
    """As `data.columns`."""
    split: str = "train"
    """Split of a Hub dataset; `train[:10%]` is one too."""
    subset: str | None = None
    """Subset (configuration name) of a Hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    max_samples: int | None = None
    """Use only the first rows; empty: as `data.max_samples`."""
    weight: float | None = None
    """Share of the training examples, relative to the other entries (`data.mixing=weights`)."""
    task: str | None = None
    """Name of these rows in the metrics; entries with the same name are counted together. Empty: from the path."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    path: str | None = MISSING
    """A file (.jsonl .json .csv .tsv .parquet .arrow .txt .md, also compressed), a folder of them, a glob, a Hub
    dataset id, or `builtin:smoke` (a few rows, for tests)."""
    mix: list[SourceConfig] = field(default_factory=list)
    """Several sources instead of one `path`: `[{path: a.jsonl, weight: 2}, {path: b.csv, weight: 1}]`."""
    mixing: Mixing = Mixing.proportional
    """How often each source of `mix` comes up: as it has examples, all equally, in between, or by its `weight`."""
    mixing_temperature: float = 2.0
    """For `mixing: temperature`: shares are proportional to examples ** (1 / temperature); 1 is proportional."""
    format: str = "auto"
    """auto (told from the columns) | messages | sharegpt | alpaca | prompt_completion | text | ... (docs/data.md), or
    `custom:package.module:function`, a function of your own from a row to one of `tunecli.data.examples`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names that the format expects -> a column of the file, or a text with columns in braces:
    `columns: {instruction: "Summarize:\\n\\n{article}", output: highlights}`."""
    split: str = "train"
    """Split of a Hub dataset; `train[:10%]` is one too."""
    subset: str | None = None
    """Subset (configuration name) of a Hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    adapter_column: str | None = None
    """Column that names the entry of `peft` which each row is for: several users' or tasks' adapters are trained
    together, each on its own rows. "*": each entry is trained by itself on every row, as for an ensemble of prompts.
    Empty: every entry is on for every row."""
    sample_by: SampleBy = SampleBy.line
    """What is one row of a .txt or .md file."""
    max_samples: int | None = None
    """Use only the first rows of each source."""
    shots: int | None = None
    """Train on so many rows of each label only, chosen by `seed` and content, whatever their order. Empty: all."""
    validation: str | None = None
    """A second source for the validation loss, `split:NAME` of the same Hub dataset, or a share such as 0.05 of the
    rows, chosen by their content so that equal rows fall on the same side."""
    overlap: Overlap = Overlap.drop
    """What becomes of training rows that are validation rows too."""
    on_bad_row: OnBadRow = OnBadRow.error
    """Stop at the first row that cannot be used, or leave such rows out and list them in the run directory."""
    max_length: int = 2048
    """Longest example in tokens."""
    overlong: Overlong = Overlong.truncate
    """What becomes of longer ones: cut to max_length, left out, or split into several examples."""
    truncation_side: Side = Side.right
    """Which end `overlong: truncate` cuts off."""
    chat_template: str | None = None
    """Empty: the tokenizer's own. `chatml`, `alpaca`, or a path to a .jinja file otherwise."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables that the template reads: `{enable_thinking: false}`."""
    system: SystemPolicy = SystemPolicy.keep
    """System messages of the rows: left as they are, added where there is none, replaced everywhere, or dropped."""
    system_prompt: str | None = None
    """The text that `system: add` and `system: replace` use."""
    thinking: Thinking = Thinking.keep
    """`drop` takes <think> blocks and `reasoning_content` out of the answers. Earlier turns are shown as the chat
    template shows them at inference in either case."""
    num_workers: int | None = None
    """Processes that tokenize; empty: one per core for large data, none for small."""
    streaming: bool = False
    """Tokenize while training instead of before it: nothing is cached, and training needs `train.max_steps`."""
    shuffle_buffer: int = 10000
    """With `streaming`: examples that are read ahead and shuffled among themselves."""


def first_rows(data: DataConfig, number: int) -> DataConfig:
    """The first rows of each source, not streamed: enough for a look at a stream."""

    def limit(wanted: int | None) -> int:
        return number if wanted is None else min(wanted, number)

    mix = [replace(source, max_samples=limit(source.max_samples)) for source in data.mix]
    return replace(data, streaming=False, max_samples=limit(data.max_samples), mix=mix)


def training_sources(data: DataConfig) -> list[SourceConfig]:
    """The entries of `mix`, or `path` as the only one."""
    if not data.mix:
        assert data.path is not None
        return [_source(data, data.path, data.split)]
    return [
        replace(source, max_samples=data.max_samples if source.max_samples is None else source.max_samples)
        for source in data.mix
    ]


def validation_source(data: DataConfig) -> SourceConfig | None:
    """Where validation rows are read from; None without validation or with a share of the training rows."""
    if data.validation is None or validation_share(data) is not None:
        return None
    if data.validation.startswith("split:"):
        assert data.path is not None
        return _source(data, data.path, data.validation.removeprefix("split:"))
    return _source(data, data.validation, "train" if is_local(data.validation) else data.split)


def validation_share(data: DataConfig) -> float | None:
    """The share of the training rows that `data.validation` asks for, as in 0.05; None if it is no number."""
    try:
        return float(data.validation or "")
    except ValueError:
        return None


def _source(data: DataConfig, path: str, split: str) -> SourceConfig:
    return SourceConfig(
        path=path,
        format=data.format,
        columns=dict(data.columns),
        split=split,
        subset=data.subset,
        revision=data.revision,
        max_samples=data.max_samples,
    )
