"""One prompt, one answer: for scripts."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from tunecli.chat.session import Session
from tunecli.engine.text import harmless


def answer_once(session: Session, prompt: str, *, as_json: bool) -> None:
    """Print the answer, and nothing else, on standard output. Ctrl-C goes on as KeyboardInterrupt.

    Raises:
        UserError: the prompt cannot be answered.
    """
    terminal = sys.stdout.isatty()

    def show(piece: str) -> None:
        if not as_json:
            print(harmless(piece) if terminal else piece, end="", flush=True)

    if len(session.adapters) > 1:
        active, *others = session.adapters
        fix = f"to ask another, name its folder in place of the run: adapter/{others[0]}, say"
        print(f"note: {active} answers, of {', '.join(session.adapters)}; {fix}", file=sys.stderr)
    found = session.ask(prompt, show)
    if as_json:
        record = {"model": session.active.name, "prompt": prompt, "system": session.system or None}
        print(json.dumps(record | asdict(found)))
    else:
        print()
    if found.ended == "stopped":
        raise KeyboardInterrupt
