from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tunecli.config.compose import compose_run
from tunecli.config.origins import find_origins
from tunecli.config.paths import recipe_root


def test_each_value_is_traced_to_what_set_it_last(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(
        "defaults:\n  - smoke_sft_lora\n  - _self_\ntrain:\n  max_steps: 5\n  warmup_steps: 1\n"
    )
    composed = compose_run("./mine.yaml", ["train.warmup_steps=0", "data={max_length: 9}", "peft=bitfit"])
    origins = find_origins(composed)
    parent = (recipe_root() / "smoke_sft_lora.yaml").read_text().splitlines()
    line = next(number for number, text in enumerate(parent, 1) if "global_batch_size" in text)
    assert origins["train.max_steps"] == "mine.yaml:5"
    assert origins["train.warmup_steps"] == origins["data.max_length"] == "command line"
    assert origins["train.global_batch_size"] == f"{recipe_root()}/smoke_sft_lora.yaml:{line}"
    assert origins["model.path"].endswith("configs/model/tiny_llama.yaml:3")
    assert origins["train.max_grad_norm"] == "default of TrainConfig"
    assert origins["peft.bitfit.method"] == "default of BitFitConfig"


def test_every_value_has_an_origin():
    composed = compose_run("qlora_llama65b", ["data.columns.text=body"])
    origins = find_origins(composed)
    leaves = set(_leaves(asdict(composed.config)))
    assert set(origins) == leaves


def _leaves(values: dict, prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
