"""What is said about the data before training: how much there is, and what a user should know about it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tunecli.config.counted import counted
from tunecli.config.data import DataConfig, Overlong, Side, training_sources, validation_source
from tunecli.config.data_checks import OF_JUDGEMENTS
from tunecli.config.stage import PretrainConfig, StageConfig, Task
from tunecli.data.mixture import Mixture, labels, shares

WHY = {
    "bad": ("cannot be used", "mend or remove them"),
    "overlong": (
        "{are} longer than {length} allows",
        "raise data.max_length, or split them with data.overlong=split",
    ),
    "in validation": (
        "{are} in the validation data too",
        "remove them there, or train on them with data.overlap=keep",
    ),
}
"""Why rows are left out -> what is said of them, and what can be done."""
CUT = "raise data.max_length, or leave such rows out with data.overlong=drop, or split them with data.overlong=split"
_BY_LENGTH = "they are longer than data.max_length"
_BY_TEMPLATE = "the chat template renders earlier turns differently when later ones follow"


def facts(data: DataConfig, train: Mixture | None, validation: Mixture | None) -> Iterator[str]:
    """How much there is, one line for each source."""
    sources = training_sources(data)
    if train is None:
        for source in sources:
            yield f"training: {source.path}, streamed and shuffled within {data.shuffle_buffer:,} rows"
    else:
        sizes = np.diff(train.starts)
        given = shares(data, sizes.tolist()) or sizes.tolist()
        for i, (source, name) in enumerate(zip(sources, labels(sources), strict=True)):
            part = slice(train.starts[i], train.starts[i + 1])
            share = f", {given[i] / sum(given):.1%} of training as {name}" if data.mix else ""
            yield f"training: {source.path}{_format(train, i)}: {_amount(train, part)}{share}"
    if validation is not None:
        held_out = validation_source(data)
        path = held_out.path + _format(validation, 0) if held_out else f"{data.validation} of the rows"
        yield f"validation: {path}: {_amount(validation, slice(None))}"


def losses(data: DataConfig, examples: Mixture) -> Iterator[tuple[str, str]]:
    """What the rows lose on the way to the model: what is said of it, and what can be done."""
    summary, length = examples.summary, f"data.max_length={data.max_length}"
    for why, count in summary["left_out"].items():
        first = next(entry for entry in examples.left_out if entry["why"] == why)
        are = "is" if count == 1 else "are"
        reason, place = WHY[why][0].format(length=length, are=are), f"{first['source']} row {first['row']}"
        yield (
            f"{count:,} of {counted(summary['rows'], 'row')} {reason} and {are} left out; the first: {place}",
            WHY[why][1],
        )
    if summary["truncated"]:
        end = "start" if data.truncation_side is Side.left else "end"
        whose = "its" if summary["truncated"] == 1 else "their"
        yield f"{summary['truncated']:,} of {counted(len(examples), 'example')} lost {whose} {end}: {length}", CUT


def splits(data: DataConfig, stage: StageConfig, examples: Mixture) -> Iterator[str]:
    """Said where rows became several examples."""
    summary = examples.summary
    if summary["split_rows"]:
        rows = f"{summary['split_rows']:,} of {counted(summary['rows'], 'row')}"
        by_length = data.overlong is Overlong.split
        by_template = not by_length or answers_in_turns(stage, examples)
        reasons = ([_BY_LENGTH] if by_length else []) + ([_BY_TEMPLATE] if by_template else [])
        yield f"{rows} became several examples, because {', or '.join(reasons)}"


def answers_in_turns(stage: StageConfig, examples: Mixture) -> bool:
    """Whether answers are told from questions in some of the examples. Pretraining learns both."""
    if stage.reads is not Task.causal_lm or isinstance(stage, PretrainConfig):
        return False
    return any(format.name not in ("text", "prompt_completion") for format in examples.formats)


def _amount(examples: Mixture, part: slice) -> str:
    tokens, trained = int(examples.lengths[part].sum()), int(examples.trained_counts[part].sum())
    number, names = len(examples.lengths[part]), {format.name for format in examples.formats}
    if names == {"prompts"}:
        return f"{counted(number, 'prompt')}, {counted(tokens, 'token')}"
    if names <= {*OF_JUDGEMENTS}:
        noun = "pair" if names == {"preference"} else "judged example"
        return f"{counted(number, noun)}, {counted(tokens, 'token')}, {trained:,} of them in completions"
    return f"{counted(number, 'example')}, {counted(tokens, 'token')}, {trained:,} of them trained"


def _format(examples: Mixture, part: int) -> str:
    """What was not given by name: a format that was told from the columns, a function of the user's own."""
    format = examples.formats[part]
    known = [str(format)] if format.detected else []
    said = "; ".join([*known, *([format.note] if format.note else [])])
    return f" ({said})" if said else ""
