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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from tunecli.config.compose import load_config
from tunecli.config.data import first_rows
from tunecli.config.errors import UserError
from tunecli.config.model import DType, ModelConfig, Quantization
from tunecli.config.paths import display
from tunecli.config.run import RunConfig
from tunecli.data.mixture import build
from tunecli.engine.precision import DTYPES, resolve_precision
from tunecli.models.load import load_model, load_tokenizer, resolve_path, weight_dtype
from tunecli.report.card import NAME as CARD
from tunecli.report.card import Merging, merged_card, public
from tunecli.run import encoding_of

TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.03}
SEQUENCES, LENGTH = 4, 128
"""What both models are compared on: so many sequences, of at most so many tokens."""
ROWS = 256
"""Rows of each source that are read to find validation examples."""


class MergeRefused(UserError):
    """The merged model is another model."""

    exit_status = 1


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be merged into what."""

    base: ModelConfig
    dtype: torch.dtype
    """of the weights in training, quantised ones aside"""
    adapters: tuple[Path, ...]
    """peft checkpoints; none for a full fine-tuning run"""
    result: Path
    """the tokenizer lies here, and the model of a full run"""
    config: RunConfig | None
    run_dir: Path | None


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
    effect: float | None = None
    """largest change of a logit by the adapters; None for full fine-tuning"""
    of_activations: float | None = None
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
    source = find_source(paths, base)
    target = (to or paths[0] / "merged").expanduser()
    _check(source, target, interpolation, force)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    written_in = source.dtype if dtype is DType.auto else getattr(torch, dtype.value)
    tokenizer = _tokenizer(source)

    say(f"loading {source.base.path}")
    compared_on, sequences = _sequences(source, tokenizer)
    effect = of_activations = None
    if source.adapters:
        model, before, effect, of_activations = _merge_adapters(
            source, written_in, interpolation, sequences, device, show_progress
        )
    else:
        model = _average(source, interpolation, device)
        before = logits(model, sequences)
    _cast(model, written_in)

    beside = target.with_name(f".{target.name}.partial")
    try:
        say(f"writing {target}")
        _write(model, tokenizer, beside, max_shard_size)
        del model
        say("comparing")
        scale = max(each.abs().max().item() for each in before)
        bound = scale * TOLERANCE[written_in]
        difference = _difference(before, logits(_read_back(beside, written_in, source, device), sequences))
        if not difference <= bound:  # also where it is no number
            raise _refusal(difference, bound, scale, written_in)
        merged = _summary(target, beside, source, written_in, difference, bound, scale, compared_on)
        merged = replace(merged, effect=effect, of_activations=of_activations)
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


def find_source(paths: Sequence[Path], base: str | None = None) -> Source:
    """What `paths` name together.

    Raises:
        UserError: one of them is neither run nor adapter, a run has no result, or their bases differ.
    """
    sources = [_source(path.expanduser(), base) for path in paths]
    first, *others = sources
    for path, other in zip(paths[1:], others, strict=True):
        if not (first.adapters and other.adapters):
            raise UserError("only adapters can be merged together", where=str(path), fix="merge full runs one by one")
        if _identity(other.base) != _identity(first.base):
            raise UserError(
                f"is an adapter for {other.base.path}, the first one is for {first.base.path}",
                where=str(path),
                fix="merge adapters that were trained on the same base; --base says that two names mean the same",
            )
    return replace(first, adapters=tuple(adapter for source in sources for adapter in source.adapters))


def _identity(base: ModelConfig) -> tuple[str, str | None]:
    return resolve_path(base.path), base.revision


def _source(path: Path, base: str | None) -> Source:
    if (path / "config.yaml").is_file():
        return _of_run(path, base)
    folders = [path] if (path / "adapter_config.json").is_file() else sorted(_adapters(path))
    if not folders:
        raise UserError(
            "is neither a run directory nor a peft adapter", where=str(path), fix="`tune merge RUN`, or a peft folder"
        )
    config = PeftConfig.from_pretrained(str(folders[0]))
    name = base or config.base_model_name_or_path
    if not name:
        raise UserError("does not say what its base model is", where=str(folders[0]), fix="--base OWNER/NAME")
    model = ModelConfig(path=name, revision=None if base else config.revision)
    return Source(model, _stored_dtype(model), tuple(folders), path, None, None)


def _of_run(run_dir: Path, base: str | None) -> Source:
    config = load_config(run_dir / "config.yaml")
    frozen = bool(config.peft)
    result = run_dir / ("adapter" if frozen else "model")
    if not result.is_dir():
        raise UserError(f"{run_dir} has no result yet", where=str(result), fix=f"tune resume {run_dir}")
    cpu = not torch.cuda.is_available()
    precision = resolve_precision(config.train.precision, cpu=cpu, frozen_base=frozen)
    dtype = weight_dtype(config.model, DTYPES[precision], frozen=frozen)
    model = replace(config.model, gradient_checkpointing=False)
    model = replace(model, path=base, revision=None) if base else model
    return Source(model, dtype, tuple(result / name for name in config.peft), result, config, run_dir)


def _adapters(folder: Path) -> list[Path]:
    return [file.parent for file in folder.glob("*/adapter_config.json")]


def _stored_dtype(model: ModelConfig) -> torch.dtype:
    """As the base's own configuration says; without a word there, float32."""
    try:
        stored = AutoConfig.from_pretrained(resolve_path(model.path), revision=model.revision).dtype
    except OSError:
        return torch.float32  # `load_model` finds the words for a base that cannot be had
    return stored if stored in TOLERANCE else torch.float32


