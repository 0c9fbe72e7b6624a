"""A weighted sum of LoRAs as one LoRA, exactly: s B A + s' B' A' = [B B'] [s A; s' A'].

Its rank is the sum of theirs. Where they adapt different layers or have other ranks in some, zeros fill up, so that
one rank holds for all layers. peft's `add_weighted_adapter` with `combination_type="cat"` does the same, but knows
nothing of rank patterns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tunecli.config.errors import UserError
from tunecli.engine.checkpoint import follow_umask
from tunecli.merge.comparison import difference, logits
from tunecli.merge.inputs import Inputs
from tunecli.merge.weights import Expected, put_in
from tunecli.models.load import resolve_path
from tunecli.peft_methods.injection import activate
from tunecli.peft_methods.loading import load_base
from tunecli.peft_methods.saving import PLAIN_PEFT, load_adapter


@torch.no_grad()
def write_sum(inputs: Inputs, sequences: list[Tensor], folder: Path) -> tuple[Expected, list[Tensor]]:
    """Write the sum to `folder`. Gives what the model says with the adapters, and with the written one instead.

    Raises:
        UserError: an adapter is on something else than linear layers.
    """
    model = load_base(inputs.source)
    names = put_in(model, inputs)
    before = logits(model.eval(), sequences)
    _write(_factors(model, list(names)), folder, base=resolve_path(inputs.source.base.path))
    activate(model, [])
    effect = difference(before, logits(model, sequences))
    load_adapter(model, folder, "sum")
    activate(model, ["sum"])
    return Expected(before, effect), logits(model.eval(), sequences)


def _factors(model: nn.Module, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Path of a layer -> A [rank, in] and B [out, rank] of the sum, fp32."""
    factors = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        here = [name for name in names if name in layer.lora_A]
        if not here or any(layer.lora_A[name].weight.dim() != 2 for name in here):
            raise UserError(
                f"{path} is no linear layer", fix="leave out --as-adapter: merge into the model's weights"
            )
        down = torch.cat([layer.scaling[name] * layer.lora_A[name].weight.float() for name in here])
        factors[path] = down.cpu(), torch.cat([layer.lora_B[name].weight.float() for name in here], dim=1).cpu()
    return factors


def _write(factors: dict[str, tuple[Tensor, Tensor]], folder: Path, *, base: str) -> None:
    rank = max(len(down) for down, _ in factors.values())
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(factors), inference_mode=True)
    config.base_model_name_or_path = base
    config.target_modules = sorted(factors)  # peft makes a set of it, which is saved in random order
    config.save_pretrained(str(folder))
    tensors = {}
    for path, (down, up) in factors.items():
        missing = rank - len(down)
        tensors[f"{PLAIN_PEFT}{path}.lora_A.weight"] = F.pad(down, (0, 0, 0, missing)).contiguous()
        tensors[f"{PLAIN_PEFT}{path}.lora_B.weight"] = F.pad(up, (0, missing)).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    follow_umask(folder)
