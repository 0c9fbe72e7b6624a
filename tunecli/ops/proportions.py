"""How sure a share of examples is, and by how much it differs where the same examples were answered twice.

Wilson's score interval (Wilson, 1927), which Brown, Cai and DasGupta (2001) recommend for few examples and for many;
of differences the Wald interval with half an example added to each of the four cells (Agresti and Min, 2005), and
McNemar's exact test (1947). Unlike a bootstrap, none of them is certain where nothing, or everything, is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from tunecli.ops.bootstrap import Difference, Interval

Z = 1.959964
"""Standard deviations from the mean to the border of 95 %."""


def share(right: Sequence[bool]) -> Interval:
    """The share of examples that are right, in [0, 1]."""
    n, value = len(right), sum(right) / len(right)
    centre = (value + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(value * (1 - value) / n + Z**2 / (4 * n**2))
    # At the ends the formula gives the value itself, but for rounding.
    return Interval(value, max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value)))


def gain(before: Sequence[bool], after: Sequence[bool]) -> Difference:
    """By how much the share rose, in [-1, 1]; example i of one is example i of the other."""
    from scipy.stats import binomtest

    if len(before) != len(after):
        raise ValueError(f"{len(before)} examples before and {len(after)} after are not the same examples")
    pairs = list(zip(before, after, strict=True))
    lost, won = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    n = len(pairs) + 2
    centre = (won - lost) / n
    half = Z * sqrt((won + lost + 1) - (won - lost) ** 2 / n) / n
    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return Difference((won - lost) / len(pairs), max(-1.0, centre - half), min(1.0, centre + half), p)
