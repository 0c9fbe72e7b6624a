"""Training files of other tools -> recipes. What has no counterpart is listed, never dropped in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tunecli.config.errors import UserError
from tunecli.config.yaml_file import YamlFile
from tunecli.foreign import axolotl, llama_factory
from tunecli.foreign.draft import Draft
from tunecli.foreign.settings import Settings

READERS: dict[str, tuple[str, Callable[[Settings, Draft, int], None]]] = {
    "LLaMA-Factory": ("model_name_or_path", llama_factory.read),
    "axolotl": ("base_model", axolotl.read),
}
"""Tool -> the key that each of its training files has, and what reads one into a draft."""


def convert(file: Path, processes: int | None) -> Draft:
    """The recipe that means the same training as `file` does on so many processes (None: one is assumed).

    Raises:
        UserError: no training file of a known tool, or a training that this version of tunecli cannot do.
    """
    if not file.is_file():
        raise UserError("no such file", where=str(file), fix="name the YAML file that the other tool trains from")
    values = YamlFile(file).value(())
    for tool, (mark, read) in READERS.items():
        if mark in values:
            draft = Draft(tool=tool, file=file)
            if processes is None:
                draft.notes.append(
                    "global_batch_size: for one process there; tune cp --from FILE --processes N if more"
                )
            read(Settings(values, str(file)), draft, processes or 1)
            draft.settle_streaming()
            return draft
    marks = " nor ".join(f"{mark} as in {tool}" for tool, (mark, _) in READERS.items())
    fix = "a recipe of tunecli is copied without --from: tune cp NAME" if "defaults" in values else "check the file"
    raise UserError(f"has neither {marks}", where=str(file), fix=fix)
