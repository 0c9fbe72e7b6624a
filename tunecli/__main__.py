"""The command `tune`. Ctrl-C while the rest of it is imported ends it with one line too."""

from __future__ import annotations

import sys


def command() -> int:
    try:
        from tunecli.cli import main

        return main()
    except KeyboardInterrupt:
        print("\ntune: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(command())
