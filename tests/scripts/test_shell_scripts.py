"""What the shell scripts say when the machine lacks something, and what the quick start says at its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

OLD_PYTHON = """#!/bin/sh
case "$2" in
  *platform*) echo 3.10.13 ;;
  *version_info*) exit 1 ;;
esac
"""
NO_VENV = """#!/bin/sh
case "$2" in
  *platform*) echo 3.11.7 ;;
  *ensurepip*) echo "No module named ensurepip" >&2; exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("interpreter", "message"),
    [
        (None, "was not found"),
        (OLD_PYTHON, "is Python 3.10.13, and 3.11 or newer is needed"),
        (NO_VENV, "has no venv module"),
    ],
)
def test_setup_names_what_is_missing_and_the_fix(tmp_path, interpreter, message):
    python = tmp_path / "python"
    if interpreter is not None:
        python.write_text(interpreter)
        python.chmod(0o755)
    done = subprocess.run(
        ["bash", SCRIPTS / "setup.sh"],
        env={**os.environ, "PYTHON": str(python)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "\n  fix: " in done.stderr
    assert "No module named" not in done.stderr


def test_the_quick_start_ends_with_the_loss_before_and_after(tmp_path):
    lines = [
        {"step": 1, "loss": 3.0},
        {"step": 10, "eval/loss": 2.5},
        {"step": 20, "loss": 1.0},
        {"step": 20, "eval/loss": 1.25},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [sys.executable, SCRIPTS / "quickstart_summary.py", tmp_path], capture_output=True, text=True, check=True
    )
    assert "Validation loss: 2.500 at step 10, 1.250 at step 20" in done.stdout
    assert str(tmp_path) in done.stdout
