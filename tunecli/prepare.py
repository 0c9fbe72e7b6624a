"""`python -m tunecli.prepare RUN_DIR`: copy what adapters start from, see that methods fit the model, and fill the
token cache, before any process group exists.

Several ranks would otherwise wait for one of them inside a collective, which times out on large data.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tunecli.config.errors import ConfigError, UserError, print_error


def main(run_dir: Path) -> int:
    try:
        from tunecli.assembly.data import prepare_data
        from tunecli.assembly.positions import within_positions
        from tunecli.assembly.ppo import check_ppo
        from tunecli.config.compose import load_config
        from tunecli.peft_methods.rehearsal import misfits
        from tunecli.peft_methods.starting import put_starts_in_place, start_folders

        config, _ = within_positions(load_config(run_dir / "config.yaml"))
        config = put_starts_in_place(config, run_dir)
        if problems := misfits(config, start_folders(config, run_dir)):
            raise ConfigError(problems)
        check_ppo(config, prepare_data(config, show_progress=True))
        if config.evaluation.retain:
            from tunecli.retain import check

            check(config)
    except UserError as error:
        print_error(error)
        return error.exit_status
    except KeyboardInterrupt:  # the launcher, which got it too, says so
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
