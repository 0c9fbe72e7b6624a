"""`tune chat` as a person or a script calls it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tunecli.chat.answering import Answer
from tunecli.chat.settings import Settings
from tunecli.cli import main
from tunecli.cli.chat import SETTINGS

MODEL = "builtin:tiny_llama"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def chat(*words: str) -> int:
    return main(["chat", MODEL, "--max-new-tokens", "12", *words])


def test_one_prompt_gives_its_answer_and_nothing_else_each_time(capsys: pytest.CaptureFixture[str]):
    assert chat("--prompt", "Hello", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt"] == "Hello" and record["tokens"] <= 12 and record["ended"] in ("end", "length")
    for words in ((), ("--seed", "7")):
        assert chat("--prompt", "Hello", *words) == 0
        assert capsys.readouterr().out == record["text"] + "\n"


def test_all_of_standard_input_is_one_prompt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("two\nlinés \n".encode()), encoding="ascii"))
    assert chat("--json", "--system", "Be brief") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["prompt"], record["system"]) == ("two\nlinés ", "Be brief")


def test_a_file_or_pipe_gets_the_answer_as_it_is_and_a_terminal_without_escapes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def answer(lm: object, rendering: object, ids: object, settings: object, show: Callable[[str], None]) -> Answer:
        for piece in ("a\x1b", "[31m\tb"):
            show(piece)
        return Answer("a\x1b[31m\tb", 2, "end", 0)

    monkeypatch.setattr("tunecli.chat.session.answer", answer)
    assert chat("--prompt", "Hello") == 0
    assert capsys.readouterr().out == "a\x1b[31m\tb\n"
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    assert chat("--prompt", "Hello") == 0
    assert screen.getvalue() == "a\\x1b[31m\tb\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", " "], "the prompt is empty"),
        (["--prompt", "x", "--temperature", "hot"], "temperature=hot"),
        (["--prompt", "x", "--top-p", "7"], "at most 1"),
        (["--prompt", "x", "--max-new-tokens", "0"], "at least 1"),
    ],
)
def test_mistakes_are_explained(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["chat", MODEL, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "fix: " in error and "Traceback" not in error


def test_json_needs_one_prompt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert chat("--json") == 2
    assert "--prompt" in capsys.readouterr().err


def test_each_line_of_standard_input_is_a_prompt_if_asked_for(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\nGood morning\n"))
    assert chat("--lines", "--json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["prompt"], second["prompt"]) == ("Hello", "Good morning")
    assert chat("--prompt", "Good morning", "--json") == 0  # no line hears of those before it
    assert json.loads(capsys.readouterr().out)["text"] == second["text"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nGood morning"))
    assert chat("--lines") == 0
    assert capsys.readouterr().out == f"> Hello\n{first['text']}\n> Good morning\n{second['text']}\n"


def test_lines_are_of_standard_input(capsys: pytest.CaptureFixture[str]):
    assert chat("--lines", "--prompt", "Hello") == 2
    assert "--lines < " in capsys.readouterr().err


def test_scripts_see_no_bars_of_other_libraries():
    words = ["chat", MODEL, "--prompt", "Hello", "--max-new-tokens", "2"]
    done = subprocess.run([sys.executable, "-m", "tunecli", *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_every_setting_has_an_option():
    assert set(SETTINGS) == set(Settings.__dataclass_fields__)


def test_in_a_terminal(tmp_path: Path):
    """Typed into a real one: an answer, Ctrl-C at the prompt, an earlier line by the arrow key, Ctrl-D; and the lines
    are kept, for the user alone."""
    environment = os.environ | {"TUNECLI_CACHE": str(tmp_path), "TERM": "xterm", "NO_COLOR": "1"}
    process, screen = pty.fork()
    if process == 0:
        words = ["chat", MODEL, "--max-new-tokens", "4", "--temperature", "0"]
        os.execve(sys.executable, [sys.executable, "-m", "tunecli", *words], environment)
    seen = wait_for(screen, "/help lists", "> ")
    os.write(screen, b"/set seed=5\n")
    seen += wait_for(screen, "seed=5  ", "> ")
    seen += interrupt(screen, "/quit ends", "> ")
    os.write(screen, b"\x1b[A\n")
    seen += wait_for(screen, "/set seed=5", "seed=5  ", "> ")
    os.write(screen, b"Hello\n")
    seen += wait_for(screen, "Hello", "\n> ")
    os.write(screen, b"\x04")
    assert os.waitpid(process, 0)[1] == 0
    assert "Traceback" not in seen and "\x1b[1m" not in seen
    history = tmp_path / "chat_history"
    assert history.read_text().splitlines()[-1] == "Hello" and history.stat().st_mode & 0o077 == 0


def interrupt(screen: int, *texts: str) -> str:
    """Press Ctrl-C until `texts` have come: one between the prompt and readline's waiting for keys is lost."""
    for _ in range(20):
        os.write(screen, b"\x03")
        with contextlib.suppress(AssertionError):
            return wait_for(screen, *texts, seconds=5)
    raise AssertionError(f"Ctrl-C brings no {texts}")


def wait_for(screen: int, *texts: str, seconds: float = 180) -> str:
    """Read until `texts` have come, one after the other."""
    seen, end = "", time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([screen], [], [], 0.1)[0]:
            seen += os.read(screen, 4096).decode(errors="replace").replace("\r", "")
        rest = seen
        for text in texts:
            before, found, rest = rest.partition(text)
            if not found:
                break
        else:
            return seen
    raise AssertionError(f"no {texts} in {seen!r}")
