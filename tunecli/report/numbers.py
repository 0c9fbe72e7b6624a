"""Numbers as a person reads them. `hover.js` formats the same way."""

from __future__ import annotations

import json
import math
import re
from typing import Any

TOO_FEW = "too few to tell"
"""Where a difference has no interval."""
COMMIT = "git_commit"
"""What environment.json calls the commit of tunecli that trained."""


def unit_of(metric: str) -> str:
    if metric.endswith("_bytes"):
        return "bytes"
    return "share" if metric.endswith(("exact_match", "accuracy")) else ""


def shown(value: float, unit: str = "") -> str:
    """`unit`: bytes, share (of 1, shown in percent) or none."""
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB"
    if unit == "share":
        return f"{100 * value:.1f}%"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 0.001:
        return f"{value:.4g}"
    return scientific(value, 2)


def difference(value: float, unit: str = "") -> str:
    """With its sign; 0 where what is shown of it would be nothing but zeros. Shares differ by points, not by
    percent."""
    sign = "−" if value < 0 else "+"
    text = f"{100 * abs(value):.1f} points" if unit == "share" else shown(abs(value), unit)
    return sign + text if re.search("[1-9]", text) else "0"


def chance(p: float) -> str:
    """Smaller ones say no more: a test of resamples knows none below one of them."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def large(value: int) -> str:
    """1,234 as it is, 12,345,678 as 12.3M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e5, "k")):
        if value >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:.3g}{letter}"
    return f"{value:,}"


def tick(value: float, step: float, unit: str) -> str:
    """At an axis, with as many digits as `step` needs."""
    if value == 0:
        return "0"
    if unit == "bytes":
        return f"{value / 1e9:.{_decimals(step / 1e9)}f} GB"
    if unit == "share":
        return f"{100 * value:.{_decimals(100 * step)}f}%"
    if step < 1e-3:
        return scientific(value, 1).replace(".0e", "e")
    if step >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.{_decimals(step)}f}"


def in_words(value: Any) -> str:
    """A value of a configuration or of a count."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict) and value:
        return ", ".join(f"{key} {in_words(each)}" for key, each in value.items())
    if isinstance(value, list) and value:
        return ("; " if any(isinstance(each, dict) for each in value) else ", ").join(map(in_words, value))
    return json.dumps(value, ensure_ascii=False)


def short_hash(commit: str) -> str:
    return commit[:10]


def scientific(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _decimals(step: float) -> int:
    digits = max(0, -math.floor(math.log10(step)))
    return digits if round(step * 10**digits, 6) == round(step * 10**digits) else digits + 1
