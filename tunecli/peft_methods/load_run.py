"""A run directory as a model: the base that it names, with what it trained."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tunecli.config.compose import load_config
from tunecli.config.errors import UserError
from tunecli.config.model import ModelConfig
from tunecli.engine.precision import DTYPES, resolve_precision
from tunecli.models.load import load_model, load_tokenizer, weight_dtype
from tunecli.peft_methods.composition import load_adapters


def load_run(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a finished run (or any model folder or Hub id) in eval mode, and its tokenizer.

    Raises:
        UserError: the run has no result yet, or the model cannot be found.
    """
    run_dir = Path(path).expanduser()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not (run_dir / "config.yaml").is_file():
        plain = ModelConfig(path=str(path))
        return load_model(plain, dtype=torch.float32, device=device).eval(), load_tokenizer(plain)
    config = load_config(run_dir / "config.yaml")
    result = run_dir / ("adapter" if config.peft else "model")
    if not result.is_dir():
        raise UserError(f"{run_dir} has no result yet", where=str(result), fix=f"tune resume {run_dir}")
    frozen = bool(config.peft)
    precision = resolve_precision(config.train.precision, cpu=device.type == "cpu", frozen_base=frozen)
    base = config.model if frozen else ModelConfig(path=str(result))
    dtype = weight_dtype(config.model, DTYPES[precision], frozen=frozen)
    model = load_model(base, dtype=dtype, device=device)
    if frozen:
        load_adapters(model, result)
    return model.eval(), AutoTokenizer.from_pretrained(result)
