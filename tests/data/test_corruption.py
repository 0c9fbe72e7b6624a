"""Span corruption follows the rules of T5, and prefix LM cuts a text in two; both by seed and number alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tunecli.config.errors import UserError
from tunecli.data.corruption import (
    MEAN_SPAN_LENGTH,
    NOISE_DENSITY,
    PrefixLM,
    SpanCorruption,
    corrupted,
    noise_mask,
    num_noise,
    prefix_lm,
    sentinels_of,
    span_corruption,
)
from tunecli.data.encoded import Encoded
from tunecli.models.builtin import byte_seq2seq_tokenizer

SENTINELS = list(range(1000, 900, -1))
EOS = 1
LENGTHS = [2, 3, 5, 20, 57, 512, 1000]


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of the spans."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return (edges[1::2] - edges[::2]).tolist()


def text(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(4, 900, length)


@pytest.mark.parametrize("length", LENGTHS)
def test_density_and_number_of_spans_are_those_of_the_reference(length: int) -> None:
    """`random_spans_noise_mask`: both are fixed by the length."""
    tokens = min(max(round(length * 0.15), 1), length - 1)
    spans = max(round(tokens / 3.0), 1)
    for seed in range(20):
        mask = noise_mask(length, np.random.default_rng(seed))
        assert mask.shape == (length,)
        assert mask.sum() == tokens
        assert len(runs(mask)) == spans
        assert not mask[0] and mask[-1]


def test_spans_are_3_tokens_long_on_average_and_differ() -> None:
    lengths = [length for seed in range(50) for length in runs(noise_mask(512, np.random.default_rng(seed)))]
    assert np.mean(lengths) == pytest.approx(MEAN_SPAN_LENGTH, abs=0.1)
    assert min(lengths) == 1 and max(lengths) > 6
    masks = np.stack([noise_mask(100, np.random.default_rng(seed)) for seed in range(400)])
    assert masks.mean() == pytest.approx(NOISE_DENSITY)
    inner = masks.mean(0)[10:90]
    assert inner.min() > 0.05 and inner.max() < 0.3  # everywhere, not in one place


def test_many_tokens_can_be_taken_out() -> None:
    """No more spans than there are tokens between them."""
    for density in (0.5, 0.9):
        mask = noise_mask(30, np.random.default_rng(0), density=density, mean_span=1.0)
        assert mask.sum() == round(30 * density)
        assert len(runs(mask)) == min(mask.sum(), 30 - mask.sum())


def test_the_figure_of_the_paper() -> None:
    """Thank you <X> me to your party <Y> week; <X> for inviting <Y> last <Z>."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    ids = np.arange(len(words))
    mask = np.array([word in ("for", "inviting", "last") for word in words])
    source, target = corrupted(ids, mask, [100, 99, 98])
    named = dict(enumerate(words)) | {100: "<X>", 99: "<Y>", 98: "<Z>"}
    assert " ".join(named[int(i)] for i in source) == "Thank you <X> me to your party <Y> week"
    assert " ".join(named[int(i)] for i in target) == "<X> for inviting <Y> last <Z>"


@pytest.mark.parametrize("length", LENGTHS)
def test_source_and_target_rebuild_the_text_with_sentinels_in_order(length: int) -> None:
    ids = text(length)
    for seed in range(5):
        source, target = span_corruption(ids, [seed], SENTINELS)
        used = [int(token) for token in source if token > 900]
        assert used == SENTINELS[: len(used)]
        assert [int(token) for token in target if token > 900] == SENTINELS[: len(used) + 1]
        assert target[0] == SENTINELS[0] and target[-1] == SENTINELS[len(used)]
        gaps: dict[int, list[int]] = {}
        for token in target.tolist():
            if token > 900:
                gaps[token] = []
            else:
                gaps[list(gaps)[-1]].append(token)
        rebuilt = [each for token in source.tolist() for each in gaps.get(token, [token])]
        assert rebuilt == ids.tolist()
        tokens, spans = num_noise(length)
        assert (len(source), len(target)) == (length - tokens + spans, tokens + spans + 1)


