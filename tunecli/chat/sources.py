"""What a path on the command line names: a whole model, or adapters and the base that they belong to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers.utils import cached_file

from tunecli.config.compose import load_config
from tunecli.config.errors import UserError
from tunecli.config.model import ModelConfig
from tunecli.config.run import RunConfig
from tunecli.models.builtin import PREFIX
from tunecli.models.load import resolve_path

ADAPTER = "adapter_config.json"
TOKENIZER = "tokenizer_config.json"


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
    def base_key(self) -> tuple[str, ...]:
        """Equal for adapters that can be in one model."""
        path = resolve_path(self.base.path)
        folder = Path(path)
        parts = [str(folder.resolve()) if folder.exists() else path, self.base.revision or "main"]
        return (*parts, self.base.quantization.value if self.adapters else "")


def find_source(path: str) -> Source:
    """Raises UserError when a run has no result yet, or nothing is there."""
    folder = Path(path).expanduser()
    if path.startswith(PREFIX) or not folder.exists():
        return _on_hub(path)
    run_dir = _run_dir(folder)
    if run_dir is not None:
        return _of_run(path, folder, run_dir)
    return _adapter(path, folder) if (folder / ADAPTER).is_file() else Source(path, ModelConfig(path=path))


def names_of(sources: list[Source]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [Path(source.path).expanduser().parts or (source.path,) for source in sources]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"named twice: {sources[0].path}", fix="name each path once")


def _run_dir(folder: Path) -> Path | None:
    """The run directory that `folder` is, or is the result of."""
    folder = folder.absolute()
    places = {0: folder, 1: folder.parent, 2: folder.parent.parent}
    inner = {0: (), 1: (folder.name,), 2: (folder.parent.name, folder.name)}
    for depth, place in places.items():
        if (place / "config.yaml").is_file() and inner[depth][:1] in ((), ("adapter",), ("model",)):
            return place
    return None


def _of_run(path: str, folder: Path, run_dir: Path) -> Source:
    config = load_config(run_dir / "config.yaml")
    result = run_dir / ("adapter" if config.peft else "model")
    if not result.is_dir():
        raise UserError(f"{run_dir} has no result yet", where=str(result), fix=f"tune resume {run_dir}")
    if not config.peft:
        return Source(path, ModelConfig(path=str(result)), tokenizer=result, run=config, run_dir=run_dir)
    adapters = (
        [folder] if (folder / ADAPTER).is_file() else sorted(file.parent for file in result.glob(f"*/{ADAPTER}"))
    )
    return Source(path, config.model, adapters, result, config, run_dir)


def _adapter(path: str, folder: Path) -> Source:
    saved = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    base = saved.get("base_model_name_or_path")
    if not base:
        raise UserError("the adapter does not say which base model it belongs to", where=str(folder / ADAPTER))
    tokenizer = folder if (folder / TOKENIZER).is_file() else None
    return Source(path, ModelConfig(path=base, revision=saved.get("revision")), [folder], tokenizer)


def _on_hub(path: str) -> Source:
    """An adapter or a model on the Hub, or a builtin model."""
    known = resolve_path(path)  # refuses what looks like a folder
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

    return _adapter(
        path, Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]))
    )
