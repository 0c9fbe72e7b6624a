"""What a path names: a whole model, or adapters and the base that they belong to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers.utils import cached_file

from tunecli.config.begun import no_result
from tunecli.config.compose import load_config
from tunecli.config.errors import UserError
from tunecli.config.model import ModelConfig
from tunecli.config.peft import HEAD
from tunecli.config.run import RunConfig
from tunecli.engine.hub_name import refuse_missing
from tunecli.models.builtin import PREFIX
from tunecli.models.load import resolve_path

ADAPTER = "adapter_config.json"
TOKENIZER = "tokenizer_config.json"
COMPOSITION = "composition.json"
"""Beside the peft folders of a run: their order."""


@dataclass(frozen=True, slots=True)
class Source:
    path: str
    """as typed"""
    base: ModelConfig
    """of the model to load; for a whole model, that model"""
    adapters: list[Path] = field(default_factory=list)
    """peft folders that are on together; none for a whole model"""
    tokenizer: Path | None = None
    """folder of a tokenizer that is not the base's"""
    run: RunConfig | None = None
    """how it was trained, where we trained it"""
    run_dir: Path | None = None

    @property
    def one_for_each_row(self) -> bool:
        """The adapters were trained each on rows of its own: one at a time is on."""
        alternatives = [folder for folder in self.adapters if folder.name != HEAD]
        return len(alternatives) > 1 and self.run is not None and self.run.data.adapter_column is not None

    @property
    def started_from(self) -> ModelConfig:
        """What training began with."""
        return self.base if self.run is None or self.adapters else self.run.model

    @property
    def base_key(self) -> tuple[str, ...]:
        """Equal for adapters that can be in one model."""
        path = resolve_path(self.base.path)
        folder = Path(path)
        parts = [str(folder.resolve()) if folder.exists() else path, self.base.revision or "main"]
        return (*parts, self.base.quantization.value if self.adapters else "")


def find_source(path: str, base: str | None = None) -> Source:
    """What `path` names: a run directory or its result, a peft folder or a folder of them, a model folder, a Hub id
    of a model or an adapter, or a builtin model.

    Args:
        base: Hub id or folder of what training began with, if not the one that adapters or run name.

    Raises:
        UserError: a run has no result yet, adapters do not say what they belong to, or nothing is there.
    """
    folder = Path(path).expanduser()
    if path.startswith(PREFIX) or not folder.exists():
        found = _on_hub(path, base)
    elif (run_dir := _run_dir(folder)) is not None:
        found = _of_run(path, folder, run_dir)
    elif adapters := _adapters(folder):
        found = _of_adapters(path, adapters, base)
    elif (folder / "config.json").is_file():
        found = Source(path, ModelConfig(path=path))
    else:
        raise UserError(
            "is no run directory, adapter or model",
            where=path or str(folder.absolute()),
            fix=f"a folder that holds one of: config.yaml (a run), {ADAPTER} (an adapter), config.json (a model)",
        )
    return _on_base(found, base) if base else found


def _on_base(source: Source, path: str) -> Source:
    """`source` with another name of what training began with."""
    run = source.run
    if run is not None:
        run = replace(run, model=replace(run.model, path=path, revision=None))
    base = replace(source.base, path=path, revision=None) if source.adapters else source.base
    return replace(source, base=base, run=run)


def _run_dir(folder: Path) -> Path | None:
    """The run directory that `folder` is, or is the result of."""
    folder = folder.absolute()
    places = {0: folder, 1: folder.parent, 2: folder.parent.parent}
    inner = {0: (), 1: (folder.name,), 2: (folder.parent.name, folder.name)}
    for depth, place in places.items():
        if (place / "config.yaml").is_file() and inner[depth][:1] in ((), ("adapter",), ("model",)):
            return place
    return None


def _adapters(folder: Path) -> list[Path]:
    """The peft folder that `folder` is, with the head that was trained beside it; or those that it holds, in the
    order in which they were put into the model."""
    if (folder / ADAPTER).is_file():
        with_head = folder.name != HEAD and HEAD in _order(folder.parent)
        return [folder, folder.parent / HEAD] if with_head else [folder]
    if order := _order(folder):
        return [folder / name for name in order]
    return sorted(file.parent for file in folder.glob(f"*/{ADAPTER}"))


def _order(folder: Path) -> list[str]:
    """Of the adapters of a run, in a folder that holds them all."""
    file = folder / COMPOSITION
    return json.loads(file.read_text(encoding="utf-8"))["order"] if file.is_file() else []


def _of_run(path: str, folder: Path, run_dir: Path) -> Source:
    config = load_config(run_dir / "config.yaml")
    result = run_dir / ("adapter" if config.peft else "model")
    if not result.is_dir():
        raise no_result(run_dir, config)
    if not config.peft:
        return Source(path, ModelConfig(path=str(result)), tokenizer=result, run=config, run_dir=run_dir)
    names = [folder.name] if (folder / ADAPTER).is_file() else list(config.peft)
    heads = [HEAD] if HEAD in config.peft and HEAD not in names else []
    adapters = [result / name for name in (*names, *heads)]
    return Source(path, config.model, adapters, result, config, run_dir)


def _of_adapters(path: str, adapters: list[Path], base: str | None) -> Source:
    """Adapters that are not in a run directory."""
    first = adapters[0]
    saved = json.loads((first / ADAPTER).read_text(encoding="utf-8"))
    named = base or saved.get("base_model_name_or_path")
    if not named:
        raise UserError("the adapter does not say which base model it belongs to", where=str(first / ADAPTER))
    homes = [folder for folder in (first, first.parent) if (folder / TOKENIZER).is_file()]
    return Source(path, ModelConfig(path=named, revision=saved.get("revision")), adapters, next(iter(homes), None))


def _on_hub(path: str, base: str | None) -> Source:
    refuse_missing(path)
    known = resolve_path(path)
    if path.startswith(PREFIX):
        return Source(path, ModelConfig(path=path))
    options = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        file = cached_file(known, ADAPTER, **options)
    except OSError:  # no such repository, or none of ours to read: loading it says so in one line
        file = None
    if file is None:
        return Source(path, ModelConfig(path=path))
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]))
    return _of_adapters(path, [folder], base)