def _check(source: Source, target: Path, interpolation: float, force: bool) -> None:
    """Everything that can be refused before weights are loaded."""
    if not 0 <= interpolation <= 1:
        fix = "from 0 (the base) to 1 (the tuned model)"
        raise UserError(f"{interpolation:g} is not a share", where="--interpolate", fix=fix)
    if not source.adapters and interpolation == 1:
        raise UserError(
            "a full fine-tuning run has no adapter to merge",
            where=str(source.run_dir),
            fix=f"{source.result} is the model already; --interpolate 0.5 averages it with its base",
        )
    if target.exists() and not force:
        raise UserError("is there already", where=str(target), fix="another folder, or --force to replace it")
    if target.exists() and not (target / "config.json").is_file() and any(target.iterdir()):
        raise UserError("is no model folder and is not replaced", where=str(target), fix="name another folder")
    configs = [PeftConfig.from_pretrained(str(folder)) for folder in source.adapters]
    if len({config.peft_type for config in configs}) > 1:
        raise UserError("adapters of different kinds cannot be merged together", fix="merge one, then the next one")
    for folder, config in zip(source.adapters, configs, strict=True):
        if interpolation not in (0, 1) and not _is_linear(config):
            raise UserError(
                "its change of the weights cannot be scaled: only plain LoRA's can",
                where=str(folder),
                fix="leave out --interpolate",
            )


def _is_linear(config: PeftConfig) -> bool:
    """Whether the adapter is nothing but an update added to weights."""
    more = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias")
    plain = getattr(config, "bias", "none") == "none" and not any(getattr(config, name, None) for name in more)
    return config.peft_type == "LORA" and plain


def _merge_adapters(
    source: Source,
    written_in: torch.dtype,
    interpolation: float,
    sequences: list[Tensor],
    device: torch.device,
    show_progress: bool,
) -> tuple[PreTrainedModel, list[Tensor], float, float | None]:
    """The merged model, in the finer of both dtypes; the logits that it should have; what the adapters do to them;
    and how far these are from an 8-bit model's own."""
    model = load_model(source.base, dtype=source.dtype, device=device).eval()
    tuned = _with_adapters(model, source.adapters, interpolation)
    before = logits(tuned, sequences)
    with tuned.disable_adapter():
        effect = _difference(before, logits(tuned, sequences))
    of_activations = None
    if source.base.quantization is not Quantization.none:
        model = _dequantized(tuned.unload())
        tuned = _with_adapters(model, source.adapters, interpolation)
        if source.base.quantization is Quantization.int8:
            quantised, before = before, logits(tuned, sequences)
            of_activations = _difference(quantised, before)
    _untie(model)
    # Updates are added in the finer dtype, so that a weight is rounded once.
    _cast(model, torch.promote_types(source.dtype, written_in))
    merged = tuned.merge_and_unload(progressbar=show_progress, safe_merge=True)
    return merged, before, effect, of_activations


def _dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """`model` in the dtype that its quantised layers compute in."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of the cast that it is called for
    try:
        return model.dequantize()
    finally:
        logging.set_verbosity(level)


def _with_adapters(model: PreTrainedModel, folders: Sequence[Path], interpolation: float) -> PeftModel:
    """All of them on, their updates scaled by `interpolation`."""
    names = [f"merge_{i}" for i in range(len(folders))]
    tuned = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=names[0])
    if not hasattr(tuned.base_model, "merge_and_unload"):
        raise UserError(
            "this kind of adapter is not part of any weight", where=str(folders[0]), fix="use it unmerged"
        )
    for name, folder in zip(names[1:], folders[1:], strict=True):
        tuned.load_adapter(str(folder), adapter_name=name)
    tuned.base_model.set_adapter(names)
    if interpolation != 1:
        for module in tuned.modules():
            if hasattr(module, "scale_layer"):
                module.scale_layer(interpolation)
    return tuned.eval()


def _untie(model: PreTrainedModel) -> None:
    """Give the output embedding weights of its own where an adapter changes it, or its tied twin, but not both."""
    pair = [model.get_output_embeddings(), model.get_input_embeddings()]
    if None in pair or not any(isinstance(module, BaseTunerLayer) for module in pair):
        return
    head, embedding = (module.get_base_layer() if isinstance(module, BaseTunerLayer) else module for module in pair)
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def _average(source: Source, interpolation: float, device: torch.device) -> PreTrainedModel:
    """The base and the model of a full run, weight by weight in fp32."""
    base = load_model(source.base, dtype=torch.float32, device=device)
    tuned = load_model(ModelConfig(path=str(source.result)), dtype=torch.float32, device=device)
    weights = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name not in weights or weights[name].shape != parameter.shape:
                raise UserError(f"{source.base.path} has no weight {name} of this shape", fix="it is not the base")
            parameter.copy_(torch.lerp(weights[name], parameter, interpolation))
    return tuned.eval()


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Weights alone: buffers, such as the frequencies of rotary embeddings, keep their precision, and so do weights
    that transformers keep in fp32 beside a smaller dtype."""
    stored = model.dtype
    for parameter in model.parameters():
        if parameter.dtype == stored:
            parameter.data = parameter.data.to(dtype)


