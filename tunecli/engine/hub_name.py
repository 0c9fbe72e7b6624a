"""Names without an owner: some old models of the Hub (gpt2) have one, but most such names are mistyped folders."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from tunecli.config.errors import UserError
from tunecli.config.model_path import refuse_missing_folder

SECONDS = 5
"""How long the Hub is waited for; asking again and again, as its client does for files, would take minutes."""


def refuse_missing(path: str, where: str = "") -> None:
    """Raises UserError where `path` is no folder here and, without an owner, is neither cached nor on the Hub."""
    refuse_missing_folder(path, where)
    if "/" in path or path.startswith("builtin:") or Path(path).exists():
        return
    if why := _not_on_hub(path):
        fix = "check the path; a run is outputs/RECIPE/latest, a Hub id OWNER/NAME"
        raise UserError(f"there is no folder {path} here, and {why}", where=where, fix=fix)


@lru_cache
def _not_on_hub(name: str) -> str:
    """Why it cannot be loaded from there; empty where it can, or where loading it says better what is wrong."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    if any(Path(HF_HUB_CACHE, f"models--{name}", "snapshots").glob("*/*")):
        return ""
    try:
        HfApi().model_info(name, timeout=SECONDS)
    except (RepositoryNotFoundError, HFValidationError):
        return "the Hub has no model of that name"
    except HfHubHTTPError:
        return ""
    except Exception:  # noqa: BLE001 - what a network raises
        return "the Hub, which has a few models without an owner, cannot be asked"
    return ""
