"""The rows that are not used, listed in the run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class LeftOut:
    """Appends to `left_out.jsonl`, each row once: a resumed run comes across the same rows again."""

    def __init__(self, file: Path, *, enabled: bool = True) -> None:
        self._file = file
        self._enabled = enabled
        self._listed: set[str] = set()
        if enabled and file.exists():
            self._listed = set(file.read_text(encoding="utf-8").split("\n"))

    def write(self, entries: list[dict[str, Any]]) -> None:
        """`entries`: source, row, why, what, fix."""
        lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
        new = [line for line in dict.fromkeys(lines) if line not in self._listed]
        if not self._enabled or not new:
            return
        self._listed.update(new)
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in new)
