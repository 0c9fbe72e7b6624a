"""What encoder-decoders learn from plain text: span corruption, and to go on with the beginning of a text.

Span corruption (Raffel et al., 2020, T5, arXiv:1910.10683, sections 3.1.4 and 3.3.4): 15 % of the tokens, in spans of
3 on average, are taken out of the source; a sentinel stands in the place of each, <extra_id_0> in the first,
<extra_id_1> in the second and so on. The target is each sentinel and behind it what it stands for, and a last
sentinel at the end, as in the paper's figure 2. Which tokens is what `random_spans_noise_mask` of the authors' code
draws: the numbers of tokens and spans are fixed by the length of the text, only where they lie is random; a text
begins with tokens that stay and ends with a span.

Prefix LM (the same, section 3.3.1; the "LM adaptation" of Lester et al., 2021, arXiv:2104.08691, section 2.2): the
source is the beginning of a text, the target the rest; the border is drawn evenly from all places between two tokens,
as `random_prefix_noise_mask` of the authors' code does.

Both sides end with the end-of-text token. Departures: the authors' code leaves out the last sentinel of figure 2, as
its masks end with a span; and where sentinels run out it takes words of the vocabulary for them, which we refuse.

What is drawn is a pure function of the seed and the number of the example in the order of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tunecli.config.errors import UserError
from tunecli.data.encoded import Encoded
from tunecli.data.reading import Reading, Shift, read_and_write

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOISE_DENSITY = 0.15
MEAN_SPAN_LENGTH = 3.0
STREAM = 4
"""Tells these random numbers from others of the same seed."""

Sides = tuple[np.ndarray, np.ndarray]
"""Token ids of source and target."""


def num_noise(length: int, density: float = NOISE_DENSITY, mean_span: float = MEAN_SPAN_LENGTH) -> tuple[int, int]:
    """How many of `length` tokens are taken out, and in how many spans: never more than there are tokens between."""
    tokens = min(max(round(length * density), 1), length - 1)
    return tokens, max(round(min(tokens, length - tokens) / mean_span), 1)


def noise_mask(
    length: int,
    random: np.random.Generator,
    *,
    density: float = NOISE_DENSITY,
    mean_span: float = MEAN_SPAN_LENGTH,
) -> np.ndarray:
    """[length] bool: which tokens are taken out. `length` is 2 or more."""
    tokens, spans = num_noise(length, density, mean_span)
    taken, left = _pieces(tokens, spans, random), _pieces(length - tokens, spans, random)
    return np.repeat(np.tile([False, True], spans), np.stack([left, taken], axis=1).ravel())


def _pieces(items: int, number: int, random: np.random.Generator) -> np.ndarray:
    """[number] lengths, 1 or more each, of the pieces that `items` in a row are cut into at random."""
    cut_behind = random.permutation(np.arange(items - 1) < number - 1)
    return np.diff([0, *(np.flatnonzero(cut_behind) + 1), items])


def corrupted(ids: np.ndarray, mask: np.ndarray, sentinels: Sequence[int]) -> Sides:
    """The source with a sentinel for each span of `mask`, and the target that says what they stand for.

    Raises:
        ValueError: there are fewer sentinels than spans and one more.
    """
    starts = np.flatnonzero(mask & ~np.concatenate([[False], mask[:-1]]))
    if len(sentinels) <= len(starts):
        raise ValueError(f"{len(starts)} spans need {len(starts) + 1} sentinels, and there are {len(sentinels)}")
    marked = ids.copy()
    marked[starts] = sentinels[: len(starts)]
    inside = mask.copy()
    inside[starts] = False
    target: list[int] = []
    for sentinel, start, end in zip(sentinels, starts, [*starts[1:], len(ids)], strict=False):
        target += [sentinel, *ids[start:end][mask[start:end]]]
    return marked[~inside], np.array([*target, sentinels[len(starts)]], ids.dtype)


def span_corruption(
    ids: np.ndarray,
    seed: Sequence[int],
    sentinels: Sequence[int],
    *,
    density: float = NOISE_DENSITY,
    mean_span: float = MEAN_SPAN_LENGTH,
) -> Sides:
    """Source and target of a text of 2 tokens or more, without end-of-text tokens."""
    random = np.random.default_rng(seed)
    return corrupted(ids, noise_mask(len(ids), random, density=density, mean_span=mean_span), sentinels)


def prefix_lm(ids: np.ndarray, seed: Sequence[int]) -> Sides:
    """Beginning and rest of a text of 2 tokens or more, neither of them empty."""
    border = int(np.random.default_rng(seed).integers(1, len(ids)))
    return ids[:border], ids[border:]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanCorruption:
    """A reader of plain texts for an encoder-decoder."""

    seed: int
    sentinels: Sequence[int]
    eos: int
    shift: Shift
    density: float = NOISE_DENSITY
    mean_span: float = MEAN_SPAN_LENGTH

    def __call__(self, example: Encoded, source: str, number: int) -> Reading:
        front, text = _text(example, self.eos)
        shares = {"density": self.density, "mean_span": self.mean_span}
        sides = span_corruption(text, [self.seed, STREAM, number], self.sentinels, **shares)
        return _reading(front, sides, self.eos, self.shift)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixLM:
    """A reader of plain texts for an encoder-decoder."""

    seed: int
    eos: int
    shift: Shift

    def __call__(self, example: Encoded, source: str, number: int) -> Reading:
        front, text = _text(example, self.eos)
        return _reading(front, prefix_lm(text, [self.seed, STREAM, number]), self.eos, self.shift)


def _text(example: Encoded, eos: int) -> tuple[np.ndarray, np.ndarray]:
    """What stands in front of a text (virtual tokens, say), and the text without an end-of-text token at its end. A
    single token becomes two: itself and that end."""
    ids, start = example.input_ids.numpy(), int(example.spans[0][0])
    end = len(ids) - int(ids[-1] == eos)
    text = ids[start:end]
    return ids[:start], text if len(text) > 1 else np.append(text, eos)


def _reading(front: np.ndarray, sides: Sides, eos: int, shift: Shift) -> Reading:
    source, target = (np.append(side, eos) for side in sides)
    return read_and_write(torch.from_numpy(np.concatenate([front, source])), torch.from_numpy(target), shift)


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Its id. Raises UserError if there is none."""
    if tokenizer.eos_token_id is None:
        raise UserError("its tokenizer has no end-of-text token", where="model.path", fix="T5 or one of its kind")
    return tokenizer.eos_token_id


def sentinels_of(
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    *,
    density: float = NOISE_DENSITY,
    mean_span: float = MEAN_SPAN_LENGTH,
) -> list[int]:
    """Ids of <extra_id_0>, <extra_id_1> and so on.

    Args:
        longest: tokens of the longest text that is to be corrupted.

    Raises:
        UserError: there are none, or too few for such texts.
    """
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    while (token := f"<extra_id_{len(found)}>") in vocabulary:
        found.append(vocabulary[token])
    if not found:
        raise UserError(
            "its tokenizer has no sentinels <extra_id_0>, ..., which span corruption marks gaps with",
            where="model.path",
            fix="T5 or one of its kind, or stage.objective=prefix_lm",
        )
    _, spans = num_noise(longest, density, mean_span)
    if len(found) <= spans:
        most = max(length for length in range(2, longest) if num_noise(length, density, mean_span)[1] < len(found))
        raise UserError(
            f"texts of {longest} tokens have {spans} gaps, and the tokenizer has {len(found)} sentinels, one of them "
            "for the end",
            where="data.max_length",
            fix=f"data.max_length={most}",
        )
    return found
