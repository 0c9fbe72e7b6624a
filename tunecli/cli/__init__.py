"""The `tune` command. Each verb is a module here; what does the work is imported when the verb runs, so that help and
listings stay instant."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from typing import NoReturn

from tunecli.config.errors import UserError, print_error
from tunecli.config.nearest import did_you_mean

VERBS = {
    "run": "start a run: tune run recipe=NAME [key=value ...]",
    "resume": "go on with a run that was stopped: tune resume RUN_DIR",
    "logs": "what a run printed, and, with -f, what it prints until it ends: tune logs -f RUN_DIR",
    "stop": "ask a run to save and end: tune stop RUN_DIR",
    "ls": "list recipes, or the options of a group: tune ls model",
    "show": "print a resolved configuration, and what set each value (--origin)",
    "preview": "show examples as the model sees them, and what the data are like: tune preview FILE",
    "chat": "talk to a run, an adapter or a model: tune chat RUN_DIR",
    "eval": "score a run or a model on a data set, or compare several: tune eval RUN data.path=FILE",
    "predict": "what a run or a model says of every row of a file: tune predict RUN FILE",
    "label": "have answers of a model judged, and write a data set: tune label recipe=NAME",
    "judge": "try a judge on a file of pairs or answers: tune judge FILE judge=NAME",
    "score": "score answers with a reward model: tune score RUN data.path=FILE",
    "report": "write the report of a run as a page, or compare runs: tune report RUN [RUN ...]",
    "diff": "show what differs between two runs: tune diff RUN RUN",
    "merge": "put adapters into the weights of their base: tune merge RUN",
    "push": "publish a result on the Hugging Face Hub: tune push RUN OWNER/NAME",
    "check": "find what is wrong with a configuration, without starting anything",
    "cp": "copy a recipe or an option into a file of your own",
    "env": "versions and hardware, for bug reports",
    "completion": "completion for bash, zsh or fish",
}
HIDDEN = {"__complete": "complete"}

HELP = """usage: tune VERB ...

{verbs}

start here:
  tune ls
  tune run recipe=smoke_sft_lora
  tune run recipe=sft_lora_smollm2 train.learning_rate=1e-4 peft.lora.r=8
`tune VERB --help` says more."""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status (2 for a mistake of the user's)."""
    words = sys.argv[1:] if argv is None else argv
    # Threads that wait for each other in a loop keep the cores from each other on a busy machine: beside another load
    # training was 4 times slower with libgomp's own number of rounds; on a quiet machine this one costs 5 to 10 %.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        status = _dispatch(words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `tune ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if _is_interrupt(error):
            print(f"\ntune {words[0]}: interrupted", file=sys.stderr)
            return 130
        if not isinstance(error, UserError):
            raise
        print_error(error)
        return error.exit_status


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what a library's cleaning up after Ctrl-C made of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {verb:<12}{text}" for verb, text in VERBS.items())))
        return 0
    verb, *rest = words
    if verb == "--version":
        from tunecli import __version__

        print(__version__)
        return 0
    if verb not in VERBS and verb not in HIDDEN:
        raise UserError(f"there is no verb {verb!r}", fix=f"{did_you_mean(verb, VERBS)}verbs: {', '.join(VERBS)}")
    module = importlib.import_module(f"tunecli.cli.{HIDDEN.get(verb, verb)}")
    if verb in HIDDEN:
        return module.run(rest)
    return module.run(parser(verb).parse_intermixed_args(rest))


class _Parser(argparse.ArgumentParser):
    """Whose complaints have the form of all others."""

    def error(self, message: str) -> NoReturn:
        where, what, hint = self.prog, message, ""
        if message.startswith("argument "):
            where, _, what = message.removeprefix("argument ").partition(": ")
            what = re.sub(r"invalid \w+ value: (.*)", r"\1 is no value for it", what)
        elif message.startswith("unrecognized arguments: "):
            options = [text for action in self._actions for text in action.option_strings]
            hint = did_you_mean(message.split()[2].partition("=")[0], options)
        raise UserError(what, where=where, fix=f"{hint}`{self.prog} --help` lists what it takes")


def parser(verb: str) -> argparse.ArgumentParser:
    """The argument parser of a verb, described by its module's docstring."""
    module = importlib.import_module(f"tunecli.cli.{verb}")
    result = _Parser(f"tune {verb}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(result)
    return result
