"""`tune preview`: examples as the model sees them, and what the data set is like."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tunecli.assembly.data import Data, prepare_data
from tunecli.config.data import DataConfig, OnBadRow, first_rows, training_sources
from tunecli.config.errors import UserError
from tunecli.config.peft import without_head
from tunecli.config.run import RunConfig
from tunecli.data.mixture import Mixture, labels, shares
from tunecli.data.statistics import Statistics, statistics
from tunecli.preview.examples import Example, Wanted, choose, read
from tunecli.preview.languages import languages

STREAMED = 1000
"""Rows of each source that are previewed where training would stream them."""
LEFT_OUT = 5
"""Rows that are listed for each reason to leave them out."""


@dataclass(frozen=True, slots=True)
class Preview:
    recipe: str
    model: str
    part: str
    """training or validation"""
    data: list[str]
    """what was read"""
    formats: list[str]
    max_length: int
    notes: list[str]
    """what a user should know first"""
    statistics: Statistics
    left_out: dict[str, list[dict[str, Any]]]
    """why -> the first rows that are left out for it: source, row, what, fix"""
    found: dict[str, tuple[int, list[str]]]
    """what is odd about rows that are used -> how many, and the first of them"""
    languages: dict[str, int]
    """of a sample of the examples"""
    labels: dict[str, int]
    """label of a text or a word (with its task if there are several) -> how often, the most frequent first"""
    examples: list[Example]


def preview(config: RunConfig, wanted: Wanted, *, validation: bool = False, show_progress: bool = False) -> Preview:
    """Prepare the data as a run would, and look at them.

    Raises:
        UserError: the data cannot be read, hold no usable row, or not the wanted one.
    """
    if validation and config.data.validation is None:
        raise UserError("there are no validation data", where="data.validation", fix="data.validation=0.05, say")
    data, notes = _prepare(config, show_progress)
    dataset = data.train
    if validation:
        assert data.validation is not None
        dataset = data.validation
    source = config.data.validation if validation else None
    return Preview(
        recipe=config.recipe,
        model=config.model.path,
        part="validation" if validation else "training",
        data=[source] if source else [entry.path for entry in training_sources(config.data)],
        formats=list(dict.fromkeys(dataset.summary["formats"])),
        max_length=config.data.max_length,
        notes=notes,
        statistics=statistics(dataset, None if validation else _drawn(config.data, dataset)),
        left_out=_left_out(dataset),
        found=dataset.found,
        languages=languages(dataset, data.tokenizer),
        labels=_labels(dataset),
        examples=[
            read(dataset, index, data.tokenizer, list(without_head(config.peft))) for index in choose(dataset, wanted)
        ],
    )


def as_json(preview: Preview) -> dict[str, Any]:
    """All of it; each example with its text and, per token, id, text and whether it is trained.

    A character that is spread over several tokens stands with the last of them.
    """
    return asdict(preview) | {"examples": [_example_as_json(example) for example in preview.examples]}


def _prepare(config: RunConfig, show_progress: bool) -> tuple[Data, list[str]]:
    """The data of a run, and what differs from how the run would have them."""
    notes = []
    if config.data.streaming:
        config = replace(config, data=first_rows(config.data, STREAMED))
        notes.append(f"data.streaming: only the first {STREAMED:,} rows of each source are looked at")
    try:
        return prepare_data(config, show_progress=show_progress), notes
    except UserError as error:
        if config.data.on_bad_row is OnBadRow.skip:
            raise
        # A bad row stops a run; here it is listed with the others, if there are any rows but bad ones.
        try:
            skipping = replace(config, data=replace(config.data, on_bad_row=OnBadRow.skip))
            data = prepare_data(skipping, show_progress=show_progress)
        except UserError:
            raise error from None
        reason = str(error).splitlines()[0]
        return data, [*notes, f"a run would stop here: {reason} (data.on_bad_row=skip leaves such rows out)"]


def _drawn(data: DataConfig, dataset: Mixture) -> list[float] | None:
    """[names] share of the examples that training draws from each; None: as each has examples."""
    weights = shares(data, np.diff(dataset.starts).tolist())
    if weights is None:
        return None
    drawn = dict.fromkeys(dataset.names, 0.0)
    for name, weight in zip(labels(training_sources(data)), weights, strict=True):
        drawn[name] += weight / sum(weights)
    return list(drawn.values())


def _labels(dataset: Mixture) -> dict[str, int]:
    several = len(dataset.label_counts) > 1
    counts = Counter(
        {
            f"{name}: {label}" if several else label: count
            for name, labels in dataset.label_counts.items()
            for label, count in labels.items()
        }
    )
    return dict(counts.most_common())


def _left_out(dataset: Mixture) -> dict[str, list[dict[str, Any]]]:
    listed: dict[str, list[dict[str, Any]]] = {}
    for entry in dataset.left_out:
        rows = listed.setdefault(entry["why"], [])
        if len(rows) < LEFT_OUT:
            rows.append({key: entry[key] for key in ("source", "row", "what", "fix")})
    return listed


def _example_as_json(example: Example) -> dict[str, Any]:
    tokens = [
        {"id": token, "text": text, "trained": piece.trained, "special": piece.special}
        | ({"part": piece.heading} if piece.heading else {})
        for piece in example.pieces
        for token, text in zip(piece.ids, [""] * (len(piece.ids) - 1) + [piece.text], strict=True)
    ]
    names = ("origin", "source", "trained_tokens", "truncated", "labels", "adapter", "judgement", "columns")
    counts = {name: getattr(example, name) for name in names}
    return counts | {"text": "".join(piece.text for piece in example.pieces), "tokens": tokens}
