"""Tiny models with random weights, for smoke recipes and tests: no download, trained in seconds.

`builtin:tiny_llama` is written once into the cache folder, with a byte-level tokenizer that speaks ChatML, and is an
ordinary model folder from then on.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tunecli.config.errors import UserError
from tunecli.config.paths import cache_dir

PREFIX = "builtin:"
VERSION = 1
"""Part of the folder's name; raise it when anything below changes."""

SPECIAL_TOKENS = ("<|pad|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

NUM_SENTINELS = 100
"""As in T5."""

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
ARCHITECTURES: dict[str, tuple[str, dict[str, object]]] = {
    "tiny_llama": ("llama", SHAPE | {"num_key_value_heads": 2}),
    "tiny_qwen3": ("qwen3", SHAPE | {"num_key_value_heads": 2, "head_dim": 16}),
    "tiny_bert": (
        "bert",
        SHAPE | {"max_position_embeddings": 512, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "tiny_t5": (
        "t5",
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
        | {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu", "initializer_factor": 0.1},
    ),
    "tiny_gpt2": ("gpt2", {"n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": 1024}),
}
"""name -> transformers' model type and configuration values"""


def materialize(name: str) -> Path:
    """The folder of the tiny model `name`, written now if this is its first use. Safe under several processes.

    Raises:
        UserError: there is no such model.
    """
    if name not in ARCHITECTURES:
        raise UserError(
            f"there is no builtin model {name!r}", where="model.path", fix=f"one of {', '.join(ARCHITECTURES)}"
        )
    folder = cache_dir() / "models" / f"{name}-v{VERSION}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}-"))
        _write(name, beside)
        try:
            beside.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(beside)
    return folder


def _write(name: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    model_type, values = ARCHITECTURES[name]
    kinds = {
        "bert": (AutoModelForMaskedLM, byte_encoder_tokenizer),
        "t5": (AutoModelForSeq2SeqLM, byte_seq2seq_tokenizer),
    }
    kind, make_tokenizer = kinds.get(model_type, (AutoModelForCausalLM, byte_tokenizer))
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(
        model_type,
        **values,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def byte_tokenizer():  # noqa: ANN201 - a PreTrainedTokenizerFast; importing transformers for the annotation is slow
    """A tokenizer of single bytes plus the special tokens of ChatML; any text round-trips."""
    from transformers import PreTrainedTokenizerFast

    pad, start, end = SPECIAL_TOKENS
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(SPECIAL_TOKENS),
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        padding_side="left",
    )
    wrapped.chat_template = CHATML
    return wrapped


def _byte_level(before: Sequence[str], after: Sequence[str] = ()):  # noqa: ANN202 - as above
    """A tokenizer of single bytes, with other tokens before and after those in its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = [*before, *sorted(pre_tokenizers.ByteLevel.alphabet()), *after]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_encoder_tokenizer():  # noqa: ANN201 - as above
    """The same with BERT's special tokens, around texts and pairs of texts as BERT has them."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"})
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.padding_side = "right"
    return tokenizer


def byte_seq2seq_tokenizer():  # noqa: ANN201 - as above
    """Single bytes with T5's special tokens: </s> behind each text, and the sentinels of span corruption."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    sentinels = [f"<extra_id_{i}>" for i in range(NUM_SENTINELS)]
    tokenizer = _byte_level(("<pad>", "</s>", "<unk>"), sentinels[::-1])  # as in T5, the last token is the first
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=sentinels,
        padding_side="right",
    )
