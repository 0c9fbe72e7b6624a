"""The `data` group: where rows come from and how they become examples."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass(kw_only=True, slots=True)
class DataConfig:
    path: str = MISSING
    """A .json or .jsonl file, a Hub dataset id, or `builtin:smoke` (a few rows, for tests)."""
    format: str = MISSING
    """messages | alpaca | prompt_completion | text; see `tunecli/data/formats/`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names that the format expects -> names that the file has: `columns: {instruction: question}`."""
    split: str = "train"
    """Split of a Hub dataset."""
    subset: str | None = None
    """Subset (configuration name) of a Hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    max_length: int = 2048
    """Longest example in tokens; longer ones lose their end, and the number of them is printed."""
    max_samples: int | None = None
    """Use only the first rows."""
    validation: str | None = None
    """A second file for the validation loss, or `split:NAME` of the same Hub dataset."""
    chat_template: str | None = None
    """Empty: the tokenizer's own. `chatml`, `alpaca`, or a path to a .jinja file otherwise."""
