"""Runs are called by what tells them apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunecli.config.errors import UserError
from tunecli.engine.run_names import names_of

FIRST, SECOND = "2026-01-05_10-00-00", "2026-01-06_10-00-00"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([f"outputs/sft/{FIRST}"], ["sft"]),
        ([f"outputs/sft/{FIRST}/adapter"], ["sft"]),
        ([f"outputs/sft/{FIRST}", f"outputs/dpo/{FIRST}"], ["sft", "dpo"]),
        ([f"outputs/sft/{FIRST}", f"outputs/sft/{SECOND}"], [f"sft {FIRST}", f"sft {SECOND}"]),
        ([f"sft/{FIRST}/adapter/lora", f"dpo/{FIRST}/adapter/lora"], ["sft lora", "dpo lora"]),
        ([f"a/sft/{FIRST}", f"b/sft/{FIRST}"], [f"a/sft/{FIRST}", f"b/sft/{FIRST}"]),
        ([f"sft/{FIRST}", f"sft/{FIRST}/adapter"], [FIRST, "adapter"]),
        (["me/lora"], ["lora"]),
        (["me/lora", "you/lora"], ["me/lora", "you/lora"]),
        (["x/1", f"sft/{FIRST}"], ["1", "sft"]),
    ],
)
def test_names(paths: list[str], names: list[str]):
    assert names_of(paths) == names


def test_latest_is_the_run_that_it_points_to(tmp_path: Path):
    run = tmp_path / "sft" / FIRST
    run.mkdir(parents=True)
    latest = tmp_path / "sft" / "latest"
    latest.symlink_to(FIRST)
    assert names_of([str(latest)]) == ["sft"]
    with pytest.raises(UserError, match="named twice"):
        names_of([str(latest), str(run)])
