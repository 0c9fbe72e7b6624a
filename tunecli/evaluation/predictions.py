"""What a model says of many examples, over all ranks: logits of a classifier or tagger, scores of candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from tunecli.data.batching import Batching, Examples, microbatches
from tunecli.data.encoded import Encoded
from tunecli.data.reading import Reading
from tunecli.engine.batch import Batch
from tunecli.evaluation.evaluator import Abandoned

TOGETHER = 64
"""Examples that are computed between two looks at whether to go on."""


@torch.no_grad()
def predict(
    model: nn.Module,
    examples: Examples,
    batching: Batching,
    accelerator: Accelerator,
    proceed: Callable[[float], bool] = lambda done: True,
    outputs: Callable[[nn.Module, Batch], Tensor] = lambda model, batch: model(batch),
) -> list[np.ndarray]:
    """[units, labels] fp32 logits of each example, on every rank; or what else `outputs` gives of its
    units, or of its candidates where there are some.

    Raises:
        Abandoned: `proceed`, which is told the share done and asked by all ranks together, said no.
    """
    found: dict[int, np.ndarray] = {}
    order = sorted(range(len(examples)), key=lambda i: -int(examples.lengths[i]))  # those of a length need no padding
    for start in range(0, len(order), TOGETHER):
        if not proceed(start / len(order)):
            raise Abandoned
        for batch in microbatches(examples, order[start : start + TOGETHER], batching):
            batch = batch.to(accelerator.device)
            logits = outputs(model, batch).cpu().numpy()
            sizes = kept_counts(examples, batch, batching)
            found.update(zip(batch.rows, np.split(logits, np.cumsum(sizes)[:-1]), strict=False))
    if accelerator.num_processes > 1:
        found = dict(gather_object(list(found.items())))
    return [found[i] for i in range(len(examples))]


def kept_counts(examples: Examples, batch: Batch, batching: Batching) -> np.ndarray:
    """[rows] int64: how many positions, or candidates, of each row of `batch` count."""
    sizes = [_size(batching.read(examples[row], _source(examples, row), row)) for row in batch.rows]
    return np.array(sizes, np.int64)


def of_words(logits: np.ndarray, example: Encoded) -> np.ndarray:
    """[words, labels]: the rows of `logits` that belong to the first trained token of each word."""
    lengths = example.spans[:, 1] - example.spans[:, 0]
    return logits[np.cumsum(lengths) - lengths]


def whole_texts(examples: Examples, rows: Sequence[int]) -> list[list[int]]:
    """The windows of each text, which follow each other."""
    return [list(windows) for _, windows in groupby(rows, key=examples.origin)]


def _size(reading: Reading) -> int:
    return len(reading.kept) if reading.answers is None else len(reading.answers.questions)


def _source(examples: Examples, row: int) -> str:
    return examples.names[int(examples.sources[row])]
