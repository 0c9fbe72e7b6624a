"""The two ways in which a user's input can be wrong; everything else keeps its traceback."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

COMMAND_LINE = "command line"
"""Where a problem is, if not in a file."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where it is, what is wrong and how to mend it."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n  fix: {self.fix}"


class UserError(Exception):
    """Bad input: what is wrong, where, and how to mend it. Ends the command with `exit_status`, no traceback."""

    exit_status = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        lines = [f"{where}: {what}" if where else what]
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__("\n".join(lines))
        self.what, self.where, self.fix = what, where, fix


class ConfigError(UserError):
    """All problems of a configuration at once."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class TrainingStopped(UserError):
    """Training cannot go on (a non-finite loss, say). Not the configuration's fault, hence status 1."""

    exit_status = 1


def print_error(error: UserError) -> None:
    """On standard error, red where that is a terminal that wants colours."""
    red = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    label = "\033[1;31merror:\033[0m" if red else "error:"
    print(f"{label} {error}", file=sys.stderr, flush=True)