def _tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """That of the result, with the template as trained; of an adapter that came without one, its base's."""
    if (source.result / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(source.result)
    return load_tokenizer(source.base)


def _sequences(source: Source, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Tensor]]:
    """Token ids [tokens] to compare on, and what they are."""
    if source.config is not None and source.config.data.validation is not None:
        data = first_rows(source.config.data, ROWS)
        try:
            _, examples = build(data, tokenizer, encoding_of(source.config), show_progress=False)
        except (UserError, OSError):
            examples = None  # the data are no longer here
        if examples:
            chosen = [examples[i][0][:LENGTH] for i in range(min(SEQUENCES, len(examples)))]
            return f"{len(chosen)} validation examples", chosen
    generator = torch.Generator().manual_seed(0)
    size = (SEQUENCES, LENGTH // 2)
    return f"{SEQUENCES} random sequences", list(torch.randint(len(tokenizer), size, generator=generator))


@torch.no_grad()
def logits(model: torch.nn.Module, sequences: list[Tensor]) -> list[Tensor]:
    """Of each sequence alone, in fp32 arithmetic whatever stores the weights; [tokens, vocabulary], on the CPU."""
    device = next(model.parameters()).device
    with _computing_in_fp32(model):
        return [model(input_ids=ids[None].to(device), use_cache=False).logits[0].float().cpu() for ids in sequences]


@contextmanager
def _computing_in_fp32(model: torch.nn.Module) -> Iterator[None]:
    """Each module's weights are fp32 while it runs, so that never more than one module's are so."""
    kept: dict[int, list[tuple[torch.nn.Parameter, Tensor]]] = {}

    def widen(module: torch.nn.Module, _: Any) -> None:
        own = [p for p in module.parameters(recurse=False) if p.dtype in (torch.bfloat16, torch.float16)]
        kept[id(module)] = [(p, p.data) for p in own]
        for parameter in own:
            parameter.data = parameter.data.float()

    def narrow(module: torch.nn.Module, *_: Any) -> None:
        for parameter, data in kept.pop(id(module), ()):
            parameter.data = data

    hooks = [module.register_forward_pre_hook(widen) for module in model.modules()]
    hooks += [module.register_forward_hook(narrow, always_call=True) for module in model.modules()]
    four_bit = {module: module.compute_dtype for module in model.modules() if hasattr(module, "compute_dtype")}
    for module in four_bit:
        module.compute_dtype = torch.float32
    try:
        yield
    finally:
        for module, dtype in four_bit.items():
            module.compute_dtype = dtype
        for hook in hooks:
            hook.remove()


def _difference(one: list[Tensor], other: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


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


def _read_back(folder: Path, dtype: torch.dtype, source: Source, device: torch.device) -> PreTrainedModel:
    code = source.base.trust_remote_code
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=code).to(device).eval()


def _refusal(difference: float, bound: float, scale: float, dtype: torch.dtype) -> MergeRefused:
    finer = "" if dtype is torch.float32 else "--dtype float32 keeps more digits; "
    return MergeRefused(
        f"the merged model's logits differ by up to {difference:.3g} from the unmerged model's, whose largest is "
        f"{scale:.3g}; the bound is {bound:.3g}. Nothing was written",
        fix=f"{finer}or use the adapter unmerged",
    )


def _summary(
    target: Path,
    beside: Path,
    source: Source,
    dtype: torch.dtype,
    difference: float,
    bound: float,
    scale: float,
    compared_on: str,
) -> Merged:
    files = list(beside.glob("*.safetensors"))
    return Merged(
        folder=target,
        base=source.base.path,
        dtype=str(dtype).removeprefix("torch."),
        files=len(files),
        bytes=sum(file.stat().st_size for file in files),
        difference=difference,
        bound=bound,
        largest_logit=scale,
        compared_on=compared_on,
    )


def _card(source: Source, target: Path, merged: Merged, interpolation: float) -> str:
    merging = Merging(
        base=source.base.path,
        revision=source.base.revision,
        adapters=tuple(public(folder.name) for folder in source.adapters),
        interpolation=interpolation,
        quantization=source.base.quantization.value,
        dtype=merged.dtype,
        difference=merged.difference,
        largest_logit=merged.largest_logit,
    )
    return merged_card(source.config, source.run_dir, target, merging)
