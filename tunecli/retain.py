"""`python -m tunecli.retain RUN_DIR`: what a finished run lost, or gained, of what its base model could do.

Each entry of `evaluation.retain` is what would stand behind `tune eval RUN`. The model that training began with and
the result answer the same rows in the same way, and are compared by the paired bootstrap, as `tune eval --compare`
does it.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from tunecli.config.compose import load_config
from tunecli.config.errors import ConfigError, UserError, print_error
from tunecli.config.run import RunConfig
from tunecli.engine.checkpoint import write_atomically
from tunecli.engine.console import Display
from tunecli.report.page import write_report
from tunecli.report.retained import FILE, as_lines, read_retained
from tunecli.scoring import choose, choose_base, score_chosen
from tunecli.scoring import rows as data_rows
from tunecli.scoring.comparison import Comparison, compared
from tunecli.scoring.terminal import progress


def check(config: RunConfig) -> None:
    """See before training that every entry can be asked, its rows included, which are in the cache from then on.

    Raises:
        UserError: one cannot.
    """
    for entry in config.evaluation.retain:
        try:
            subject, chosen = choose_base(config, shlex.split(entry))
            data_rows.read(subject, chosen, with_training=False, show_progress=False)
        except UserError as error:
            first = error.problems[0] if isinstance(error, ConfigError) else error
            what = f"{entry}: {first.where}: {first.what}"
            raise UserError(what, where="evaluation.retain", fix=first.fix) from error


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
