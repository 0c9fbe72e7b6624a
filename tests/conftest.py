"""Tests never reach for a model hub and leave the user's cache alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts background jobs with Ctrl-C ignored, and so would be whatever is started from here.
signal.signal(signal.SIGINT, signal.default_int_handler)
HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["TUNECLI_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    import torch

    torch.use_deterministic_algorithms(True)


@pytest.fixture(autouse=True)
def _own_signal_handlers() -> None:
    """A run in this process, which a fixture may have made too, takes the signals over for good."""
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The real small model and data, fetched by scripts/fetch_assets.py."""
    folder = Path(__file__).parents[1] / "assets"
    if not (folder / "models").is_dir():
        pytest.fail("run scripts/fetch_assets.py first (scripts/test.sh does)")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked `grid` runs only when asked for."""
    if "grid" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("grid")]
    items[:] = [item for item in items if not item.get_closest_marker("grid")]
    config.hook.pytest_deselected(items=left_out)
