"""Completion: what is offered, and that a real shell inserts it."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tunecli.cli.complete import candidates
from tunecli.cli.completion import SCRIPTS
from tunecli.config.compose import compose_run
from tunecli.config.paths import recipe_names
from tunecli.config.stage import STAGE_SCHEMAS


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["re"], ["resume", "report"]),
        (["run", "rec"], ["recipe="]),
        (["run", "recipe=smoke_q"], ["recipe=smoke_qlora"]),
        (["run", "recipe=x", "rec"], []),
        (["run", "mod"], ["model=", "model."]),
        (["run", "model=tiny_l"], ["model=tiny_llama"]),
        (["run", "peft=[lora,bi"], ["peft=[lora,bitfit"]),
        (["run", "+peft@peft.second=lor"], ["+peft@peft.second=lora"]),
        (["run", "train.lr"], ["train.lr_scheduler="]),
        (["run", "train.lr_scheduler=c"], ["train.lr_scheduler=constant", "train.lr_scheduler=cosine"]),
        (["run", "model.trust_remote_code=t"], ["model.trust_remote_code=true"]),
        (["run", "peft.lora.lora_d"], ["peft.lora.lora_dropout="]),
        (["resume", "out", "model=t"], []),
        (["resume", "out", "train.max_s"], ["train.max_steps="]),
        (["run", "--dr"], ["--dry-run"]),
        (["ls", "pe"], ["peft"]),
        (["cp", "peft/lor"], ["peft/lora"]),
        (["completion", "f"], ["fish"]),
        (["nonsense", ""], []),
    ],
    ids=str,
)
def test_candidates(words: list[str], offered: list[str]):
    assert candidates(words) == offered


def test_every_recipe_is_offered():
    assert candidates(["show", "recipe="]) == [f"recipe={name}" for name in recipe_names()]


def test_every_key_that_is_offered_exists():
    sections = ["", "model.", "data.", "train.", "launch.", "stage.", "peft.lora."]
    keys = [key for section in sections for key in candidates(["check", "recipe=x", section]) if key.endswith("=")]
    assert len(keys) > 40
    others = {"sft": "smoke_sft_lora", "preference": "smoke_dpo"}
    recipes = [others.get(stage, f"smoke_{stage}") for stage in STAGE_SCHEMAS]
    configs = [compose_run(recipe, []).config for recipe in recipes]
    for key in keys:
        assert any(has(config, key[:-1]) for config in configs), key


def has(node: object, key: str) -> bool:
    for part in key.split("."):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif hasattr(node, part):
            node = getattr(node, part)
        else:
            return False
    return True


TYPED = {
    "tune ru": "tune run ",
    "tune run recipe=smoke_q": "tune run recipe=smoke_qlora ",
    "tune run recipe=smoke_qlora data=wnu": "tune run recipe=smoke_qlora data=wnut16 ",
    "tune run model.dtyp": "tune run model.dtype=",
    "tunecli run train.lr_scheduler=cos": "tunecli run train.lr_scheduler=cosine ",
    "tune run +peft@peft.second=lor": "tune run +peft@peft.second=lora ",
    "tune show recipe=./my_own": "tune show recipe=./my_own.yaml ",
}


def test_bash_inserts_what_is_offered(tmp_path: Path):
    """Through a terminal: bash splits words at `=`, `:` and `@`, which no call of the function alone would show."""
    (tmp_path / "my_own.yaml").touch()
    with bash(tmp_path) as terminal:
        for typed, expected in TYPED.items():
            os.write(terminal, f"\x15{typed}\t".encode())  # Ctrl-U empties the line
            read_until(terminal, expected)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_parses(shell: str):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "--no-execute" if shell == "fish" else "-n"], input=SCRIPTS[shell], text=True, check=True)


@contextmanager
def bash(folder: Path) -> Iterator[int]:
    """The terminal of an interactive bash in `folder`, with completion set up as `tune completion --help` says."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TERM": "dumb", "PS1": "$ ", "INPUTRC": "/dev/null"}
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
    try:
        os.write(terminal, b'eval "$(tune completion bash)"; echo in""stalled\n')
        read_until(terminal, "installed")
        yield terminal
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def read_until(terminal: int, wanted: str) -> None:
    found, end = "", time.monotonic() + 20
    while wanted not in found and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            found += os.read(terminal, 65536).decode()
    assert wanted in found
