"""The ids of virtual tokens: beyond every vocabulary, so that tokens do not depend on the model that reads them."""

from __future__ import annotations

from collections.abc import Mapping

from tunecli.config.peft import PeftConfig, PromptTokens, PromptTuningConfig, PTuningConfig
from tunecli.config.template import parse_template

FIRST_VIRTUAL = 2**24


def num_virtual_tokens(method: PeftConfig) -> int:
    """Tokens that the method puts among those of an example; deep prefixes are none."""
    if isinstance(method, PromptTuningConfig):
        return method.num_virtual_tokens
    return parse_template(method.template).num_virtual_tokens if isinstance(method, PTuningConfig) else 0


def virtual_ids(peft: Mapping[str, PeftConfig]) -> dict[str, range]:
    """Of each entry with virtual tokens, one entry's behind another's. Entries that take unused tokens of the
    vocabulary have a range too, which stays empty of meaning."""
    ids = {}
    first = FIRST_VIRTUAL
    for name, method in peft.items():
        if count := num_virtual_tokens(method):
            ids[name] = range(first, first + count)
            first += count
    return ids


def takes_unused_tokens(method: PeftConfig) -> bool:
    return isinstance(method, PTuningConfig) and method.tokens is PromptTokens.unused