def test_too_few_sentinels_are_refused() -> None:
    with pytest.raises(ValueError, match="8 spans need 9 sentinels"):
        span_corruption(text(160), [0], SENTINELS[:8])


def test_prefixes_are_of_every_length() -> None:
    ids = text(10)
    borders = set()
    for seed in range(200):
        source, target = prefix_lm(ids, [seed])
        assert np.concatenate([source, target]).tolist() == ids.tolist()
        borders.add(len(source))
    assert borders == set(range(1, 10))


def readers(seed: int = 0) -> list[SpanCorruption | PrefixLM]:
    def shift(target: torch.Tensor) -> torch.Tensor:
        return torch.cat([target.new_tensor([0]), target[:-1]])

    return [
        SpanCorruption(seed=seed, sentinels=SENTINELS, eos=EOS, shift=shift),
        PrefixLM(seed=seed, eos=EOS, shift=shift),
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_what_is_drawn_depends_on_seed_and_number_alone(kind: int) -> None:
    example = Encoded.of(np.append(text(60), EOS), np.array([0, 60]))
    found = readers()[kind](example, "a", 7)
    assert torch.equal(readers()[kind](example, "b", 7).input_ids, found.input_ids)
    others = [readers()[kind](example, "a", 8), readers(seed=1)[kind](example, "a", 7)]
    assert not any(torch.equal(each.input_ids, found.input_ids) for each in others)


@pytest.mark.parametrize("kind", [0, 1])
def test_both_sides_end_once_and_the_decoder_reads_what_it_has_written(kind: int) -> None:
    example = Encoded.of(np.append(text(60), EOS), np.array([0, 60]))
    reading = readers()[kind](example, "a", 3)
    for side in (reading.input_ids, reading.targets):
        assert (side == EOS).nonzero()[:, 0].tolist() == [len(side) - 1]
    assert reading.decoder_input_ids.tolist() == [0, *reading.targets[:-1].tolist()]
    assert reading.kept.tolist() == list(range(len(reading.targets)))
    assert example.input_ids[-1] == EOS and len(example.input_ids) == 61  # as it was


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("ids", [[5], [5, EOS], [5, 6], [5, 6, EOS]])
def test_the_shortest_texts_have_two_sides(kind: int, ids: list[int]) -> None:
    reading = readers()[kind](Encoded.of(np.array(ids), np.array([0, 1])), "a", 0)
    assert len(reading.input_ids) > 1 and len(reading.targets) > 1


@pytest.mark.parametrize("kind", [0, 1])
def test_virtual_tokens_stay_in_front_of_the_source(kind: int) -> None:
    front = np.array([2000, 2001])
    plain = Encoded.of(np.append(text(30), EOS), np.array([0, 30]))
    more = Encoded.of(np.concatenate([front, text(30), [EOS]]), np.array([2, 32]))
    expected, found = readers()[kind](plain, "a", 5), readers()[kind](more, "a", 5)
    assert found.input_ids.tolist() == [2000, 2001, *expected.input_ids.tolist()]
    assert torch.equal(found.targets, expected.targets)


def test_sentinels_are_found_by_name_and_counted() -> None:
    tokenizer = byte_seq2seq_tokenizer()
    found = sentinels_of(tokenizer, 512)
    assert tokenizer.convert_ids_to_tokens(found[:2]) == ["<extra_id_0>", "<extra_id_1>"]
    assert len(found) == 100 and found[0] == len(tokenizer) - 1 and found[-1] == len(tokenizer) - 100
    with pytest.raises(UserError, match=r"data\.max_length: texts of 4000 tokens have 200 gaps(.|\n)*max_length=19"):
        sentinels_of(tokenizer, 4000)
