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


def test_the_quick_start_ends_with_answers_before_and_after(tmp_path):
    question = "<|im_start|>user\nPositive or negative?\n\nA gem.<|im_end|>\n<|im_start|>assistant\n"
    said = [(0, "It is a"), (30, "negative"), (60, "positive")]
    lines = [{"step": step, "prompt": question, "answer": text, "expected": "positive"} for step, text in said]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [sys.executable, SCRIPTS / "quickstart_summary.py", tmp_path], capture_output=True, text=True, check=True
    )
    assert "A gem.\n    before: It is a\n    after:  positive    (people: positive)" in done.stdout
    assert f"tune chat {tmp_path}" in done.stdout
