"""`tune merge`: adapters into the weights that they were trained on, or a fine-tuned model averaged with its base.

The arithmetic is peft's `merge_and_unload`. Nothing is left behind unchecked: the written folder, loaded with plain
transformers, is compared with the unmerged model as the run trained it. Both compute in fp32 whatever their weights
are stored in: the rounding of bf16 activations alone moves the logits of SmolLM2-135M, up to 40 in size, by 1.4,
about as much as an adapter does, and would hide a merge gone wrong.

Merging is exact on paper, x W + (x B) A = x (W + B A). What differs is that W + B A is stored in the written dtype,
so `TOLERANCE` bounds the largest difference of a logit, as a share of the largest logit, by that dtype's digits:
float32 differs by the order of sums alone (1e-6 and less in tests), bfloat16 rounds each weight by up to 1/512 of
itself, which adds up over the layers (SmolLM2-135M, 30 layers: 0.008, on a 4-bit base 0.014), float16 by an eighth
of that. A rounding that is as large as what the adapter does is not refused but said.

A 4-bit base is dequantised first, and the result compared with the 4-bit model: the adapter was trained against the
rounding of its base, so it fits those weights better than the original ones. An 8-bit model also rounds what flows
through it, which no plain weights can do: there the unmerged model on the dequantised base is what the merged one has
to equal, and how far the 8-bit model is from that is printed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tunecli.config.errors import UserError
from tunecli.config.model import DType
from tunecli.config.paths import display
from tunecli.merge.comparison import comparison_sequences, difference, logits
from tunecli.merge.inputs import check, find_sources
from tunecli.merge.weights import Expected, average, cast, merge_adapters
from tunecli.peft_methods.loading import device, dtype_of, tokenizer_of
from tunecli.peft_methods.source import Source
from tunecli.report.card import NAME as CARD
from tunecli.report.card import Merging, merged_card, public

TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.03}


class MergeRefused(UserError):
    """The merged model is another model."""

    exit_status = 1


@dataclass(frozen=True, slots=True)
class Merged:
    folder: Path
    base: str
    dtype: str
    files: int
    bytes: int
    difference: float
    """largest difference of a logit between the unmerged and the written model"""
    bound: float
    largest_logit: float
    compared_on: str
    effect: float | None
    """largest change of a logit by the adapters; None for full fine-tuning"""
    of_activations: float | None
    """largest difference of a logit to an 8-bit model, which rounds activations too; None for others"""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder)}


def merge(
    paths: Sequence[Path],
    to: Path | None = None,
    *,
    dtype: DType = DType.auto,
    interpolation: float = 1.0,
    max_shard_size: str = "5GB",
    base: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
    show_progress: bool = False,
) -> Merged:
    """Write the merged model of `paths` to `to`, a folder that plain transformers load.

    One model is in memory at a time; two for the average of a full fine-tuning run with its base.

    Args:
        paths: a run directory or a peft folder, and more of them over the same base, whose updates add up.
        to: None: `merged/` in the first of them.
        dtype: of the written weights; auto: as in training.
        interpolation: 0 gives the base, 1 the tuned model, and what lies between scales the adapters' update.
        base: Hub id or folder of the base, if not the one that the adapters name.
        say: told what is done, one line at a time.

    Raises:
        UserError: there is nothing to merge, or not in this way.
        MergeRefused: the written model's logits were too far off; nothing is left.
    """
    source = find_sources(paths, base)
    target = (to or paths[0] / "merged").expanduser()
    check(source, target, interpolation, force)
    written_in = dtype_of(source) if dtype is DType.auto else getattr(torch, dtype.value)
    tokenizer = tokenizer_of(source)
    say(f"loading {source.base.path}")
    sequences, compared_on = comparison_sequences(source, tokenizer)
    if source.adapters:
        model, expected = merge_adapters(source, written_in, interpolation, sequences, show_progress=show_progress)
    else:
        model, expected = average(source, interpolation, sequences)
    cast(model, written_in)

    beside = target.with_name(f".{target.name}.partial")
    try:
        say(f"writing {target}")
        _write(model, tokenizer, beside, max_shard_size)
        del model
        say("comparing")
        largest = max(each.abs().max().item() for each in expected.logits)
        found = difference(expected.logits, logits(_read_back(beside, written_in, source), sequences))
        merged = _summary(target, beside, source, written_in, found, largest, compared_on, expected)
        if not merged.difference <= merged.bound:  # also where it is no number
            raise _refusal(merged)
        (beside / CARD).write_text(_card(source, target, merged, interpolation), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return merged


def as_text(merged: Merged) -> str:
    """What was written and how near it is, for a person."""
    files = "1 file" if merged.files == 1 else f"{merged.files} files"
    lines = [
        f"merged       {display(merged.folder)}: {files}, {merged.bytes / 1e6:,.1f} MB, {merged.dtype}",
        f"difference   {merged.difference:.2g} at most, of logits up to {merged.largest_logit:.3g} "
        f"(refused above {merged.bound:.2g}), on {merged.compared_on}",
    ]
    if merged.effect is not None:
        lines.append(f"adapter      moves logits by up to {merged.effect:.2g}")
        if merged.effect and merged.difference > merged.effect / 2 and merged.dtype != "float32":
            lines.append(f"warning      rounding to {merged.dtype} undoes much of that; --dtype float32 does not")
    if merged.of_activations is not None:
        lines.append(
            f"8-bit        the run's own model rounds activations too: {merged.of_activations:.2g} from this one"
        )
    lines.append(f'use it       tunecli.load("{display(merged.folder)}"), or plain transformers')
    return "\n".join(lines)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, max_shard_size: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            where=str(folder.parent),
            fix="make room, or name a folder elsewhere: tune merge RUN FOLDER",
        )
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)


def _read_back(folder: Path, dtype: torch.dtype, source: Source) -> PreTrainedModel:
    code = source.base.trust_remote_code
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=code).to(device()).eval()


def _refusal(merged: Merged) -> MergeRefused:
    finer = "" if merged.dtype == "float32" else "--dtype float32 keeps more digits; "
    return MergeRefused(
        f"the merged model's logits differ by up to {merged.difference:.3g} from the unmerged model's, whose largest "
        f"is {merged.largest_logit:.3g}; the bound is {merged.bound:.3g}. Nothing was written",
        fix=f"{finer}or use the adapter unmerged",
    )


def _summary(
    target: Path,
    written: Path,
    source: Source,
    dtype: torch.dtype,
    difference: float,
    largest_logit: float,
    compared_on: str,
    expected: Expected,
) -> Merged:
    files = list(written.glob("*.safetensors"))
    return Merged(
        folder=target,
        base=source.started_from.path,
        dtype=str(dtype).removeprefix("torch."),
        files=len(files),
        bytes=sum(file.stat().st_size for file in files),
        difference=difference,
        bound=largest_logit * TOLERANCE[dtype],
        largest_logit=largest_logit,
        compared_on=compared_on,
        effect=expected.effect,
        of_activations=expected.of_activations,
    )


def _card(source: Source, target: Path, merged: Merged, interpolation: float) -> str:
    merging = Merging(
        base=source.started_from.path,
        revision=source.started_from.revision,
        adapters=tuple(public(folder.name) for folder in source.adapters),
        interpolation=interpolation,
        quantization=source.started_from.quantization.value,
        dtype=merged.dtype,
        difference=merged.difference,
        largest_logit=merged.largest_logit,
    )
    return merged_card(source.run, source.run_dir, target, merging)
