"""The words nearest to the virtual tokens of a run, as Lester et al. (2021, arXiv:2104.08691, section 7) look at what
a prompt has learnt: the five nearest by cosine similarity. Euclidean distance, ours, is there too.

Only the base's input embedding is read, where its checkpoint holds it under the name that it has in the model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from tunecli.config.errors import UserError
from tunecli.models.load import resolve_path
from tunecli.peft_methods.loading import load_base, tokenizer_of
from tunecli.peft_methods.source import ADAPTER, Source, find_source

NEAREST = 5
WIDE = 240
"""Columns of the table where it goes into a file or a pipe."""
CHUNK = 16
"""Virtual tokens that are compared with the whole vocabulary at once."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    word: str
    value: float
    """cosine similarity, or Euclidean distance"""


@dataclass(frozen=True, slots=True)
class VirtualToken:
    entry: str
    """of the `peft` group"""
    number: int
    """from 1, in this entry"""
    nearest: list[Neighbour]


def neighbours(path: str, measure: str) -> list[VirtualToken]:
    """Of each virtual token of the run or adapter `path`, in their order.

    Args:
        measure: cosine | euclidean.

    Raises:
        UserError: it has none.
    """
    source = find_source(path)
    prompts = {folder.name: rows for folder in source.adapters if (rows := _rows(folder)) is not None}
    if not prompts:
        raise UserError("has no virtual tokens", where=path, fix="--words is for runs of prompt_tuning and p_tuning")
    words, tokenizer = _embedding(source), tokenizer_of(source)
    return [
        VirtualToken(entry, number, near)
        for entry, rows in prompts.items()
        for number, near in enumerate(_nearest(rows, words[: len(tokenizer)], measure, tokenizer), start=1)
    ]


def _rows(folder: Path) -> Tensor | None:
    """What an adapter trained in place of embeddings, [tokens, width] fp32; None: it is of another method."""
    saved = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    if saved["peft_type"] != "VIRTUAL_TOKENS":
        return None
    (rows,) = load_file(folder / "adapter_model.safetensors").values()
    return rows.float()


def _embedding(source: Source) -> Tensor:
    """The base's input embedding, [vocabulary, width]."""
    folder = next(folder for folder in source.adapters if _rows(folder) is not None)
    (path,) = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["target_modules"]
    found = _stored(source, f"{path}.weight")
    return load_base(source).get_input_embeddings().weight.detach() if found is None else found


def _stored(source: Source, key: str) -> Tensor | None:
    """The tensor `key` of the base's checkpoint, where that calls it so; some leave the start of the name out."""
    model, options = resolve_path(source.base.path), {"revision": source.base.revision}
    try:
        index = cached_file(model, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **options)
        named = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"] if index else {}
        name = next((each for each in named if _same(each, key)), None)
        if index and name is None:
            return None
        file = cached_file(model, named[name] if name else SAFE_WEIGHTS_NAME, **options)
        with safe_open(file, framework="pt") as tensors:
            name = name or next((each for each in tensors.keys() if _same(each, key)), None)  # noqa: SIM118
            return tensors.get_tensor(name) if name else None
    except (OSError, SafetensorError):
        return None  # loading the whole model says what is wrong


def _same(stored: str, key: str) -> bool:
    return key == stored or key.endswith(f".{stored}") or stored.endswith(f".{key}")


def _nearest(rows: Tensor, words: Tensor, measure: str, tokenizer: PreTrainedTokenizerBase) -> list[list[Neighbour]]:
    found = []
    for part in rows.split(CHUNK):
        values = _compared(part, words.float(), measure)
        for row in values:
            ids = row.topk(NEAREST, largest=measure == "cosine").indices.tolist()
            found.append([Neighbour(_word(token, tokenizer), float(row[token])) for token in ids])
    return found


def _word(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Its text; of part of a character, the vocabulary's name."""
    text = tokenizer.decode([token])
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else text


def _compared(rows: Tensor, words: Tensor, measure: str) -> Tensor:
    """[rows, words]"""
    if measure == "euclidean":
        return torch.cdist(rows, words)
    return torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(words, dim=1).T


def show(tokens: list[VirtualToken], measure: str) -> None:
    """As a table on standard output."""
    table = Table(title=f"words nearest by {measure} {'similarity' if measure == 'cosine' else 'distance'}")
    table.add_column("token", no_wrap=True)
    for number in range(NEAREST):
        table.add_column(f"{number + 1}.", overflow="fold")
    before = None
    for token in tokens:
        if before is not None and token.entry != before:
            table.add_section()
        before = token.entry
        table.add_row(f"{token.entry} {token.number}", *(_cell(near) for near in token.nearest))
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


def _cell(near: Neighbour) -> str:
    return f"{escape(_visible(near.word))} [dim]{near.value:.2f}[/dim]"


def _visible(word: str) -> str:
    marks = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    return "".join(marks.get(char, char if char.isprintable() else f"\\x{ord(char):02x}") for char in word)
