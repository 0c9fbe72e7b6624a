"""`python -m tunecli.retain RUN_DIR`: what a finished run lost, or gained, of what its base model could do.

Each entry of `evaluation.retain` is what would stand behind `tune eval RUN`. The model that training began with and
the result answer the same rows in the same way, and are compared by the paired bootstrap, as `tune eval --compare`
does it.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tunecli.config.compose import load_config
from tunecli.config.errors import ConfigError, Problem, UserError, print_error
from tunecli.config.overrides import COMMAND_LINE
from tunecli.config.run import RunConfig
from tunecli.config.stage import Task
from tunecli.engine.checkpoint import write_atomically
from tunecli.engine.console import Display
from tunecli.report.page import write_report
from tunecli.report.retained import FILE, as_lines, read_retained
from tunecli.scoring import choose, choose_base, score_chosen
from tunecli.scoring import rows as data_rows
from tunecli.scoring.comparison import Comparison, compared
from tunecli.scoring.subject import base_has_head
from tunecli.scoring.terminal import progress

KEY = "evaluation.retain"


def check(config: RunConfig) -> None:
    """See before training that every entry can be asked, its rows included, which are in the cache from then on.

    Raises:
        ConfigError: all that cannot be.
    """
    if config.evaluation.retain and not base_has_head(config):
        what = f"asks what the base could do before training, and stage={config.stage.name} gives it a new head"
        fix = "evaluation.retain=[]; tune eval --compare RUN RUN data=NAME compares such runs"
        if config.stage.task is Task.sequence_classification:
            fix += "; stage=verbalize learns such labels without a new head, and can be asked"
        raise ConfigError([Problem(KEY, what, fix)])
    entries = enumerate(config.evaluation.retain, start=1)
    if problems := [problem for number, entry in entries for problem in _problems(config, number, entry)]:
        raise ConfigError(problems)


def _problems(config: RunConfig, number: int, entry: str) -> Iterator[Problem]:
    try:
        subject, chosen = choose_base(config, shlex.split(entry))
        data_rows.read(subject, chosen, with_training=False, show_progress=False)
    except UserError as error:
        found = error.problems if isinstance(error, ConfigError) else [Problem(error.where, error.what, error.fix)]
        for each in found:
            inside = "" if each.where in ("", COMMAND_LINE, "stage") else f"{each.where}: "
            yield Problem(f"{KEY} entry {number} ({entry})", inside + each.what, each.fix)
    except ValueError as error:  # of shlex: a quotation that does not end
        yield Problem(f"{KEY} entry {number} ({entry})", f"cannot be read: {error}", "close the quotation")


def main(run_dir: Path) -> int:
    """Measure every entry, and add what was found to the run's report. Returns the exit status."""
    config = load_config(run_dir / "config.yaml")
    display = Display(enabled=True, log_file=run_dir / "log.txt")
    try:
        found = [{"asked": entry} | asdict(measure(config, run_dir, entry)) for entry in config.evaluation.retain]
        write_atomically(run_dir / FILE, json.dumps(found, indent=2, ensure_ascii=False))
        for line in as_lines(read_retained(run_dir)):
            display.note(line)
        write_report(run_dir)
    except UserError as error:
        print_error(error)
        return error.exit_status
    return 0


def measure(config: RunConfig, run_dir: Path, entry: str) -> Comparison:
    """The base, and the run against it."""
    words = shlex.split(entry)
    asked = {"base": choose_base(config, words), "tuned": choose(str(run_dir), words)}
    with progress(enabled=sys.stderr.isatty()) as proceed:
        scores = [score_chosen(name, *each, proceed=proceed) for name, each in asked.items()]
    return compared(list(asked), [(each.as_json(), each.records) for each in scores])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
