"""What a run is called where several stand side by side: its recipe, and its time where that is what differs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tunecli.config.errors import UserError

TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
"""The name of a run directory, `outputs/RECIPE/TIME`."""
RESULT = "adapter"
"""Folder of a run that holds its adapters."""


def names_of(paths: Sequence[str]) -> list[str]:
    """The shortest names that tell the paths apart. `latest` counts as the run that it points to.

    Args:
        paths: as typed: folders, or names of models that are no folders.

    Raises:
        UserError: the same path twice.
    """
    parts = [_parts(path) for path in paths]
    for path, each in zip(paths, parts, strict=True):
        if parts.count(each) > 1:
            raise UserError(f"named twice: {path}", fix="name each path once")
    wordings = [_wordings(each) for each in parts]
    for length in range(max(map(len, wordings))):
        names = [each[min(length, len(each) - 1)] for each in wordings]
        if len(set(names)) == len(names):
            return names
    return ["/".join(each) for each in parts]


def _parts(path: str) -> tuple[str, ...]:
    folder = Path(path).expanduser()
    if "latest" in folder.parts and folder.exists():
        folder = folder.resolve()
    return folder.parts or (path,)


def _wordings(parts: tuple[str, ...]) -> list[str]:
    """Ever longer names of one path."""
    ends = ["/".join(parts[-length:]) for length in range(1, len(parts) + 1)]
    time = next((i for i, part in enumerate(parts) if TIME.fullmatch(part) and i > 0), None)
    if time is None:
        return ends
    recipe, inside = parts[time - 1], "/".join(part for part in parts[time + 1 :] if part != RESULT)
    if inside:
        return [inside, f"{recipe} {inside}", f"{recipe} {parts[time]} {inside}", *ends]
    return [recipe, f"{recipe} {parts[time]}", *ends]
