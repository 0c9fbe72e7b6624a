"""`tune merge`: adapters into the weights that they were trained on, a fine-tuned model averaged with its base, or a
weighted sum of LoRAs as one LoRA.

The arithmetic is peft's `merge_and_unload`. Nothing is left behind unchecked: the written folder, loaded with plain
transformers, is compared with the unmerged model as the run trained it. Both compute in fp32 whatever their weights
are stored in: the rounding of bf16 activations alone moves the logits of SmolLM2-135M, up to 40 in size, by 1.4,
about as much as an adapter does, and would hide a merge gone wrong.

Merging is exact on paper, x W + (x B) A = x (W + B A). Each layer is merged in fp32 and there has to give what it
gave with its adapter (`EXACT`). What differs then is that W + B A is rounded once to the written dtype. That is small
for a weight and adds up over the layers: SmolLM2-135M, 30 layers, trained for 60 steps, in bfloat16, moved logits of
up to 40 by 1.2 to 1.5 (rms 0.18, where the adapter does 3.2) and kept the most likely token at 97 to 98 % of the
places; half way between base and tuned by 3.7, and at 94 %. `TOLERANCE` bounds the largest difference of a logit, as
a share of the largest logit, where no rounding could explain it; how often the most likely token stays the same is
said.

A 4-bit base is dequantised first, and the result compared with the 4-bit model: the adapter was trained against the
rounding of its base, so it fits those weights better than the original ones. An 8-bit model also rounds what flows
through it, which no plain weights can do: there the unmerged model on the dequantised base is what the merged one has
to equal, and how far the 8-bit model is from that is printed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from tunecli.config.compose import load_config
from tunecli.config.counted import counted
from tunecli.config.errors import UserError
from tunecli.config.model import DType
from tunecli.config.paths import display
from tunecli.engine.checkpoint import follow_umask
from tunecli.engine.quiet import no_meaningless_warnings
from tunecli.merge.comparison import agreement, comparison_sequences, difference, logits
from tunecli.merge.inputs import Inputs, check, find_inputs
from tunecli.merge.summing import write_sum
from tunecli.merge.weights import Expected, MergeRefused, average, cast, merge_adapters
from tunecli.models.load import CLASSES, task_of
from tunecli.peft_methods.loading import base_task, device, dtype_of, tokenizer_of
from tunecli.peft_methods.source import Source
from tunecli.report.card import NAME as CARD
from tunecli.report.card import Merging, merged_card, public, run_label, sum_card

TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}
WHOLE = "5GB"
"""Largest file where nothing else is asked for."""
AGREES = 0.95
"""Share of places with the same most likely token below which a finer dtype is advised."""


@dataclass(frozen=True, slots=True)
class Merged:
    folder: Path
    base: str
    dtype: str
    files: int
    bytes: int
    difference: float
    """largest difference of a logit between the unmerged and the written model"""
    agreement: float
    """share of the places where both give the same next token the highest probability"""
    bound: float
    largest_logit: float
    compared_on: str
    effect: float | None
    """largest change of a logit by the adapters; None for full fine-tuning"""
    of_activations: float | None
    """largest difference of a logit to an 8-bit model, which rounds activations too; None for others"""
    is_adapter: bool = False
    """one LoRA, not a model"""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder)}


@no_meaningless_warnings()
def merge(
    paths: Sequence[Path],
    to: Path | None = None,
    *,
    dtype: DType = DType.auto,
    interpolation: float = 1.0,
    max_shard_size: str = WHOLE,
    base: str | None = None,
    weights: Sequence[float] | None = None,
    as_adapter: bool = False,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
    show_progress: bool = False,
) -> Merged:
    """Write the merged model of `paths` to `to`, a folder that plain transformers load; or the sum of LoRAs as one.

    One model is in memory at a time; two for the average of a full fine-tuning run with its base.

    Args:
        paths: a run directory or a peft folder, and more of them over the same base. Updates of weights add up; of
            different kinds, each is put around what those before it left.
        to: None: `merged/` in the first of them, or `merged_adapter/`.
        dtype: of the written weights; auto: as in training.
        interpolation: 0 gives the base, 1 the tuned model, and what lies between scales the adapters' update.
        base: Hub id or folder of the base, if not the one that the adapters name.
        weights: of `paths`, by which LoRA updates are multiplied; they may be negative. None: 1 each.
        as_adapter: write one LoRA whose rank is the sum of theirs, in place of a model.
        say: told what is done, one line at a time.

    Raises:
        UserError: there is nothing to merge, or not in this way.
        MergeRefused: the written model's logits were too far off; nothing is left.
    """
    if as_adapter and (dtype not in (DType.auto, DType.float32) or max_shard_size != WHOLE):
        raise UserError("a LoRA is written in float32, as one file", where="--as-adapter", fix="leave out --dtype")
    inputs = find_inputs(paths, base, weights, interpolation)
    source = inputs.source
    target = (to or paths[0] / ("merged_adapter" if as_adapter else "merged")).expanduser()
    check(inputs, target, as_adapter=as_adapter, force=force)
    written_in = dtype_of(source) if dtype is DType.auto else getattr(torch, dtype.value)
    with _folder_beside(target) as folder:
        tokenizer = tokenizer_of(source)
        say(f"loading {source.base.path}")
        sequences, compared_on = comparison_sequences(source, tokenizer)
        if as_adapter:
            written_in = torch.float32
            expected, found = write_sum(inputs, sequences, folder)
            tokenizer.save_pretrained(folder)
        else:
            if source.adapters:
                model, expected = merge_adapters(inputs, written_in, sequences, show_progress=show_progress)
            else:
                model, expected = average(source, interpolation, sequences)
            cast(model, written_in)
            say(f"writing {target}")
            _write(model, tokenizer, folder, max_shard_size)
            del model
            say("comparing")
            found = logits(_read_back(folder, written_in, source), sequences)
        largest = max(each.abs().max().item() for each in expected.logits)
        merged = _summary(target, folder, source, written_in, found, largest, compared_on, expected)
        merged = replace(merged, is_adapter=as_adapter)
        if not merged.difference <= merged.bound:  # also where it is no number
            raise _refusal(merged)
        (folder / CARD).write_text(_card(inputs, target, merged), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    return merged


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """An empty folder on the same disk, which is gone in the end unless it was renamed."""
    folder = target.with_name(f".{target.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot be made: {error.strerror}", where=str(target), fix="name another folder") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def as_text(merged: Merged) -> str:
    """What was written and how near it is, for a person."""
    files = counted(merged.files, "file")
    lines = [
        f"merged       {display(merged.folder)}: {files}, {merged.bytes / 1e6:,.1f} MB, {merged.dtype}",
        f"difference   {merged.difference:.2g} at most, of logits up to {merged.largest_logit:.3g} "
        f"(refused above {merged.bound:.2g})",
        f"             the same first choice at {merged.agreement:.1%} of the places, on {merged.compared_on}",
    ]
    if merged.effect is not None:
        lines.append(f"adapter      moves logits by up to {merged.effect:.2g}")
    if merged.agreement < AGREES and merged.dtype != "float32":
        finer = "float32" if merged.dtype == "float16" else "float16 or float32"
        lines.append(f"warning      that is rounding to {merged.dtype}: --dtype {finer} keeps more digits")
    if merged.of_activations is not None:
        lines.append(
            f"8-bit        the run's own model rounds activations too: {merged.of_activations:.2g} from this one"
        )
    theirs = "peft" if merged.is_adapter else "transformers"
    lines.append(f'use it       tunecli.load("{display(merged.folder)}"), or plain {theirs}')
    return "\n".join(lines)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, max_shard_size: str) -> None:
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            where=str(folder.parent),
            fix="make room, or name a folder elsewhere: tune merge RUN FOLDER",
        )
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    follow_umask(folder)
    tokenizer.save_pretrained(folder)


def _read_back(folder: Path, dtype: torch.dtype, source: Source) -> PreTrainedModel:
    code = source.base.trust_remote_code
    kind = CLASSES[task_of(AutoConfig.from_pretrained(folder, trust_remote_code=code))]
    return kind.from_pretrained(folder, dtype=dtype, trust_remote_code=code).to(device()).eval()


def _refusal(merged: Merged) -> MergeRefused:
    finer = "" if merged.dtype == "float32" else "--dtype float32 (or float16) keeps more digits; or "
    return MergeRefused(
        f"the merged model's logits differ by up to {merged.difference:.3g} from the unmerged model's, whose largest "
        f"is {merged.largest_logit:.3g}; the bound is {merged.bound:.3g}. Nothing was written",
        fix=f"{finer}use the adapter unmerged",
    )


def _summary(
    target: Path,
    written: Path,
    source: Source,
    dtype: torch.dtype,
    found: list[Tensor],
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
        difference=difference(expected.logits, found),
        agreement=agreement(expected.logits, found),
        bound=largest_logit * TOLERANCE[dtype],
        largest_logit=largest_logit,
        compared_on=compared_on,
        effect=expected.effect,
        of_activations=expected.of_activations,
    )


def _card(inputs: Inputs, target: Path, merged: Merged) -> str:
    source = inputs.source
    merging = Merging(
        base=source.started_from.path,
        revision=source.started_from.revision,
        adapters=tuple(public(folder.name) for folder in source.adapters),
        runs=_runs(source),
        weights=tuple(inputs.weights) if set(inputs.weights) - {1.0} else (),
        interpolation=inputs.interpolation,
        quantization=source.started_from.quantization.value,
        dtype=merged.dtype,
        difference=merged.difference,
        largest_logit=merged.largest_logit,
        task=base_task(source),
    )
    if merged.is_adapter:
        return sum_card(target, merging)
    return merged_card(source.run, source.run_dir, target, merging)


def _runs(source: Source) -> tuple[str, ...]:
    """The run that each adapter comes from, "" where it is not known; or the full run."""
    parents = [folder.resolve().parent for folder in source.adapters]
    places = [parent.parent if parent.name == "adapter" else None for parent in parents] or [source.run_dir]
    configs = [place / "config.yaml" if place else None for place in places]
    return tuple(
        run_label(file.parent, load_config(file).recipe) if file and file.is_file() else "" for file in configs
    )
