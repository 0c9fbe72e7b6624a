"""tunecli: fine-tune language models from recipes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    __version__: str
else:

    def __getattr__(name: str) -> str:
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version  # takes longer than all of `tune --help`

        return version("tunecli")


# Advises to install an optional kernel, to everybody whose CPU could use it, at import.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# Of the cast of its inputs an 8-bit layer tells at every call.
logging.getLogger("bitsandbytes.autograd._functions").addFilter(
    lambda record: not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")
)

__all__ = ["__version__", "load", "prompt_ids"]


def load(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a run directory, of a peft or model folder or of a Hub id, in eval mode, and its tokenizer.

    Of a run that trained adapters: its base, in the form that it had in training, and all its adapters, in fp32.

    >>> model, tokenizer = tunecli.load("outputs/sft_lora_smollm2/latest")
    """
    from tunecli.peft_methods import loading

    return loading.load(path)


def prompt_ids(path: str | Path, question: str | list[dict[str, str]]) -> list[int]:
    """Token ids of a question, or of messages that end with one, as what `path` names was trained to see them: with
    its chat template, system message and virtual tokens.

    >>> ids = tunecli.prompt_ids("outputs/sft_lora_smollm2/latest", "Who are you?")
    >>> model.generate(torch.tensor([ids]))
    """
    from tunecli.chat.session import rendering_of
    from tunecli.peft_methods.source import find_source

    rendering = rendering_of(find_source(str(path)))
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    if rendering.system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": rendering.system}, *messages]
    return rendering.ids(messages)
