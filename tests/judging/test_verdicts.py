"""From tokens and texts to probabilities of verdicts."""

from __future__ import annotations

import itertools
import math

import pytest

from tunecli.judging.verdicts import Verdicts, agreement, better, certain, expectation, normalised, read

DIGITS = {str(number): tuple(map(int, str(number))) for number in range(1, 11)}


def model(said: tuple[int, ...]) -> dict[int, float]:
    """Some distribution over the next of ten tokens, after anything."""
    weights = [1.0 + math.sin(3 * token + 7 * sum(said) + len(said)) for token in range(10)]
    return {token: weight / sum(weights) for token, weight in enumerate(weights)}


def test_verdicts_of_several_tokens_have_the_probability_that_exactly_they_are_said():
    verdicts = Verdicts(tuple(DIGITS.values()))
    wanted = verdicts.next_tokens.items()
    known = {(said, token): math.log(model(said)[token]) for said, tokens in wanted for token in tokens}
    shares, mass = verdicts.probabilities(known)
    one = model(())[1]
    exact = [one * (1 - model((1,))[0]), *(model(())[digit] for digit in range(2, 10)), one * model((1,))[0]]
    assert shares == pytest.approx([weight / sum(exact) for weight in exact])
    assert mass == pytest.approx(sum(exact))


def test_one_sequence_is_read_for_verdicts_that_begin_alike():
    assert Verdicts(tuple(DIGITS.values())).sequences == [(1,)]
    assert Verdicts(((5, 1), (5, 2))).sequences == [(5,)]
    assert Verdicts(((1,), (2,))).sequences == [()]
    assert sorted(Verdicts(((1, 2), (3, 4))).sequences) == [(1,), (3,)]


def test_verdicts_with_the_same_tokens_are_refused():
    with pytest.raises(ValueError, match="not told apart"):
        Verdicts(((1,), (1,)))


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        *(("1", 0), (" 2. ", 1), ("**2**", 1), ("(1)", 0), ("Better response: 2", 1), ("better response: **1**", 0)),
        *(("", None), ("12", None), ("3", None), ("Response 1 is better", None), ("1 or 2", None), ("1\n2", None)),
        *(("I cannot say.", None), ("Better response:", None), ("-1", None), ("1.5", None)),
    ],
)
def test_only_a_verdict_is_read_as_one(text: str, choice: int | None):
    assert read(text, "Better response:", ("1", "2"), reasoned=False) == choice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        *(("Both are fine.\nBetter response: 2", 1), ("So:\n\n**Better response:** 1", 0), ("1 is good\n2", None)),
        *(("Better response: 1\nOr not.", None), ("Better response: 1 or 2", None), ("", None)),
    ],
)
def test_behind_reasons_the_last_line_is_the_verdict(text: str, choice: int | None):
    assert read(text, "Better response:", ("1", "2"), reasoned=True) == choice


def test_ten_is_not_one():
    assert read("10", "Rating:", tuple(DIGITS), reasoned=False) == 9
    assert read("Rating: 1", "Rating:", tuple(DIGITS), reasoned=False) == 0


def test_swapping_two_distributions_gives_the_complement():
    shares = [normalised([1.0, 2.0, 3.0])[0], normalised([4.0, 1.0, 0.0])[0], certain(1, 3), certain(2, 3)]
    for first, second in itertools.product(shares, shares):
        assert better(first, second) + better(second, first) == pytest.approx(1, abs=1e-15)
    assert better(certain(2, 3), certain(1, 3)) == 1.0
    assert better(certain(1, 3), certain(1, 3)) == 0.5


def test_the_expectation_is_in_units_of_the_verdicts():
    assert expectation([0.5, 0, 0.5], ("1", "5", "10")) == 5.5


def test_agreement_is_that_of_two_answers():
    assert agreement([certain(0, 2)]) is None
    assert agreement([[0.75, 0.25]]) == 0.625
    assert agreement([certain(0, 2), certain(0, 2), certain(1, 2)]) == pytest.approx(1 / 3)


def test_no_weight_at_all_is_no_preference():
    assert normalised([0.0, 0.0]) == ([0.5, 0.5], 0.0)
