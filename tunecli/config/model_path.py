"""Which model names mean a folder here, not an id on the Hub. The command line asks, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from tunecli.config.errors import UserError


def refuse_missing_folder(path: str, where: str = "") -> None:
    """Raises UserError where `path` is written like a folder, and there is none."""
    if not path.startswith("builtin:") and not Path(path).expanduser().exists() and is_folder_name(path):
        raise UserError(f"there is no folder {path}", where=where, fix="check the path; a Hub id is OWNER/NAME")


def is_folder_name(path: str) -> bool:
    """Rather than the id of a repository."""
    parts = Path(path).parts
    return path.startswith((".", "/", "~")) or len(parts) > 2 or (len(parts) == 2 and Path(parts[0]).is_dir())
