"""The arithmetic: adapters added to weights, or a fine-tuned model averaged with its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.progress import track
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from tunecli.config.errors import UserError
from tunecli.config.model import Quantization
from tunecli.merge.comparison import difference, logits
from tunecli.merge.inputs import Inputs, by_kind, kind_of
from tunecli.models.load import load_model
from tunecli.peft_methods.freeze import FreezeLayer
from tunecli.peft_methods.injection import activate
from tunecli.peft_methods.loading import base_task, device, dtype_of, head_of, load_base
from tunecli.peft_methods.saving import load_adapter
from tunecli.peft_methods.source import Source

EXACT = 1e-4
"""Largest difference between a layer with its adapter and the merged layer, as a share of its largest output."""


class MergeRefused(UserError):
    """The merged model is another model."""

    exit_status = 1


@dataclass(frozen=True, slots=True)
class Expected:
    """What the merged model is compared with."""

    logits: list[Tensor]
    effect: float | None = None
    """largest change of a logit by the adapters; None for full fine-tuning"""
    of_activations: float | None = None
    """largest difference to the logits of an 8-bit model, which rounds activations too; None for others"""


@torch.no_grad()
def merge_adapters(
    inputs: Inputs, dtype: torch.dtype, sequences: list[Tensor], *, show_progress: bool
) -> tuple[PreTrainedModel, Expected]:
    """The merged model, in the finer of `dtype` and that of training."""
    source, groups = inputs.source, by_kind(inputs)
    quantised = source.base.quantization is not Quantization.none
    # peft does not take IA3 off a quantised model.
    if len(groups) > 1 or (quantised and kind_of(source.adapters[0]) == "IA3"):
        return _merge_in_turn(inputs, groups, dtype, sequences, show_progress=show_progress)
    model = load_base(source)
    tuned = _with_adapters(model, inputs)
    before = logits(tuned, sequences)
    with tuned.disable_adapter():
        effect = difference(before, logits(tuned, sequences))
    of_activations = None
    if quantised:
        model = _dequantized(tuned.unload())
        tuned = _with_adapters(model, inputs)
        if source.base.quantization is Quantization.int8:
            rounded, before = before, logits(tuned, sequences)
            of_activations = difference(rounded, before)
    cast(model, torch.promote_types(dtype_of(source), dtype))
    return _merged(model, tuned, show_progress=show_progress), Expected(before, effect, of_activations)


def _merge_in_turn(
    inputs: Inputs, groups: list[Inputs], dtype: torch.dtype, sequences: list[Tensor], *, show_progress: bool
) -> tuple[PreTrainedModel, Expected]:
    """Adapters of several kinds. Each stands around what those before it left, so they are merged from the inside
    out. The base is loaded once more, for the unmerged model: there is never more than one in memory."""
    source = inputs.source
    expected = _composed(load_base(source), inputs, sequences)
    model = load_base(source)
    if source.base.quantization is not Quantization.none:
        model = _dequantized(model)
    if source.base.quantization is Quantization.int8:
        plain = _composed(model, inputs, sequences)
        expected = replace(expected, logits=plain.logits, of_activations=difference(expected.logits, plain.logits))
        model = _dequantized(load_base(source))
    cast(model, torch.promote_types(dtype_of(source), dtype))
    for group in groups:
        model = _merged(model, _with_adapters(model, group), show_progress=show_progress)
    return model, expected


def _composed(model: PreTrainedModel, inputs: Inputs, sequences: list[Tensor]) -> Expected:
    """What `model` says with all the adapters on, and how much that differs from what it says without."""
    scales = put_in(model, inputs)
    before = logits(model.eval(), sequences)
    activate(model, [])
    without = logits(model, sequences)
    activate(model, scales)
    return Expected(before, difference(before, without))


def put_in(model: PreTrainedModel, inputs: Inputs) -> dict[str, float]:
    """Add the adapters and switch them on, scaled. Gives peft's name of each, and its scale."""
    scales = {f"merge_{i}": scale for i, scale in enumerate(inputs.scales)}
    for name, folder in zip(scales, inputs.source.adapters, strict=True):
        load_adapter(model, folder, name)
    activate(model, scales)
    _scale(model, scales)
    return scales


def _merged(model: PreTrainedModel, tuned: PeftModel, *, show_progress: bool) -> PreTrainedModel:
    """`model` with the adapters of `tuned`, which are in it, made a part of its weights."""
    _untie(model)
    _merge_layers(tuned, show_progress=show_progress)
    merged = tuned.merge_and_unload()
    merged.__dict__.pop("peft_config", None)  # else peft warns of the next one
    return merged


