"""What tokenisation gives, what it depends on, and how examples are made to fit into `data.max_length`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from tunecli.config.data import Overlong, Side, SystemPolicy, Thinking
from tunecli.config.stage import ProblemType, Rows, Subwords, Task, Turns
from tunecli.data.examples import TooLong, Unusable

EVERY = "*"
"""As `Encoding.adapter_column`: each row is for each adapter in turn."""

Span = tuple[int, int]
"""Start and end, end excluded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Everything besides the example and the tokenizer (with its chat template) that tokens depend on; each field as
    in the `data` and `stage` groups of the configuration."""

    task: Task = Task.causal_lm
    max_length: int = 2048
    max_target_length: int = 0
    """of the target of an encoder-decoder, whose source `max_length` is for"""
    overlong: Overlong = Overlong.truncate
    truncation_side: Side = Side.right
    train_on_prompt: bool = False
    turns: Turns = Turns.all
    labels: tuple[str, ...] = ()
    """the only ones that rows may have; empty: any"""
    problem_type: ProblemType = ProblemType.single_label
    label_subwords: Subwords = Subwords.first
    overlap: int = 0
    rows: Rows | None = None
    """what the rows hold where the task alone does not tell"""
    templates: tuple[str, ...] = ()
    """with a gap for the label's word, see `tunecli.config.cloze`; none: labels are told by a head"""
    verbalizer: dict[str, str] = field(default_factory=dict)
    """label -> word; a label that is missing is a word itself"""
    system: SystemPolicy = SystemPolicy.keep
    system_prompt: str | None = None
    thinking: Thinking = Thinking.keep
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    before: tuple[int, ...] = ()
    """ids of virtual tokens in front of each example"""
    between: tuple[int, ...] = ()
    """ids of virtual tokens in front of the last answer"""
    template: str = ""
    """written with the columns of a row, see `tunecli.config.template`; empty: `data.format` says what is"""
    template_ids: tuple[int, ...] = ()
    """of the virtual tokens in it"""
    adapter_column: str = ""
    """names the adapter that a row is for; EVERY: it is for each of them; empty: the fields above hold for it"""
    adapters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """adapter -> the fields above for its rows"""

    @property
    def reads(self) -> Task | Rows:
        """The task whose rows are read: those of a classifier, where gaps are filled; plain documents, as masked
        language models read, where every token of an encoder-decoder's rows is learnt."""
        if self.rows is not None:
            return self.rows
        if self.task is Task.seq2seq_lm and self.train_on_prompt:
            return Task.masked_lm
        return Task.sequence_classification if self.templates else self.task

    def for_adapter(self, name: str) -> Encoding:
        return replace(self, adapter_column="", adapters={}, **self.adapters[name])

    @property
    def plain(self) -> dict[str, Any]:
        """The same in the types of JSON, for a cache key."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Tokens:
    input_ids: list[int]
    spans: list[Span]
    """The tokens that are targets of the loss, in order. Never the first token where each is predicted from those
    before it. With tags: the trained tokens of each word. With a label for the whole: none."""
    truncated: bool = False
    labels: tuple[str, ...] = ()
    """of the whole, or the tag of each span"""
    parts: tuple[int, ...] = ()
    """where each part after the first begins: the second text of a pair, the target after its source, another
    template with the same texts, the rejected text of a pair; where a pair is for an encoder-decoder: the target of
    the chosen one, the source and the target of the rejected one"""
    numbers: tuple[float, ...] = ()
    """margin and probability of a pair; the score of a scored text; 1 or 0 for feedback"""
    columns: str = ""
    """the prompt as it was written, in `prompt`, and the other columns of its row: a JSON object"""

    @property
    def trained(self) -> list[bool]:
        """Whether each token is a target of the loss."""
        trained = [False] * len(self.input_ids)
        for start, end in self.spans:
            trained[start:end] = [True] * (end - start)
        return trained


def window(ids: list[int], spans: list[Span], start: int = 0, end: int | None = None) -> Tokens:
    """Tokens `start` to `end` of an example and the trained `spans` that fall into them, but for the first token."""
    end = len(ids) if end is None else min(end, len(ids))
    moved = [(max(first - start, 1), min(last, end) - start) for first, last in spans]
    return Tokens(ids[start:end], [(first, last) for first, last in moved if first < last])


def fit(items: list[Tokens], options: Encoding, added: int = 0) -> list[Tokens]:
    """The examples of one row, each at most `max_length` long with `added` more tokens, without those that lose all
    their trained tokens.

    Raises TooLong if none is left, Unusable if there never was a trained token.
    """
    kept = []
    lost = False
    for tokens in items:
        parts = [part for part in _parts(tokens, options, max(options.max_length - added, 0)) if part.spans]
        kept += parts
        lost |= not parts
    if not kept:
        raise _nothing_trained(items, options, added)
    if lost:
        kept[-1] = replace(kept[-1], truncated=True)
    return kept


def _parts(tokens: Tokens, options: Encoding, size: int) -> Iterator[Tokens]:
    ids, spans = tokens.input_ids, tokens.spans
    if len(ids) <= size:
        yield tokens
    elif options.overlong is Overlong.truncate:
        start = len(ids) - size if options.truncation_side is Side.left else 0
        yield replace(window(ids, spans, start, start + size), truncated=True)
    elif options.overlong is Overlong.split:
        # Each window begins with the last token of the one before, for its next token to be predicted from.
        for start in range(0, len(ids) - 1, max(size - 1, 1)):
            yield window(ids, spans, start, start + size)


def _nothing_trained(items: list[Tokens], options: Encoding, added: int) -> Unusable:
    if not any(tokens.spans for tokens in items):
        return Unusable("no token to train on: the answer is empty", "fill it in, or remove the row")
    shortest = min(len(tokens.input_ids) for tokens in items) + added
    if options.overlong is Overlong.drop:
        return TooLong(
            f"{shortest} tokens are more than data.max_length={options.max_length}",
            f"set data.max_length={shortest} or more, or data.overlong=truncate",
        )
    if options.truncation_side is Side.left or options.overlong is Overlong.split:
        return TooLong(
            f"no token left to train on within data.max_length={options.max_length}",
            "raise data.max_length, or remove the row",
        )
    needed = min(tokens.spans[0][0] for tokens in items if tokens.spans) + added
    return TooLong(
        f"no token left to train on: the prompt alone fills data.max_length={options.max_length}",
        f"set data.max_length to more than {needed}, shorten the prompt, or remove the row",
    )
