"""Checkpoints that are there completely or not at all, in safetensors and JSON (no pickle).

Everything is written into a folder beside, synced, renamed, and the manifest is written last: a folder without a
manifest, or with a file of another size than its manifest says, is one that a kill interrupted, and is passed over.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

MANIFEST = "manifest.json"
HOOKS = "hooks.safetensors"
_STEP_FOLDER = re.compile(r"step_(\d{8})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    step: int
    folder: Path

    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "state.json").read_text())

    def hooks(self) -> dict[str, Tensor]:
        """State of the step hooks."""
        file = self.folder / HOOKS
        return load_file(file) if file.is_file() else {}


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Name -> value of every parameter that is trained; tied parameters once."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(
    root: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    keep_last: int,
    hooks: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `root/step_<step>` and delete all but the newest `keep_last`. One rank calls this, the others wait.

    Args:
        state: JSON-able state of the loop and the stage.
        hooks: state of the step hooks.
    """
    folder = root / f"step_{step:08d}"
    beside = root / f".{folder.name}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    tensors, scalars = optimizer_state(model, optimizer)
    save_file({k: v.contiguous() for k, v in trainable_state(model).items()}, beside / "trainable.safetensors")
    save_file(tensors, beside / "optimizer.safetensors")
    if hooks:
        save_file({k: v.contiguous() for k, v in hooks.items()}, beside / HOOKS)
    follow_umask(beside)
    (beside / "state.json").write_text(json.dumps(dict(state) | {"optimizer": scalars}))
    sizes = {file.name: file.stat().st_size for file in sorted(beside.iterdir())}
    for file in beside.iterdir():
        _sync(file)
    if folder.exists():  # an incomplete one of an earlier attempt, or the same step saved again
        shutil.rmtree(folder)
    beside.rename(folder)
    write_atomically(folder / MANIFEST, json.dumps({"step": step, "files": sizes}))
    _sync(root)
    for old in complete_checkpoints(root)[:-keep_last]:
        shutil.rmtree(old.folder)
    return folder


def save_best(root: Path, model: nn.Module, step: int) -> None:
    """Keep the trained parameters of the best evaluation so far, without what resuming needs. One rank calls this.

    Earlier ones stay until `forget_worse`: a checkpoint may still name them as the best.
    """
    folder = root / f"step_{step:08d}"
    beside = root / f".{folder.name}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in trainable_state(model).items()}, beside / "trainable.safetensors")
    follow_umask(beside)
    _sync(beside / "trainable.safetensors")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def forget_worse(root: Path, step: int) -> None:
    """Delete kept parameters but those of `step`, which the newest checkpoint names as the best."""
    for folder in root.glob("step_*"):
        if folder.name != f"step_{step:08d}":
            shutil.rmtree(folder)


def restore_best(root: Path, model: nn.Module, step: int) -> None:
    """Put the parameters of the best evaluation back."""
    folder = root / f"step_{step:08d}"
    _put(load_file(folder / "trainable.safetensors"), model, folder)


def complete_checkpoints(root: Path) -> list[Checkpoint]:
    """Oldest first."""
    return sorted(_complete(root), key=lambda checkpoint: checkpoint.step)


def _complete(root: Path) -> Iterator[Checkpoint]:
    for folder in root.glob("step_*"):
        match = _STEP_FOLDER.fullmatch(folder.name)
        manifest = folder / MANIFEST
        if not match or not manifest.is_file():
            continue
        sizes = json.loads(manifest.read_text())["files"]
        if all((folder / name).is_file() and (folder / name).stat().st_size == n for name, n in sizes.items()):
            yield Checkpoint(int(match[1]), folder)


def restore_parameters(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Put the saved values of the trained parameters into `model`."""
    _put(load_file(checkpoint.folder / "trainable.safetensors"), model, checkpoint.folder)


def _put(saved: Mapping[str, Tensor], model: nn.Module, folder: Path) -> None:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if saved.keys() != parameters.keys():
        differing = sorted(saved.keys() ^ parameters.keys())
        raise ValueError(f"{folder} was written for other trained parameters: {differing[:5]} ...")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of `optimizer` as `parameter/key` -> tensor, and -> JSON value."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    names = _parameter_names(model, optimizer)
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in _flat(entries):
            if isinstance(value, Tensor):
                tensors[f"{names[index]}/{key}"] = value.contiguous().clone()
            else:
                scalars[f"{names[index]}/{key}"] = value
    return tensors, scalars


def restore_optimizer(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer) -> None:
    """Put the saved state into `optimizer`. Its hyperparameters stay those of the present configuration."""
    entries = load_file(checkpoint.folder / "optimizer.safetensors") | checkpoint.state()["optimizer"]
    index = {name: i for i, name in enumerate(_parameter_names(model, optimizer))}
    state: dict[int, dict[str, Any]] = {}
    for name, value in entries.items():
        parameter, *keys = name.split("/")
        at = state.setdefault(index[parameter], {})
        for key in keys[:-1]:
            at = at.setdefault(key, {})
        at[keys[-1]] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names in the order in which `optimizer.state_dict()` numbers the parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _flat(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """bitsandbytes nests its state one level down."""
    for key, value in entries.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}/{below}", leaf) for below, leaf in _flat(value))
        else:
            yield key, value


def follow_umask(folder: Path) -> None:
    """Give the weights in `folder` the mode that new files get; safetensors lets their owner alone read them."""
    probe = folder / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never half of it, also after a power cut."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    _sync(beside)
    beside.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
