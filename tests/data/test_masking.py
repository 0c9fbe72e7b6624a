"""Masked language modelling: which tokens are chosen, what becomes of them, and what that depends on."""

from __future__ import annotations

import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import RandomExamples, batching

from tunecli.cli import main
from tunecli.config.data import Overlong, Side
from tunecli.config.errors import UserError
from tunecli.config.stage import Task
from tunecli.data.batching import microbatches
from tunecli.data.encoded import Encoded
from tunecli.data.examples import Text, TooLong, Unusable
from tunecli.data.masking import MaskedTokens, mask_of, ordinary_tokens
from tunecli.data.tokenize import tokenize
from tunecli.data.tokens import Encoding
from tunecli.models.builtin import byte_encoder_tokenizer, byte_tokenizer

MASK = 95
READ = MaskedTokens(seed=1, probability=0.15, mask=MASK, vocabulary=np.arange(4, 90))
OPTIONS = Encoding(task=Task.masked_lm, max_length=16, overlong=Overlong.split)


def example(length: int, *spans: tuple[int, int]) -> Encoded:
    return Encoded(torch.arange(4, 4 + length), np.array(spans or [(0, length)]))


@pytest.mark.parametrize(("length", "chosen"), [(1, 1), (3, 1), (20, 3), (80, 12)])
def test_fifteen_percent_are_chosen_and_at_least_one(length: int, chosen: int) -> None:
    assert len(READ(example(length), "x", 0).kept) == chosen


def test_targets_are_what_stood_there_and_everything_else_stays() -> None:
    given = example(80, (2, 30), (40, 79))
    found = READ(given, "x", 7)
    assert torch.equal(found.targets, given.input_ids[found.kept])
    others = torch.ones(80, dtype=torch.bool)
    others[found.kept] = False
    assert torch.equal(found.input_ids[others], given.input_ids[others])
    assert set(found.kept.tolist()) <= {*range(2, 30), *range(40, 79)}
    assert len(set(found.kept.tolist())) == len(found.kept) == round(0.15 * 67)


def test_of_the_chosen_tokens_80_percent_are_masked_and_10_percent_random() -> None:
    masked = random = total = 0
    for number in range(1000):
        given = example(80)
        found = READ(given, "x", number)
        now = found.input_ids[found.kept]
        masked += int((now == MASK).sum())
        random += int(((now != MASK) & (now != found.targets)).sum())
        total += len(now)
        assert set(now.tolist()) <= {MASK, *range(4, 90)}
    assert masked / total == pytest.approx(0.8, abs=0.015)
    assert random / total == pytest.approx(0.1 * 85 / 86, abs=0.012)


def test_masks_depend_on_seed_and_number_alone() -> None:
    given = example(80)
    places = [READ(given, "x", number).kept.tolist() for number in range(5)]
    assert places == [READ(given, "y", number).kept.tolist() for number in range(5)]
    assert len(set(map(tuple, places))) == 5
    assert replace(READ, seed=2)(given, "x", 0).kept.tolist() != places[0]


@pytest.mark.parametrize("first", [None, 40])
def test_the_number_of_processes_does_not_matter(first: int | None) -> None:
    examples = RandomExamples([9, 5, 12, 3, 14, 7])

    def seen(processes: int) -> set[tuple]:
        found = set()
        for process in range(processes):
            settings = replace(batching(rows=2, process=process, of=processes), read=READ)
            for batch in microbatches(examples, range(6), settings, first=first):
                borders = zip(batch.cu_seq_lens, batch.cu_seq_lens[1:], strict=False)
                found |= {tuple(batch.input_ids[0, start:end].tolist()) for start, end in borders if batch.rows}
        return found

    alone = seen(1)
    assert alone == seen(2) == seen(3)
    expected = {tuple(READ(examples[i], "random", i + (first or 0)).input_ids.tolist()) for i in range(6)}
    assert alone == expected


def test_a_long_document_becomes_windows_that_hold_each_token_once() -> None:
    tokenizer = byte_encoder_tokenizer()
    text = "The tide comes in twice a day, 潮水."
    items = tokenize(Text(text), tokenizer, OPTIONS)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    body = [token for item in items for token in item.input_ids[1:-1]]
    assert body == tokenizer(text, add_special_tokens=False)["input_ids"]
    for item in items:
        assert len(item.input_ids) <= 16 and not item.truncated
        assert (item.input_ids[0], item.input_ids[-1]) == (cls, sep)
        assert item.spans == [(1, len(item.input_ids) - 1)]


@pytest.mark.parametrize("side", list(Side))
def test_a_long_document_may_be_cut_or_left_out(side: Side) -> None:
    tokenizer, text = byte_encoder_tokenizer(), "The tide comes in twice a day"
    cut = replace(OPTIONS, overlong=Overlong.truncate, truncation_side=side)
    (item,) = tokenize(Text(text), tokenizer, cut)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert item.truncated and item.input_ids[1:-1] == (ids[:14] if side is Side.right else ids[-14:])
    with pytest.raises(TooLong, match="31 tokens"):
        tokenize(Text(text), tokenizer, replace(OPTIONS, overlong=Overlong.drop))


def test_special_tokens_within_a_text_and_virtual_ones_are_never_predicted() -> None:
    tokenizer = byte_encoder_tokenizer()
    (item,) = tokenize(Text("ab[SEP]c[MASK]"), tokenizer, replace(OPTIONS, before=(500, 501)))
    assert item.input_ids[1:3] == [500, 501]
    assert item.spans == [(3, 5), (6, 7)]
    with pytest.raises(Unusable, match="special tokens only"):
        tokenize(Text("[SEP]"), tokenizer, OPTIONS)


def test_random_tokens_are_no_special_ones() -> None:
    tokenizer = byte_encoder_tokenizer()
    ordinary = ordinary_tokens(tokenizer)
    assert len(ordinary) == 256 and not set(ordinary.tolist()) & set(tokenizer.all_special_ids)
    assert mask_of(tokenizer) == tokenizer.convert_tokens_to_ids("[MASK]")
    with pytest.raises(UserError, match="mask"):
        mask_of(byte_tokenizer())


def test_a_model_without_a_mask_is_told_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    """And with these words it does."""
    assert main(["check", "recipe=smoke_verbalize", "model=tiny_llama"]) == 2
    words = shlex.split(capsys.readouterr().err.partition("; or ")[2].partition(", as the gap")[0])
    assert words[0] == "stage.language_model=causal_lm"
    assert main(["check", "recipe=smoke_verbalize", "model=tiny_llama", *words]) == 0
    assert main(["check", "recipe=smoke_mlm", "model=tiny_llama"]) == 2
    assert "stage.objective=causal_lm" in capsys.readouterr().err
