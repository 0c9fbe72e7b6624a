"""Other data for a written configuration."""

from __future__ import annotations

from tunecli.config.compose import compose_run
from tunecli.config.data import Mixing
from tunecli.config.scored import scored


def test_how_several_sources_were_mixed_says_nothing_of_one() -> None:
    mix = "data.mix=[{path: a.jsonl, weight: 2}, {path: b.jsonl, weight: 1}]"
    config = compose_run("smoke_sft_lora", ["data=mix", mix, "data.mixing=weights"]).config
    assert config.data.mixing is Mixing.weights
    found = scored(config, ["data.path=builtin:smoke"]).config.data
    assert found.path == "builtin:smoke" and not found.mix and found.mixing is Mixing.proportional
