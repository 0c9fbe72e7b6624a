"""`tune merge` as a person and a script see it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from merging import finished_run

from tunecli.cli import merge

TEXT = "difference   0.93 at most, of logits up to 42 (refused above 8.4), on 4 validation examples of the run"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal_lines_break_between_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert merge._wrapped(TEXT) == TEXT
    monkeypatch.setattr(sys, "stdout", Terminal())
    first, second = merge._wrapped(TEXT).splitlines()
    assert len(first) <= 80 and second.startswith(13 * " ") and f"{first} {second.strip()}" == TEXT


def test_scripts_see_no_bars_of_other_libraries(tmp_path: Path):
    run = finished_run(tmp_path / "run", "data.validation=null")
    done = subprocess.run([sys.executable, "-m", "tunecli", "merge", run], capture_output=True, text=True, check=True)
    assert "%|" not in done.stderr and done.stdout.startswith("merged")