def _merge_layers(tuned: PeftModel, *, show_progress: bool) -> None:
    """Each layer in fp32, where it is checked: so a weight is rounded once, and one layer at a time is so large."""
    layers = {path: module for path, module in tuned.named_modules() if isinstance(module, BaseTunerLayer)}
    for path, layer in track(layers.items(), "merging", disable=not show_progress, transient=True):
        stored = [(parameter, parameter.dtype) for parameter in layer.parameters() if parameter.is_floating_point()]
        for parameter, _ in stored:
            parameter.data = parameter.data.float()
        sample = _sample_input(layer.get_base_layer())
        expected = layer(sample) if sample is not None else None
        layer.merge(safe_merge=True)
        if sample is not None and not _close(layer.get_base_layer()(sample), expected):
            raise MergeRefused(f"merging {path} gives another layer; nothing was written", fix="use it unmerged")
        for parameter, dtype in stored:
            parameter.data = parameter.data.to(dtype)


def _sample_input(module: nn.Module) -> Tensor | None:
    """[4, width] fp32, or ids for embeddings; None: what it takes is not known here."""
    generator = torch.Generator().manual_seed(0)
    where = next(module.parameters()).device
    if isinstance(module, nn.Embedding):
        return torch.randint(module.num_embeddings, (4,), generator=generator).to(where)
    if isinstance(module, nn.Linear | Conv1D):
        width = module.in_features if isinstance(module, nn.Linear) else module.nx
        return torch.randn(4, width, generator=generator).to(where)
    return None


def _close(found: Tensor, expected: Tensor) -> bool:
    """As near as the order of sums allows."""
    return bool((found - expected).abs().max() <= EXACT * expected.abs().max())


def average(source: Source, interpolation: float, sequences: list[Tensor]) -> tuple[PreTrainedModel, Expected]:
    """A full run's model and what it began with, weight by weight in fp32; a head that was new stays as it is."""
    task = base_task(source)
    tuned = load_model(source.base, dtype=torch.float32, device=device(), task=task)
    head = head_of(tuned.config) if task.has_labels else None
    start = load_model(source.started_from, dtype=torch.float32, device=device(), task=task, head=head)
    weights = dict(start.named_parameters())
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name in start.new_weights:
                continue
            if name not in weights or weights[name].shape != parameter.shape:
                fix = "it is not the base"
                raise UserError(f"{source.started_from.path} has no weight {name} of this shape", fix=fix)
            parameter.copy_(torch.lerp(weights[name], parameter, interpolation))
    return tuned.eval(), Expected(logits(tuned, sequences))


def _dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """`model` in the dtype that its quantised layers compute in."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of the cast that it is called for
    try:
        plain = model.dequantize()
    finally:
        logging.set_verbosity(level)
    plain.is_loaded_in_4bit = plain.is_loaded_in_8bit = False  # it forgets to say so, and peft asks
    return plain


def _with_adapters(model: PreTrainedModel, inputs: Inputs) -> PeftModel:
    """All of them on, which are of one kind, their updates scaled."""
    names = [f"merge_{i}" for i in range(len(inputs.scales))]
    folders = inputs.source.adapters
    tuned = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=names[0])
    if not hasattr(tuned.base_model, "merge_and_unload"):
        raise UserError(
            "this kind of adapter is not part of any weight", where=str(folders[0]), fix="use it unmerged"
        )
    for name, folder in zip(names[1:], folders[1:], strict=True):
        tuned.load_adapter(str(folder), adapter_name=name)
    tuned.base_model.set_adapter(names)
    _scale(tuned, dict(zip(names, inputs.scales, strict=True)))
    return tuned.eval()


def _scale(model: nn.Module, scales: Mapping[str, float]) -> None:
    """Multiply the updates of LoRAs; others have the scale 1."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in scales.keys() & module.scaling.keys():
                module.scaling[name] *= scales[name]


def _untie(model: PreTrainedModel) -> None:
    """Give the output embedding weights of its own where an adapter changes it, or its tied twin, but not both."""
    pair = [model.get_output_embeddings(), model.get_input_embeddings()]
    if None in pair or not any(isinstance(module, BaseTunerLayer) for module in pair):
        return
    if all(isinstance(module, FreezeLayer) for module in pair):
        return  # copies of tied weights are tied
    head, embedding = (module.get_base_layer() if isinstance(module, BaseTunerLayer) else module for module in pair)
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Weights alone: buffers, such as the frequencies of rotary embeddings, keep their precision, and so do weights
    that transformers keep in fp32 beside a smaller dtype."""
    stored = model.dtype
    for parameter in model.parameters():
        if parameter.dtype == stored:
            parameter.data = parameter.data.to(dtype)
