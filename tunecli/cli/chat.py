"""Talk to a run, an adapter or a model; to several adapters of one base, switched or side by side.

tune chat outputs/sft_lora_smollm2/latest                  a run, rendered as it was trained
tune chat outputs/a/latest outputs/b/latest                runs over one base: /adapter NAME, /base, /compare PROMPT
tune chat HuggingFaceTB/SmolLM2-135M-Instruct              a model of the Hub, or a folder
tune chat RUN --prompt "What is the capital of France?"    one answer on standard output
tune chat RUN RUN --prompt "What is the capital of France?"    the answer of each, and of the base
tune chat RUN --json < question.txt                        all of standard input is one prompt
tune chat RUN --json --lines < questions.txt               each line is one
"""

from __future__ import annotations

import argparse
import sys
from io import TextIOWrapper

from tunecli.config.errors import UserError

SETTINGS = ("temperature", "top_p", "top_k", "max_new_tokens", "seed", "repetition_penalty")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="run directory, adapter, model folder or Hub id")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and end")
    parser.add_argument("--lines", action="store_true", help="each line of standard input is a prompt by itself")
    parser.add_argument("--system", metavar="TEXT", help="system message; empty for none (as trained)")
    parser.add_argument("--temperature", metavar="T", help="0.7 in a terminal; 0 with --prompt or standard input")
    parser.add_argument("--top-p", metavar="P", help="draw from the likeliest tokens that make up this share (1)")
    parser.add_argument("--top-k", metavar="K", help="draw from that many likeliest tokens (0: all)")
    parser.add_argument("--max-new-tokens", metavar="N", help="longest answer in tokens (512)")
    parser.add_argument("--seed", metavar="N", help="the same draws each time (0 with --prompt or standard input)")
    parser.add_argument("--repetition-penalty", metavar="X", help="above 1: what was said becomes less likely (1)")
    parser.add_argument("--json", action="store_true", help="each answer and how it ended as one JSON object")


def run(args: argparse.Namespace) -> int:
    prompts = _prompts(args)
    if not prompts and args.json:
        raise UserError("--json is for scripts", fix='add --prompt "TEXT", or give a prompt on standard input')
    if prompts or not sys.stderr.isatty():
        from tunecli.engine.quiet import no_foreign_bars

        no_foreign_bars()
    from tunecli.chat.settings import Settings, changed
    from tunecli.engine.hub_name import refuse_missing

    for path in args.paths:
        refuse_missing(path)
    settings = Settings(temperature=0.0, seed=0) if prompts else Settings()
    for name in SETTINGS:
        if (value := getattr(args, name)) is not None:
            settings = changed(settings, f"{name}={value}")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # encodings other than UTF-8
    from tunecli.chat.session import open_session

    session = open_session(args.paths, settings, args.system)
    if prompts:
        from tunecli.chat.once import answer_prompts

        answer_prompts(session, prompts, every_model=len(args.paths) > 1, as_json=args.json)
    else:
        from tunecli.chat.terminal import converse

        converse(session)
    return 0


def _prompts(args: argparse.Namespace) -> list[str]:
    """Those that are given; none where a person is going to type.

    Raises:
        UserError: there is nothing in them.
    """
    if args.lines and (args.prompt is not None or sys.stdin.isatty()):
        raise UserError("--lines is of standard input", fix="tune chat RUN --lines < questions.txt")
    if args.prompt is None and sys.stdin.isatty():
        return []
    text = _standard_input() if args.prompt is None else args.prompt
    prompts = [line for line in text.splitlines() if line.strip()] if args.lines else [text]
    if not text.strip():
        raise UserError("the prompt is empty", fix='--prompt "TEXT", or a text on standard input')
    return prompts


def _standard_input() -> str:
    """All of it, without the line break at its end."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    return sys.stdin.read().removesuffix("\n")
