"""What `tune check` says about the rows: everything that makes a fine-tune fail although it runs. And about methods
that do not fit the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from tunecli import retain
from tunecli.assembly.data import Data, encoding_of, prepare_data
from tunecli.assembly.positions import within_positions
from tunecli.assembly.ppo import check_ppo
from tunecli.config.counted import counted
from tunecli.config.data import OnBadRow, first_rows, validation_share
from tunecli.config.errors import ConfigError, Problem, UserError
from tunecli.config.run import RunConfig, with_head
from tunecli.config.stage import VerbalizeConfig
from tunecli.data import about
from tunecli.data.lint import (
    EMPTY_ANSWER,
    EMPTY_QUESTION,
    ENDS_WITH_QUESTION,
    OUT_OF_ORDER,
    SPECIAL_TOKENS,
    template_problems,
)
from tunecli.data.mixture import Mixture, build
from tunecli.data.statistics import statistics
from tunecli.models.load import load_tokenizer, stop_tokens
from tunecli.peft_methods.rehearsal import misfits
from tunecli.peft_methods.starting import find_starts

LISTED = 10
"""Bad rows that are named."""
STREAMED = 1000
"""Rows that are looked at where data are streamed."""
ADVICE = {
    OUT_OF_ORDER: "join turns of one role, and let questions and answers alternate",
    EMPTY_ANSWER: "fill in the answer or remove the row: the model learns to say nothing",
    EMPTY_QUESTION: "fill in the question or remove the row: the model learns to answer nothing",
    SPECIAL_TOKENS: "take them out, unless they are meant: the model reads them as control tokens",
    ENDS_WITH_QUESTION: "remove the last question: nothing is learnt from it",
}
"""Kind of finding -> what to do."""


def lint(config: RunConfig, given: Mapping[str, str] | None = None) -> tuple[list[str], list[Problem], list[Problem]]:
    """Facts about the data; what stops the run, in the model's shape and in the rows; and what is odd but does not.

    Args:
        given: key -> what stated its value; None: not known.

    Raises:
        ConfigError: what adapters are to start from cannot be had or does not fit; bad rows that leave too few.
    """
    config, notes = within_positions(config)
    unfit = [*fit_problems(config, given), *_cannot_be_retained(config)]
    data = _prepared(config)
    assert data.train is not None
    unfit += _cannot_be_rewarded(config, data)
    sides = {"training": data.train} | ({"validation": data.validation} if data.validation else {})
    # With a share held out both sides are read from the same rows.
    read = sides if validation_share(config.data) is None else {"training": data.train}
    bad = [problem for examples in read.values() for problem in _bad_rows(examples)]
    odd = [*_template(config, data)]
    for side, examples in read.items():
        odd += _lost(config, side, examples)
        odd += _found(examples)
    for side, examples in sides.items():
        odd += _duplicates(side, examples)
    odd += _labels_without_rows(config, data)
    facts = [*notes, *about.facts(config.data, data.train, data.validation)]
    return facts, [*unfit, *(bad if config.data.on_bad_row is OnBadRow.error else [])], odd


def fit_problems(config: RunConfig, given: Mapping[str, str] | None = None) -> list[Problem]:
    """What the recipe's methods find wrong with its model, told from its shape.

    Raises:
        ConfigError: what adapters are to start from cannot be had or does not fit.
    """
    starts = find_starts(config, given=given)
    methods = config.peft | {name: start.entry for name, start in starts.items()}
    known = with_head(replace(config, peft=methods))
    return misfits(known, {name: start.folder for name, start in starts.items()})


def _cannot_be_retained(config: RunConfig) -> Iterator[Problem]:
    try:
        retain.check(config)
    except ConfigError as error:
        yield from error.problems


def _cannot_be_rewarded(config: RunConfig, data: Data) -> Iterator[Problem]:
    try:
        check_ppo(config, data)
    except UserError as error:
        yield Problem(error.where, error.what, error.fix)


def _readable(config: RunConfig) -> RunConfig:
    """With bad rows left out, for all of them to be found, and streams as far as a look needs them."""
    data = replace(config.data, on_bad_row=OnBadRow.skip)
    return replace(config, data=first_rows(data, STREAMED) if data.streaming else data)


def _prepared(config: RunConfig) -> Data:
    """Raises ConfigError: the bad rows, where nothing can be made of the rest."""
    readable = _readable(config)
    try:
        return prepare_data(readable, show_progress=True)
    except UserError:
        if config.data.on_bad_row is OnBadRow.error and (bad := _bad_rows_alone(readable)):
            raise ConfigError(bad) from None
        raise


def _bad_rows_alone(readable: RunConfig) -> list[Problem]:
    """Of training data from which nothing else can be made; none if not one row can be used, as is said already."""
    tokenizer = load_tokenizer(readable.model)
    whole = replace(readable.data, validation=None)
    try:
        train, _ = build(whole, tokenizer, encoding_of(readable, tokenizer), show_progress=False)
    except UserError:
        return []
    return [] if train is None else list(_bad_rows(train))


def _bad_rows(examples: Mixture) -> Iterator[Problem]:
    bad = [entry for entry in examples.left_out if entry["why"] == "bad"]
    for entry in bad[:LISTED]:
        yield Problem(f"{entry['source']} row {entry['row']}", entry["what"], entry["fix"])
    if len(bad) > LISTED:
        where = f"{counted(len(bad) - LISTED, 'more row')}"
        yield Problem(where, "cannot be used either", "data.on_bad_row=skip leaves all of them out and lists them")


def _template(config: RunConfig, data: Data) -> Iterator[Problem]:
    examples = data.train
    assert examples is not None
    if about.answers_in_turns(config.stage, examples):
        yield from template_problems(data.tokenizer, config.data.chat_template_kwargs, stop_tokens(config.model))


def _labels_without_rows(config: RunConfig, data: Data) -> Iterator[Problem]:
    """Labels that are named and that the model cannot learn."""
    named = getattr(config.stage, "labels", ())
    if data.train is None or data.labels is None or not named:
        return
    counts = sum(data.train.label_counts.values(), Counter())
    if absent := [label for label in named if not counts[label]]:
        several = len(absent) > 1
        what = f"no training row has the {'labels' if several else 'label'} {', '.join(absent[:LISTED])}"
        key = "stage.verbalizer" if isinstance(config.stage, VerbalizeConfig) else "stage.labels"
        yield Problem(key, what, f"leave {'them' if several else 'it'} out, or add such rows")


def _lost(config: RunConfig, side: str, examples: Mixture) -> Iterator[Problem]:
    listed_as_bad = config.data.on_bad_row is OnBadRow.error
    for what, fix in about.losses(config.data, examples):
        if not (listed_as_bad and fix == about.WHY["bad"][1]):
            yield Problem(side, what, fix)


def _found(examples: Mixture) -> Iterator[Problem]:
    for kind, (count, places) in examples.found.items():
        more = f" and {count - len(places):,} more" if count > len(places) else ""
        yield Problem(kind, ", ".join(places) + more, ADVICE[kind])


def _duplicates(side: str, examples: Mixture) -> Iterator[Problem]:
    found = statistics(examples)
    if found.duplicates:
        most = found.most_repeated[0]
        rows = "1 row repeats" if found.duplicates == 1 else f"{found.duplicates:,} rows repeat"
        what = f"{rows} another; {most.origin} stands there {most.rows:,} times"
        yield Problem(side, what, "remove them, unless they are meant to count more")
