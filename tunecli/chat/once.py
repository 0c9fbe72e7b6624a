"""Prompts and their answers, without a conversation: for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from tunecli.chat.session import Session
from tunecli.engine.text import harmless


def answer_prompts(session: Session, prompts: Sequence[str], *, every_model: bool, as_json: bool) -> None:
    """Print the answers, and nothing else, on standard output: of one prompt and one model the answer alone. Ctrl-C
    goes on as KeyboardInterrupt.

    Args:
        every_model: each that was named answers; else the active one.

    Raises:
        UserError: a prompt cannot be answered.
    """
    names = list(session.models) if every_model else [session.active.name]
    if not every_model and len(session.adapters) > 1:
        active, *others = session.adapters
        fix = f"to ask another, name its folder in place of the run: adapter/{others[0]}, say"
        print(f"note: {active} answers, of {', '.join(session.adapters)}; {fix}", file=sys.stderr)
    for prompt in prompts:
        if len(prompts) > 1 and not as_json:
            print(f"> {prompt}")
        for name in names:
            if len(names) > 1 and not as_json:
                print(f"{name}:")
            session.switch(name)
            _answer(session, prompt, as_json=as_json)


def _answer(session: Session, prompt: str, *, as_json: bool) -> None:
    terminal = sys.stdout.isatty()

    def show(piece: str) -> None:
        if not as_json:
            print(harmless(piece) if terminal else piece, end="", flush=True)

    found = session.ask_alone(prompt, show)
    if as_json:
        record = {"model": session.active.name, "prompt": prompt, "system": session.system or None}
        print(json.dumps(record | asdict(found)), flush=True)
    else:
        print()
    if found.ended == "stopped":
        raise KeyboardInterrupt
