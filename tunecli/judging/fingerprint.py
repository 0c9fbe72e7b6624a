"""What a model is, whatever it is called: a hash of the files that its answers depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tunecli.models.load import config_on_disk, resolve_path
from tunecli.peft_methods.loading import stored_config
from tunecli.peft_methods.source import Source

WEIGHTS = {".safetensors", ".model", ".jinja", ".json", ".txt"}
"""Suffixes of weights, tokenizers and templates."""
NOT_READ = {"README.md", "generation_config.json"}


def fingerprint(source: Source) -> list[Any]:
    """Of the base, its adapters and its tokenizer, in JSON's types; of a model on the Hub its name and commit."""
    path = resolve_path(source.base.path)
    base = [_of_folder(Path(path))] if Path(path).is_dir() else [source.base.path, _commit(source)]
    folders = [*source.adapters, *([source.tokenizer] if source.tokenizer is not None else [])]
    return [*base, *(_of_folder(folder) for folder in folders)]


def _commit(source: Source) -> str:
    stored = config_on_disk(source.base) or stored_config(source)
    return str(getattr(stored, "_commit_hash", None) or source.base.revision or "main")


def _of_folder(folder: Path) -> str:
    """Of the files in it, by name and content."""
    total = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in WEIGHTS and file.name not in NOT_READ:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "blake2b").hexdigest()
            total.update(f"{file.name} {content}\n".encode())
    return total.hexdigest()
