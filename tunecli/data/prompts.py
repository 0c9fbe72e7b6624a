"""What a model is asked at inference: the tokens that training put before an answer."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli.config.data import DataConfig, Thinking, training_sources
from tunecli.config.data_checks import formats_for
from tunecli.config.data_files import is_local
from tunecli.config.errors import UserError
from tunecli.config.run import RunConfig
from tunecli.config.stage import Rows, Task
from tunecli.data.conversation import with_system, without_thinking
from tunecli.data.examples import Example, Messages, Pair, Unusable
from tunecli.data.formats import FOR_LANGUAGE_MODELS, choose_format
from tunecli.data.rows import Row
from tunecli.data.source import read_rows
from tunecli.data.source_target import source_ids
from tunecli.data.templates import ChatTemplate
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokens import Encoding
from tunecli.data.virtual import question, surrounded_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RAW_FORMATS = ("text", "prompt_completion", "columns")
"""Formats that are trained without a chat template (prompt_completion unless it holds messages)."""


def trained_on_raw_text(data: DataConfig, formats: Collection[str]) -> bool:
    """Whether no example goes through the chat template, as far as the first row of each source tells.

    Args:
        formats: the names of those that the sources were read with.
    """
    if not all(name in RAW_FORMATS for name in formats):
        return False
    return "prompt_completion" not in formats or not any(
        isinstance(example, Messages) for example in _first_examples(data)
    )


def formats_of(config: RunConfig, run_dir: Path) -> list[str]:
    """Names of the formats that the run read its rows with; as configured, where it did not note them."""
    try:
        data = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))["data"]
        noted = data["train" if "train" in data else "validation"]["formats"]
    except (OSError, KeyError, ValueError):
        return [source.format for source in training_sources(config.data)]
    return [str(name).split(",")[0].split(" (")[0] for name in noted]


def judged_as_raw_text(data: DataConfig) -> bool:
    """The same of answers that are compared or scored, where a source can still be read."""
    found = list(_first_examples(data, formats_for(Rows.judged)))
    texts = [example.chosen if isinstance(example, Pair) else getattr(example, "text", None) for example in found]
    return bool(texts) and not any(isinstance(text, Messages) for text in texts)


def _first_examples(data: DataConfig, known: Collection[str] = FOR_LANGUAGE_MODELS) -> Iterator[Example]:
    """The first row of each source that is still there, as its format reads it."""
    for source in training_sources(data):
        if not is_local(source.path):
            continue
        try:
            for row in islice(read_rows(source, data.sample_by), 1):
                if isinstance(row, Row):
                    yield choose_format(source.format, source.columns, row.values, known)(row.values)
        except (UserError, Unusable):
            continue


def chat_prompt(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> list[int]:
    """Ids of a conversation that ends with a question, with the template's generation prompt.

    Raises Unusable where the template refuses it.
    """
    example = with_system(Messages(messages), encoding.system, encoding.system_prompt)
    example = without_thinking(example) if encoding.thinking is Thinking.drop else example
    template = ChatTemplate(tokenizer, encoding.chat_template_kwargs)
    text = template.render(template.prepared(example), add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return surrounded_prompt(ids, encoding, TextEncoder(tokenizer))


def raw_prompt(text: str, tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> list[int]:
    """Ids of a text that the model is to go on with; in a template, of what it makes of the text; of a model that
    reads a text as a whole (an encoder-decoder's source, a text to be labelled or with gaps), of that as in training.

    Raises Unusable where the template has several columns, which the text does not name.
    """
    encoder = TextEncoder(tokenizer)
    if encoding.task is not Task.causal_lm:
        return source_ids(text, encoder, encoding)
    if encoding.template:
        return question(text, encoding, encoder)
    return surrounded_prompt(encoder.ids(text, add_special_tokens=True), encoding, encoder)
