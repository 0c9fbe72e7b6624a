"""What is to be merged, and what can be refused before weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft import PeftConfig

from tunecli.config.errors import UserError
from tunecli.peft_methods.source import Source, find_source


def find_sources(paths: Sequence[Path], base: str | None = None) -> Source:
    """What `paths` name together.

    Raises:
        UserError: one of them is neither run nor adapter, a run has no result, or their bases differ.
    """
    sources = [_source(path, base) for path in paths]
    first, *others = sources
    for other in others:
        if not (first.adapters and other.adapters):
            raise UserError(
                "only adapters can be merged together", where=other.path, fix="merge full runs one by one"
            )
        if other.base_key[:2] != first.base_key[:2]:
            raise UserError(
                f"is an adapter for {other.base.path}, the first one is for {first.base.path}",
                where=other.path,
                fix="merge adapters that were trained on the same base; --base says that two names mean the same",
            )
    return replace(first, adapters=[adapter for source in sources for adapter in source.adapters])


def _source(path: Path, base: str | None) -> Source:
    found = find_source(str(path), base) if path.expanduser().exists() else None
    if found is None or not (found.adapters or found.run):
        raise UserError(
            "is neither a run directory nor a peft adapter", where=str(path), fix="`tune merge RUN`, or a peft folder"
        )
    return replace(found, base=replace(found.base, gradient_checkpointing=False))


def check(source: Source, target: Path, interpolation: float, force: bool) -> None:
    """Raises UserError for everything that can be refused before weights are loaded."""
    if not 0 <= interpolation <= 1:
        fix = "from 0 (the base) to 1 (the tuned model)"
        raise UserError(f"{interpolation:g} is not a share", where="--interpolate", fix=fix)
    if not source.adapters and interpolation == 1:
        raise UserError(
            "a full fine-tuning run has no adapter to merge",
            where=str(source.run_dir),
            fix=f"{source.base.path} is the model already; --interpolate 0.5 averages it with its base",
        )
    if target.exists() and not (target / "config.json").is_file() and any(target.iterdir()):
        raise UserError("is no model folder and is not replaced", where=str(target), fix="name another folder")
    if target.exists() and not force:
        raise UserError("is there already", where=str(target), fix="another folder, or --force to replace it")
    configs = [PeftConfig.from_pretrained(str(folder)) for folder in source.adapters]
    if len({config.peft_type for config in configs}) > 1:
        raise UserError("adapters of different kinds cannot be merged together", fix="merge one, then the next one")
    for folder, config in zip(source.adapters, configs, strict=True):
        if why := _why_not(config):
            raise UserError(
                f"cannot be merged: {why}", where=str(folder), fix="use it unmerged: tunecli.load, tune chat"
            )
        if interpolation not in (0, 1) and not _is_linear(config):
            raise UserError(
                "its change of the weights cannot be scaled: only plain LoRA's can",
                where=str(folder),
                fix="leave out --interpolate",
            )


def _why_not(config: PeftConfig) -> str | None:
    if config.peft_type == "BOTTLENECK":
        return "no weight of the model does what the non-linearity of a bottleneck adapter does"
    if config.peft_type == "BITFIT" and config.add_missing:
        return "the plain model has no place for the biases that it adds"
    return None


def _is_linear(config: PeftConfig) -> bool:
    """Whether the adapter is nothing but an update added to weights."""
    more = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias")
    plain = getattr(config, "bias", "none") == "none" and not any(getattr(config, name, None) for name in more)
    return config.peft_type == "LORA" and plain
