"""Virtual tokens: token ids whose embeddings are trained, wherever they stand in the input. What prompt tuning and
P-tuning share.

Departs from both papers' code and from peft: the embeddings are no input of their own that is put in front of the
text's. They are looked up by id, in the model's input embedding, like those of words: so positions, padding, caches,
beams, packed rows and checkpointing are the model's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from peft.utils import PeftType
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunecli.config.errors import UserError
from tunecli.config.virtual import FIRST_VIRTUAL
from tunecli.peft_methods.prompt_encoder import PromptEncoder
from tunecli.peft_methods.tuner import TunerConfig, TunerModel, UnmergeableLayer, device_of, register

UNUSED = re.compile(r"\[unused\d+\]|<unused\d+>|<\|reserved_special_token_\d+\|>|madeupword\d+")
"""Names of tokens that vocabularies keep for later: BERT's, Gemma's, Llama 3's, RoBERTa's."""


@dataclass
class VirtualTokensPeftConfig(TunerConfig):
    """As peft saves it."""

    num_virtual_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    """the id of each virtual token"""
    template: str = ""
    """where they stand; empty: in front"""
    encoder: str = "none"
    encoder_hidden_size: int | None = None
    init_rows: list[list[int]] | None = None
    """words whose mean embedding each virtual token starts with; not saved"""
    init_candidates: list[int] | None = None
    """words that the others are drawn from; not saved"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.VIRTUAL_TOKENS

    def plain(self) -> VirtualTokensPeftConfig:
        return replace(self, encoder="none", encoder_hidden_size=None)


class VirtualTokens(nn.Module):
    """The virtual tokens of one adapter."""

    def __init__(self, config: VirtualTokensPeftConfig, width: int, device: torch.device | None) -> None:
        super().__init__()
        self.encoder = PromptEncoder(
            len(config.token_ids), width, config.encoder, hidden_size=config.encoder_hidden_size, device=device
        )
        self.register_buffer("token_ids", torch.tensor(config.token_ids, device=device), persistent=False)

    def forward(self, input_ids: Tensor, embedded: Tensor, scale: float | Tensor) -> Tensor:
        """`embedded` [..., width] with the trained rows where `input_ids` [...] are this adapter's.

        Args:
            scale: of what the model's embedding gives.
        """
        found = input_ids[..., None] == self.token_ids
        if not torch.is_grad_enabled() and not found.any():
            return embedded
        rows = (self.encoder() * scale).to(embedded.dtype)
        # F.embedding, as the backward of plain indexing is not deterministic.
        return torch.where(found.any(-1, keepdim=True), F.embedding(found.int().argmax(-1), rows), embedded)


class VirtualTokensLayer(UnmergeableLayer):
    """The model's input embedding and virtual tokens."""

    adapter_layer_names = ("virtual_tokens_adapter",)
    why_unmergeable = "virtual tokens are inputs, and no weight of the model"

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.virtual_tokens_adapter = nn.ModuleDict()

    def forward(self, input_ids: Tensor) -> Tensor:
        """[...] int64 -> [..., width]

        Raises:
            ValueError: the input has virtual tokens of no adapter that is on.
        """
        on = [self.virtual_tokens_adapter[name] for name in self.adapters_on()]
        beyond = input_ids >= FIRST_VIRTUAL
        if not on and beyond.any():
            raise ValueError("the input has virtual tokens, and the adapter that they belong to is off")
        embedded = self.base_output(input_ids.masked_fill(beyond, 0))
        for tokens in on:
            embedded = tokens(input_ids, embedded, getattr(self.get_base_layer(), "embed_scale", 1.0))
        return embedded


class VirtualTokensModel(TunerModel):
    prefix = "virtual_tokens_"
    tuner_layer_cls = VirtualTokensLayer

    def add_to_layer(
        self, layer: VirtualTokensLayer, adapter_name: str, config: VirtualTokensPeftConfig, path: str
    ) -> None:
        base = layer.get_base_layer()
        tokens = VirtualTokens(config, base.weight.shape[1], device_of(base))
        if config.encoder == "none":
            _start_as_words(tokens.encoder.embedding, base.weight, config)
        layer.virtual_tokens_adapter[adapter_name] = tokens

    def _post_injection_hook(self, model: nn.Module, config: VirtualTokensPeftConfig, adapter_name: str) -> None:
        super()._post_injection_hook(model, config, adapter_name)
        config.init_rows = config.init_candidates = None


@torch.no_grad()
def _start_as_words(rows: nn.Parameter, words: Tensor, config: VirtualTokensPeftConfig) -> None:
    """The first rows as `init_rows` says, the others words drawn from `init_candidates`, none of them twice."""
    known = config.init_rows or []
    for i, ids in enumerate(known):
        rows[i] = words[ids].float().mean(0)
    if candidates := config.init_candidates:
        drawn = torch.randperm(len(candidates), device="cpu")[: len(rows) - len(known)].tolist()
        rows[len(known) :] = words[[candidates[i] for i in drawn]].float()


register("virtual_tokens", VirtualTokensPeftConfig, VirtualTokensModel)


def embedding_path(model: PreTrainedModel) -> str:
    """Where the input's tokens are embedded; of an encoder-decoder: those of the encoder.

    Raises:
        UserError: the model is one whose decoder is given the input too, and would not know the virtual tokens.
    """
    if model.config.is_encoder_decoder and type(model).__name__.endswith("ForSequenceClassification"):
        raise UserError(
            "puts tokens of its own into the text, which the decoder of a classifying encoder-decoder reads as well",
            where="method",
            fix="peft=[prefix_tuning] or peft=[lora]; or stage=seq2seq with the label as the text to write",
        )
    encoder = model.get_encoder()  # T5's looks words up in a module of its own, also where it is alone
    reader = encoder if isinstance(encoder, PreTrainedModel) else model
    embedding = reader.get_input_embeddings()
    return next(path for path, module in model.named_modules() if module is embedding)


def word_candidates(tokenizer: PreTrainedTokenizerBase, count: int) -> list[int]:
    """The first `count` tokens of the vocabulary that are words or parts of some: no special or unused ones, single
    Latin letters, digits or signs; of a vocabulary without words, the first that are not special."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    words = islice((token for token in ordinary if _is_word(tokenizer, token)), count)
    return list(words) or ordinary[:count]


def _is_word(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    if UNUSED.fullmatch(tokenizer.convert_ids_to_tokens(token)):
        return False
    text = tokenizer.decode([token]).strip()
    return any(letter.isalpha() for letter in text) and not (len(text) == 1 and text.isascii())
