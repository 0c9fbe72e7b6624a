"""What the reference says of answers: asked once for all rows, and kept in a file of the run, or in each step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tunecli.data.batching import Batching, Examples
from tunecli.engine.batch import Batch
from tunecli.evaluation.predictions import predict
from tunecli.peft_methods.reference import Reference

FOLDER = "reference"
"""In a run directory: log-probabilities of the reference."""
KEY = "examples"
MANY = 2000
"""Rows that take long enough to say how far it is."""


@dataclass(slots=True)
class _Progress:
    """Says each tenth that is done."""

    note: Callable[[str], None]
    said: int = 0

    def __call__(self, done: float) -> bool:
        if int(10 * done) > self.said:
            self.said = int(10 * done)
            self.note(f"the reference: {self.said}0 % asked")
        return True


@dataclass(slots=True, kw_only=True)
class ReferenceScores:
    reference: Reference | None
    """None: everything that will be asked for is known"""
    outputs: Callable[[nn.Module, Batch], Tensor]
    """[answers] log-probabilities of the answers in a batch"""
    batching: Batching
    accelerator: Accelerator
    train: Examples | None
    """rows that are asked about once; None: in each step"""
    validation: Examples | None
    """asked about once in either case"""
    run_dir: Path | None
    """None: nothing is kept"""
    note: Callable[[str], None]
    _known: dict[str, list[np.ndarray]] = field(default_factory=dict, init=False)
    """train | validation -> [answers] of each example"""

    def ask(self, model: nn.Module, batch: Batch) -> Tensor:
        """[answers] on the batch's device"""
        assert self.reference is not None
        with self.reference.on():
            return self.outputs(model, batch)

    def of(
        self, model: nn.Module, examples: Examples, proceed: Callable[[float], bool] = lambda done: True
    ) -> list[np.ndarray]:
        """[answers] of each example, on every rank"""
        assert self.reference is not None
        with self.reference.on():
            return predict(model, examples, self.batching, self.accelerator, proceed, self.outputs)

    def of_validation(self, model: nn.Module) -> list[np.ndarray]:
        assert self.validation is not None
        return self._asked_once(model, "validation", self.validation)

    def put_into(self, model: nn.Module, batch: Batch) -> Batch:
        """`batch` with what is known of its training rows."""
        if self.train is None:
            return batch
        known = self._asked_once(model, "train", self.train)
        assert batch.questions is not None
        answers = [known[row] for row in batch.rows] or [np.zeros(len(batch.questions), np.float32)]  # it fills up
        return replace(batch, reference=torch.from_numpy(np.concatenate(answers)))

    def ask_everything(self, model: nn.Module) -> None:
        """So that `reference`, which may be as large as the model, can be let go."""
        for name, examples in {"train": self.train, "validation": self.validation}.items():
            if examples is not None:
                self._asked_once(model, name, examples)
        self.reference = None

    def _asked_once(self, model: nn.Module, name: str, examples: Examples) -> list[np.ndarray]:
        if name in self._known:
            return self._known[name]
        file = None if self.run_dir is None else self.run_dir / FOLDER / f"{name}.safetensors"
        key = _content(examples) if file is not None else ""
        found = None if file is None else _load(file, key)
        self.accelerator.wait_for_everyone()  # all have looked before one of them writes
        if found is None:
            if name == "train":
                self.note(f"the reference is asked about {len(examples)} rows, once")
            found = self.of(model, examples, _Progress(self.note) if len(examples) >= MANY else lambda done: True)
            if file is not None and self.accelerator.is_main_process:
                _save(file, key, found)
        self._known[name] = found
        return found


def _content(examples: Examples) -> str:
    """Of all tokens, and of which of them are answers."""
    digest = hashlib.blake2b(digest_size=16)
    for i in range(len(examples)):
        example = examples[i]
        digest.update(example.input_ids.numpy().tobytes())
        digest.update(np.asarray(example.spans, np.int64).tobytes())
    return digest.hexdigest()


def _load(file: Path, key: str) -> list[np.ndarray] | None:
    if not file.is_file():
        return None
    with safe_open(file, "pt") as stored:
        if stored.metadata()[KEY] != key:
            return None
        values, sizes = stored.get_tensor("logprobs").numpy(), stored.get_tensor("answers").numpy()
    return np.split(values, np.cumsum(sizes)[:-1])


def _save(file: Path, key: str, found: list[np.ndarray]) -> None:
    """All of it or nothing, whenever the run is killed."""
    file.parent.mkdir(exist_ok=True)
    sizes = torch.tensor([len(each) for each in found])
    values = torch.from_numpy(np.concatenate(found))
    beside = file.with_name(f".{file.name}.partial")
    save_file({"logprobs": values, "answers": sizes}, beside, {KEY: key})
    beside.replace(file)
