"""The real names that a mistyped one may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str], count: int = 1) -> list[str]:
    """At most `count` of `names`, the likeliest first. Knows dotted keys (`learning_rate` for
    `train.learning_rate`), parts of a name (`epochs` for `num_epochs`) and initials (`lr`)."""
    names = list(dict.fromkeys(names))
    wanted = _last(name)
    found = [key for key in names if _last(key) == wanted]
    found += [key for key in names if len(wanted) > 1 and _initials(_last(key)) == wanted]
    found += difflib.get_close_matches(name, names, n=count, cutoff=0.75)
    last_parts = difflib.get_close_matches(wanted, [_last(key) for key in names], n=count, cutoff=0.75)
    found += [key for part in last_parts for key in names if _last(key) == part]
    found += [key for key in names if len(wanted) > 2 and wanted in _last(key)]
    found += difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    return list(dict.fromkeys(found))[:count]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`did you mean X? `, or nothing when no name is near."""
    found = nearest(name, names)
    return f"did you mean {found[0]}? " if found else ""


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _initials(key: str) -> str:
    return "".join(word[0] for word in key.split("_") if word)
