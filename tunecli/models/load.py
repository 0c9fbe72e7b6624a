"""Weights and tokenizer by Hub id, local folder, run directory or `builtin:` name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tunecli.config.errors import UserError
from tunecli.config.model import DType, ModelConfig
from tunecli.models import builtin
from tunecli.models.quantization import keep_cpu_weights_unpacked, quantization_config


def resolve_path(path: str) -> str:
    """The folder or Hub id that `model.path` stands for.

    Raises:
        UserError: a run directory without a whole model in it, or an unknown builtin model.
    """
    if path.startswith(builtin.PREFIX):
        return str(builtin.materialize(path.removeprefix(builtin.PREFIX)))
    folder = Path(path).expanduser()
    if (folder / "config.yaml").is_file():
        if (folder / "model" / "config.json").is_file():
            return str(folder / "model")
        raise UserError(
            f"{path} is a run directory that holds no whole model",
            where="model.path",
            fix="name a full fine-tuning run that has ended, or the base model; peft.NAME.init_from takes adapters",
        )
    if not folder.exists() and _is_a_path(path, folder):
        raise UserError(
            f"there is no folder {path}", where="model.path", fix="check the path; a Hub id is OWNER/NAME"
        )
    return str(folder) if folder.exists() else path


def _is_a_path(text: str, folder: Path) -> bool:
    """Rather than the id of a repository."""
    return text.startswith(".") or folder.is_absolute() or len(folder.parts) > 2 or Path(folder.parts[0]).is_dir()


def num_parameters(model: nn.Module) -> int:
    """Of weights packed two to a byte, both are counted."""
    return sum(p.numel() * (2 if type(p).__name__ == "Params4bit" else 1) for p in model.parameters())


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's own tokenizer; a missing pad token becomes the end-of-text token (it is never learnt from)."""
    path = resolve_path(config.path)
    tokenizer = _from_pretrained(
        AutoTokenizer, path, config, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stop_tokens(config: ModelConfig) -> list[int]:
    """The ids at which the model's generation stops, besides the tokenizer's end-of-text token."""
    try:
        stops = GenerationConfig.from_pretrained(resolve_path(config.path), revision=config.revision).eos_token_id
    except OSError:
        return []
    return [stops] if isinstance(stops, int) else stops or []


def load_model(config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A causal language model on `device` (or spread by `config.device_map`), weights from safetensors only.

    Args:
        dtype: of the weights that are not quantised; quantised layers compute in it.
    """
    quantization = quantization_config(
        config.quantization, double_quantization=config.double_quantization, compute_dtype=dtype
    )
    placement = config.device_map or ({"": device} if quantization is not None or device.type != "cpu" else None)
    model = _from_pretrained(
        AutoModelForCausalLM,
        resolve_path(config.path),
        config,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        dtype=dtype,
        use_safetensors=True,
        device_map=placement,
        quantization_config=quantization,
    )
    keep_cpu_weights_unpacked(model)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model


def weight_dtype(config: ModelConfig, computed_in: torch.dtype, *, frozen: bool) -> torch.dtype:
    """Frozen weights are stored as asked, else as computed in; weights that are trained are fp32."""
    if not frozen:
        return torch.float32
    return computed_in if config.dtype is DType.auto else getattr(torch, config.dtype.value)


def _from_pretrained(factory: Any, path: str, config: ModelConfig, **kwargs: Any) -> Any:
    try:
        return factory.from_pretrained(path, **kwargs)
    except OSError as error:
        raise UserError(
            f"cannot load {config.path!r}: {_first_line(error)}",
            where="model.path",
            fix="check the name, your network and (for a gated model) your Hub login; a local folder works offline",
        ) from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"{config.path!r} comes with Python code of its own, which is not run unless you allow it",
            where="model.trust_remote_code",
            fix="read that code, then model.trust_remote_code=true",
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
