"""IA3: factors of keys, values and of the inner activations of feed-forward layers (Liu et al., 2022). The layers are
peft's.

Departs from peft's defaults, which scale queries instead of keys or values on some architectures: the targets are the
paper's. Where one layer makes queries, keys and values together (GPT-2, GPT-NeoX), all three are scaled.
"""

from __future__ import annotations

import re

import peft
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunecli.config.errors import UserError
from tunecli.config.peft import Ia3Config
from tunecli.peft_methods.targets import linear_targets, matching

KEY_VALUE_DOWN = (r"self_attn\.[kv]_proj", r"mlp\.down_proj")
BERT = (r"attention\.self\.(key|value)", r"layer\.\d+\.output\.dense")
BART = (r"(self_attn|encoder_attn)\.[kv]_proj", r"fc2")
T5 = (r"(SelfAttention|EncDecAttention)\.[kv]", r"DenseReluDense\.wo")

LAYOUTS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), KEY_VALUE_DOWN),
    **dict.fromkeys(("bert", "roberta"), BERT),
    **dict.fromkeys(("bart", "mbart", "opt"), BART),
    **dict.fromkeys(("t5", "mt5"), T5),
    "phi3": (r"self_attn\.qkv_proj", r"mlp\.down_proj"),
    "gpt2": (r"attn\.c_attn", r"mlp\.c_proj"),
    "gpt_neox": (r"attention\.query_key_value", r"mlp\.dense_4h_to_h"),
}
"""model_type -> regular expressions for the ends of names: what is scaled at its output, and at its input"""


def peft_config(config: Ia3Config, model: PreTrainedModel) -> peft.IA3Config:
    """The factors start at one, so the outputs do not change.

    Raises:
        UserError: a target is not in this model, or the architecture is not known and there are no targets.
    """
    if config.target_modules:
        targets = linear_targets(model, config.target_modules)
        feedforward = matching(model, targets, config.feedforward_modules, key="feedforward_modules")
    else:
        outputs, inputs = _layout(model)
        feedforward = _ending(model, inputs)
        targets = _ending(model, outputs) + feedforward
    return peft.IA3Config(target_modules=targets, feedforward_modules=feedforward)


def _layout(model: PreTrainedModel) -> tuple[str, str]:
    kind = model.config.model_type
    if kind not in LAYOUTS:
        raise UserError(
            f"which layers of {kind} make keys and values is not known here",
            where="target_modules",
            fix="name them: target_modules=[...] and feedforward_modules=[...]",
        )
    return LAYOUTS[kind]


def _ending(model: PreTrainedModel, pattern: str) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and re.fullmatch(rf"(.*\.)?{pattern}", name)
    ]
