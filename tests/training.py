"""Runs trained in this process, on what comes with tunecli."""

from __future__ import annotations

from pathlib import Path

from tunecli import run
from tunecli.config.compose import compose_run
from tunecli.config.run import to_yaml
from tunecli.launch import _resolve


def trained_run(folder: Path, recipe: str, *words: str) -> Path:
    """The run directory `folder`."""
    config = _resolve(compose_run(recipe, [*words, "launch.num_processes=1", "launch.strategy=cpu"]).config, folder)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    assert run.main(config, folder) == 0
    return folder
