"""Finished run directories without training: random adapters or weights, the files of a real run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tunecli.config.compose import compose_run
from tunecli.config.run import RunConfig, to_yaml
from tunecli.engine.environment import describe_environment
from tunecli.models.load import load_model, load_tokenizer
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.saving import save_adapters
from tunecli.report.card import write_card

DATA = {"examples": 50, "trained_tokens": 912}
METRICS = [
    {"step": 0, "eval/loss": 5.58},
    {"step": 10, "loss": 5.3, "seconds": 75.0},
    {"step": 10, "eval/loss": 5.25, "eval/exact_match": 0.5},
]


def finished_run(folder: Path, *words: str, dtype: torch.dtype = torch.float32, seed: int = 1) -> Path:
    """The run directory `folder` of smoke_sft_lora under overrides; `dtype`: of the frozen weights."""
    return finished(folder, compose_run("smoke_sft_lora", [f"output_dir={folder}", *words]).config, dtype, seed)


def finished(folder: Path, config: RunConfig, dtype: torch.dtype = torch.float32, seed: int = 1) -> Path:
    """The same of a configuration."""
    lm = tuned_model(config, dtype=dtype, seed=seed)
    result = folder / ("adapter" if config.peft else "model")
    if config.peft:
        save_adapters(lm, config.peft, result, base=config.model.path)
    else:
        lm.save_pretrained(result)
    load_tokenizer(config.model).save_pretrained(result)
    _write_files(folder, config)
    return folder


def tuned_model(config: RunConfig, *, dtype: torch.dtype = torch.float32, seed: int = 1) -> PreTrainedModel:
    """As training leaves it in memory: what is trained has moved away from its start."""
    lm = load_model(config.model, dtype=dtype, device=torch.device("cpu"))
    inject(lm, config.peft, seed=seed)
    _disturb(lm, seed)
    return lm.eval()


def _disturb(lm: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in lm.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def _write_files(folder: Path, config: RunConfig) -> None:
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "environment.json").write_text(json.dumps(describe_environment() | {"data": {"train": DATA}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    (folder / "checkpoints" / "step_00000010").mkdir(parents=True)
    (folder / "checkpoints" / "step_00000010" / "optimizer.safetensors").write_bytes(b"secret")
    write_card(config, folder, data=DATA, results={"loss": 5.3, "eval/loss": 5.25, "eval/exact_match": 0.5})
