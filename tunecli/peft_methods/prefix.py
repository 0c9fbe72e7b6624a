"""Prefixes: keys and values that are put before those of the text in each attention layer.

- prefix_tuning: made from an embedding by an MLP, which is steadier to train (Li & Liang, 2021, arXiv:2101.00190).
- p_tuning_v2: trained as they are (Liu et al., 2022, arXiv:2110.07602).

Departures:
- They are no part of the key-value cache and take no positions: the attention function (`tunecli.models.attention`)
  puts them in front. So caches, padding, packed rows and checkpointing are the model's own; with rotary or learned
  positions the text's positions begin at 0, not behind the prefix.
- Encoder-decoders get them in the encoder, in the decoder and in cross-attention, each from an MLP of its own, as in
  Li & Liang's code; the first layer and the hidden layer are shared by the layers of the model.
- What the MLP makes is all that a result keeps; checkpoints keep the MLP, so that training resumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.utils import PeftType
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.peft import DeepPromptConfig, PrefixTuningConfig
from tunecli.models import attention
from tunecli.models.policy import use_packed_attention
from tunecli.peft_methods.bottleneck import in_layers, model_width
from tunecli.peft_methods.layouts import LAYOUTS, place_of
from tunecli.peft_methods.route import Route
from tunecli.peft_methods.tuner import TunerConfig, TunerModel, UnmergeableLayer, device_of, register

CROSS = ("EncDecAttention", "encoder_attn")
"""Names of the modules of cross-attention."""


@dataclass
class PrefixPeftConfig(TunerConfig):
    """As peft saves it."""

    num_virtual_tokens: int = 20
    projected: bool = False
    """made by an MLP, in training"""
    encoder_hidden_size: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.PREFIX_KV

    def plain(self) -> PrefixPeftConfig:
        return replace(self, projected=False)


class Trunk(nn.Module):
    """What the layers of one stack share: [prefix, hidden] in fp32."""

    def __init__(self, num_rows: int, width: int, hidden_size: int, device: torch.device | None) -> None:
        super().__init__()
        new = {"device": device, "dtype": torch.float32}
        self.embedding = nn.Parameter(torch.randn(num_rows, width, **new))
        self.linear = nn.Linear(width, hidden_size, **new)

    def forward(self) -> Tensor:
        return torch.tanh(self.linear(self.embedding))


class Prefix(nn.Module):
    """One adapter's keys and values in one attention module."""

    def __init__(
        self,
        config: PrefixPeftConfig,
        shape: tuple[int, int],
        trunk: Trunk | None,
        *,
        owner: bool,
        device: torch.device | None,
    ) -> None:
        """
        Args:
            shape: key heads, and the width of each.
            trunk: None: keys and values are trained as they are.
            owner: the trunk's parameters count as this module's; as those of the first of the layers that share it.
        """
        super().__init__()
        self.shape = shape
        width = 2 * shape[0] * shape[1]
        new = {"device": device, "dtype": torch.float32}
        if trunk is None:
            self.rows = nn.Parameter(0.02 * torch.randn(config.num_virtual_tokens, width, **new))
            return
        self.head = nn.Linear(config.encoder_hidden_size, width, **new)
        if owner:
            self.trunk = trunk
        else:
            self.__dict__["trunk"] = trunk

    def flat(self) -> Tensor:
        """[prefix, 2 * key heads * head_dim] fp32"""
        return self.rows if hasattr(self, "rows") else self.head(self.trunk())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values, each [key heads, prefix, head_dim] fp32."""
        both = self.flat().unflatten(1, (2, *self.shape)).permute(1, 2, 0, 3)
        return both[0], both[1]

    def plain_state(self) -> dict[str, Tensor]:
        """What is left of the parameters when training is over."""
        return {"rows": self.flat().detach()}


class PrefixLayer(UnmergeableLayer):
    """An attention module, which finds its prefixes here."""

    adapter_layer_names = ("prefix_kv_adapter",)
    why_unmergeable = "no weight of the model gives keys and values without a token"

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.prefix_kv_adapter = nn.ModuleDict()
        self.route: Route | None = None
        assert attention.PREFIXES not in base_layer.__dict__, "one layer holds the prefixes of all adapters"
        base_layer.__dict__[attention.PREFIXES] = self  # no submodule of it: it is one of this layer

    def key_values(self, num_rows: int, like: Tensor) -> attention.Prefix | None:
        """As `tunecli.models.attention.Prefixes` says; several adapters stand one behind another."""
        pairs = {name: self.prefix_kv_adapter[name]() for name in self.adapters_on()}
        if not pairs:
            return None
        if self.route is not None and self.route.rows is not None:
            return _of_each_row(pairs, self.route.names, self.route.rows, like)
        keys = torch.cat([key for key, _ in pairs.values()], dim=1).to(like.dtype)
        values = torch.cat([value for _, value in pairs.values()], dim=1).to(like.dtype)
        return attention.Prefix(keys.expand(num_rows, -1, -1, -1), values.expand(num_rows, -1, -1, -1))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_layer(*args, **kwargs)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        base = super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        del base.__dict__[attention.PREFIXES]
        return base


def _of_each_row(
    pairs: Mapping[str, tuple[Tensor, Tensor]], names: Sequence[str], rows: Tensor, like: Tensor
) -> attention.Prefix:
    """The prefix of each row's adapter, filled up on the left to the longest.

    Args:
        pairs: keys and values of the adapters that have a prefix here.
        rows: [rows] index into `names`; -1: the row has no adapter.
    """
    longest = max(key.shape[1] for key, _ in pairs.values())
    empty = torch.zeros_like(next(iter(pairs.values()))[0][:, :0])
    chosen = [pairs.get(name, (empty, empty)) for name in names] + [(empty, empty)]
    place = torch.arange(longest, device=like.device)
    seen = torch.stack([place >= longest - key.shape[1] for key, _ in chosen])[rows]

    def gathered(parts: list[Tensor]) -> Tensor:
        filled = torch.stack([F.pad(part, (0, 0, longest - part.shape[1], 0)) for part in parts]).to(like.dtype)
        # F.embedding, as the backward of plain indexing is not deterministic.
        return F.embedding(rows % len(filled), filled.flatten(1)).unflatten(1, filled.shape[1:])

    return attention.Prefix(gathered([key for key, _ in chosen]), gathered([value for _, value in chosen]), seen)


class PrefixModel(TunerModel):
    prefix = "prefix_kv_"
    tuner_layer_cls = PrefixLayer

    def add_to_layer(self, layer: PrefixLayer, adapter_name: str, config: PrefixPeftConfig, path: str) -> None:
        device = device_of(layer.get_base_layer())
        trunk, owner = self._trunk(config, stack_of(path, self.model), device)
        shape = key_shape(layer.get_base_layer(), self.model)
        layer.prefix_kv_adapter[adapter_name] = Prefix(config, shape, trunk, owner=owner, device=device)

    def _trunk(self, config: PrefixPeftConfig, stack: str, device: torch.device | None) -> tuple[Trunk | None, bool]:
        """The trunk that the layers of a stack share, and whether this is the first of them."""
        if not config.projected:
            return None, False
        trunks: dict[str, Trunk] = self.__dict__.setdefault("_trunks", {})
        if stack in trunks:
            return trunks[stack], False
        width = model_width(self.model)
        trunks[stack] = Trunk(config.num_virtual_tokens, width, config.encoder_hidden_size, device)
        return trunks[stack], True

    def _post_injection_hook(self, model: nn.Module, config: PrefixPeftConfig, adapter_name: str) -> None:
        super()._post_injection_hook(model, config, adapter_name)
        self.__dict__.pop("_trunks", None)
        use_packed_attention(model)


register("prefix_kv", PrefixPeftConfig, PrefixModel)


def peft_config(config: DeepPromptConfig, model: PreTrainedModel) -> PrefixPeftConfig:
    """
    Raises:
        UserError: where attention is computed is not known or cannot take prefixes, or `layers` or `attention` names
            what is not there.
    """
    layout = LAYOUTS.get(model.config.model_type)
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if layout is None or capped is not None:
        raise UserError(
            f"the attention of {model.config.model_type} models takes no prefixes",
            where="method",
            fix="prompt_tuning or another method: tune ls peft",
        )
    places = {path: place for path, _ in model.named_modules() if (place := place_of(path))}
    paths = [path for path, place in places.items() if place.inside in layout.attention_core]
    wanted = [kind.value for kind in config.attention]
    if wanted and not model.config.is_encoder_decoder:
        raise UserError("names kinds of attention, and this model has one", where="attention", fix="attention=[]")
    paths = [path for path in paths if not wanted or stack_of(path, model) in wanted]
    projected = isinstance(config, PrefixTuningConfig) and config.prefix_projection
    return PrefixPeftConfig(
        target_modules=in_layers(paths, config.layers, places),
        num_virtual_tokens=config.num_virtual_tokens,
        projected=projected,
        encoder_hidden_size=config.encoder_hidden_size if isinstance(config, PrefixTuningConfig) else 512,
    )


def stack_of(path: str, model: nn.Module) -> str:
    """Of an encoder-decoder: encoder | decoder | cross; of others one, without a name."""
    if not model.config.is_encoder_decoder:
        return ""
    if path.endswith(CROSS):
        return "cross"
    return "encoder" if "encoder" in path.split(".") else "decoder"


def key_shape(attention: nn.Module, model: nn.Module) -> tuple[int, int]:
    """Key heads, and the width of each."""
    config = model.config.get_text_config()
    heads = _first_of(attention, ("num_heads", "num_attention_heads", "n_heads")) or config.num_attention_heads
    width = _first_of(attention, ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size"))
    return heads // getattr(attention, "num_key_value_groups", 1), width


def _first_of(module: nn.Module, names: tuple[str, ...]) -> Any:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)
