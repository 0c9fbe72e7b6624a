"""The live line fits its terminal; nothing but text reaches a pipe, and no escape of the model reaches a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from rich.cells import cell_len

from tunecli.engine.console import Display, _digits, _eta, _parts, fitting, result

TRAINING = """
import sys, time
from tunecli.engine.console import Display
display = Display()
display.start(step=0, num_steps=100000)
record = dict(loss=12.3456, learning_rate=1e-5, grad_norm=123.4, tokens_per_second=123456.0, memory_peak_bytes=64e9)
display.training(record | dict(step=12345, seconds_per_step=1.0), 100000)
time.sleep(0.2)
display.evaluation({"step": 12345, "eval/loss": 1.0, "eval/exact_match": 0.875}, 100000)
display.note("a word " * 20 + "/a/path/" + 100 * "x")
display.stop()
"""
PARTS = {
    "loss": "loss 1.0",
    "lr": "lr 1e-3",
    "norm": "norm 2",
    "speed": "9 tok/s",
    "memory": "1 GB",
    "eta": "eta 0:01",
}


def in_terminal(columns: int, **environment: str) -> str:
    """What the script above writes to a terminal of so many columns."""
    master, slave = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    variables |= {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "30", **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING], stdin=slave, stdout=slave, stderr=slave, env=variables
    )
    os.close(slave)
    written = b""
    try:
        while block := os.read(master, 65536):
            written += block
    except OSError:  # Linux says so when the other side is closed
        pass
    os.close(master)
    assert process.wait() == 0
    return written.decode()


@pytest.mark.parametrize(("columns", "shown"), [(120, "tok/s"), (80, "tok/s"), (60, "eta")])
def test_the_live_line_never_wraps(columns: int, shown: str):
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", in_terminal(columns))
    lines = [line for line in re.split(r"[\r\n]+", plain) if "12345/100000 " in line and "validation" not in line]
    live = [line.rstrip() for line in lines if "loss" in line]
    assert live and all(cell_len(line) <= columns for line in live)
    assert "a word\r\n  " in plain and "  /a/path/" + 100 * "x" in plain
    assert "…" not in "".join(live) and shown in live[-1]


def test_no_color_and_dumb_terminals_are_respected():
    colours = r"\x1b\[[0-9;]*3[0-7]m"
    assert re.search(colours, in_terminal(80))
    assert not re.search(colours, in_terminal(80, NO_COLOR="1"))
    dumb = in_terminal(80, TERM="dumb")
    assert "\x1b" not in dumb and "step 12345/100000  loss 12.346" in dumb


def test_a_pipe_gets_whole_plain_lines():
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, check=True)
    first, second, note = done.stdout.splitlines()
    assert first.startswith("step 12345/100000  loss 12.346  lr 1.0e-5") and first.endswith("  eta 24h")
    assert second == "step 12345/100000  validation  loss 1.0000  exact match 87.5%"
    assert note == "a word " * 20 + "/a/path/" + 100 * "x"
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("seconds_per_step", [0.1, 0.3, 4.0, 30.0, 300.0])
@pytest.mark.parametrize("tokens_per_second", [9.0, 1234.0, 123456.0])
def test_a_step_line_fits_80_columns(seconds_per_step: float, tokens_per_second: float):
    for loss, norm, memory in product((0.1234, 12.3456), (0.123, 9.99, 123.4), (3.6e9, 64e9)):
        given = {"loss": loss, "grad_norm": norm, "memory_peak_bytes": memory, "learning_rate": 2.95e-4}
        speed = {"tokens_per_second": tokens_per_second, "seconds_per_step": seconds_per_step}
        record = given | speed | {"step": 1234}
        line = f"step 1234/2000  {'  '.join(_parts(record, 2000).values())}"
        assert len(line) <= 79, line


def test_times_and_digits():
    assert [_eta(seconds) for seconds in (7, 255, 3599, 3600, 30000, 90000)] == [
        "eta 0:07", "eta 4:15", "eta 59:59", "eta 1h00", "eta 8h20", "eta 25h",
    ]  # fmt: skip
    assert [_digits(number, 2) for number in (0.125, 9.99, 12.34, 1234.5)] == ["0.12", "9.99", "12.3", "1234"]
    assert _digits(float("nan"), 4) == "nan"


def test_the_least_needed_parts_go_first():
    shown = [" ".join(fitting(PARTS, width)) for width in (100, 45, 38, 29, 20, 5)]
    assert shown == [
        "loss 1.0 lr 1e-3 norm 2 9 tok/s 1 GB eta 0:01",
        "loss 1.0 lr 1e-3 9 tok/s 1 GB eta 0:01",
        "loss 1.0 lr 1e-3 9 tok/s eta 0:01",
        "loss 1.0 9 tok/s eta 0:01",
        "loss 1.0 eta 0:01",
        "loss 1.0",
    ]


def test_shares_are_shown_in_percent():
    assert result("choice_accuracy", 0.9051) == "choice accuracy 90.5%"
    assert result("perplexity", 12.3456) == "perplexity 12.35"
    assert result("loss/reviews", 0.5) == "loss/reviews 0.5000"


def test_samples_are_one_line_each_and_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    display = Display(log_file=tmp_path / "log.txt")
    sample = {"prompt": "x" * 300, "answer": "\x1b]0;owned\x07 one\ntwo " + "語" * 300, "expected": "positive"}
    display.samples(5, 9, [sample] * 5)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "step 5/9  samples" and len(lines) == 6
    assert all(cell_len(line) <= display.console.width for line in lines)
    assert "\x1b" not in "".join(lines) and "\\x1b]0;owned\\x07 one⏎two" in lines[1]
    assert lines[1].endswith("(expected: positive)")
    assert (tmp_path / "log.txt").read_text().splitlines() == [head, *lines]


def test_of_a_rendered_prompt_the_question_is_shown(capsys: pytest.CaptureFixture[str]):
    prompt = "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    Display().samples(5, 9, [{"prompt": prompt, "answer": "So."}])
    assert capsys.readouterr().out.splitlines()[1:] == ["  Why?", "    -> So."]
