"""`python -m tunecli.prepare RUN_DIR`: fill the token cache, and copy what adapters start from, before any process
group exists.

Several ranks would otherwise wait for one of them inside a collective, which times out on large data.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tunecli.config.errors import UserError, print_error


def main(run_dir: Path) -> int:
    try:
        from tunecli.config.compose import load_config
        from tunecli.peft_methods.starting import put_starts_in_place
        from tunecli.run import prepare_data

        config = put_starts_in_place(load_config(run_dir / "config.yaml"), run_dir)
        prepare_data(config, show_progress=True)
    except UserError as error:
        print_error(error)
        return error.exit_status
    except KeyboardInterrupt:  # the launcher, which got it too, says so
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
