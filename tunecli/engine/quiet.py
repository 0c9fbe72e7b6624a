"""Progress bars of the libraries below us."""

from __future__ import annotations

import os
import sys


def no_foreign_bars() -> None:
    """No bars of transformers, datasets and the Hub's client from here on: they belong to a terminal with a person at
    it. Imports none of them; those that come later read the environment."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
