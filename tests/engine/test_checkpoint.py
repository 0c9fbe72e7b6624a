"""A checkpoint is there completely or not at all, and what it restores continues bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tunecli.config.train import Optimizer, TrainConfig
from tunecli.engine.checkpoint import (
    MANIFEST,
    complete_checkpoints,
    restore_optimizer,
    restore_parameters,
    save_checkpoint,
)
from tunecli.engine.optim import build_optimizer, parameter_groups


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 64))


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(root: Path, step: int, net: nn.Module, optimizer: torch.optim.Optimizer, keep_last: int = 2) -> Path:
    return save_checkpoint(root, step=step, model=net, optimizer=optimizer, state={"at": step}, keep_last=keep_last)


@pytest.mark.parametrize("name", list(Optimizer))
def test_every_optimizer_continues_bit_for_bit(tmp_path: Path, name: Optimizer) -> None:
    config = TrainConfig(optimizer=name, learning_rate=1e-2, weight_decay=0.1)
    whole = model()
    optimizer = build_optimizer(whole, config)
    steps(whole, optimizer, 0, 3)
    save(tmp_path, 3, whole, optimizer)
    steps(whole, optimizer, 3, 6)

    (checkpoint,) = complete_checkpoints(tmp_path)
    assert checkpoint.step == 3 and checkpoint.state()["at"] == 3
    resumed = model()
    optimizer = build_optimizer(resumed, config)
    restore_parameters(checkpoint, resumed)
    restore_optimizer(checkpoint, resumed, optimizer)
    steps(resumed, optimizer, 3, 6)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_incomplete_ones_are_passed_over_and_old_ones_deleted(tmp_path: Path) -> None:
    net = model()
    optimizer = build_optimizer(net, TrainConfig())
    for step in (1, 2, 3, 4):
        save(tmp_path, step, net, optimizer)
    assert [c.step for c in complete_checkpoints(tmp_path)] == [3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]
    (tmp_path / "step_00000004" / MANIFEST).unlink()  # killed before the manifest
    assert [c.step for c in complete_checkpoints(tmp_path)] == [3]
    weights = tmp_path / "step_00000003" / "trainable.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])  # a disk that lost the end
    assert complete_checkpoints(tmp_path) == []
    (tmp_path / ".step_00000005.partial").mkdir()  # killed while writing
    save(tmp_path, 5, net, optimizer)
    assert [c.step for c in complete_checkpoints(tmp_path)] == [5]


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    net = model()
    save(tmp_path, 1, net, build_optimizer(net, TrainConfig()))
    (checkpoint,) = complete_checkpoints(tmp_path)
    with pytest.raises(ValueError, match="other trained parameters"):
        restore_parameters(checkpoint, nn.Linear(3, 3))


def test_weight_decay_spares_norms_and_biases() -> None:
    decayed, spared = parameter_groups(model().named_parameters(), 0.1)
    assert decayed["weight_decay"] == 0.1 and [p.ndim for p in decayed["params"]] == [2, 2]
    assert spared["weight_decay"] == 0.0 and [p.ndim for p in spared["params"]] == [1, 1, 1, 1]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    net = model()
    folder = save(tmp_path, 1, net, build_optimizer(net, TrainConfig()))
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
