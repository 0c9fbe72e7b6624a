"""Prompts with the answers to other prompts, as KTO's estimate of the divergence takes them (Ethayarajh et al., 2024,
section 4.1): each of a global batch with the answers of the next, the last with those of the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tunecli.data.batching import Examples
from tunecli.data.encoded import Encoded
from tunecli.data.feed import Window
from tunecli.data.reading import sides_of


def mismatched(examples: Examples, indices: Sequence[int], *, two_sides: bool) -> Window:
    """One example for each of `indices`; none where there is one only, which is no other's.

    Args:
        two_sides: for an encoder-decoder.
    """
    if len(indices) < 2:
        return Window(examples.names)
    put = _behind_source if two_sides else _behind_prompt
    others = [*indices[1:], indices[0]]
    return Window(
        examples.names,
        [put(examples[own], examples[other]) for own, other in zip(indices, others, strict=True)],
        [int(examples.sources[i]) for i in indices],
        [examples.origin(i) for i in indices],
        [int(examples.adapters[i]) for i in indices],
    )


def _behind_prompt(asked: Encoded, answered: Encoded) -> Encoded:
    """The answers of `answered`, each behind the prompt of `asked`."""
    prompt = asked.input_ids[: int(asked.spans[0, 0])]
    pieces, spans, parts, length = [], [], [], 0
    for side in sides_of(answered):
        own = [span for span in answered.spans.tolist() if side.start <= span[0] < side.stop]
        start = own[0][0]
        moved = length + len(prompt) - start
        pieces += [prompt, answered.input_ids[start : side.stop]]
        spans += [[first + moved, last + moved] for first, last in own]
        length += len(prompt) + side.stop - start
        parts.append(length)
    return Encoded(torch.cat(pieces), np.array(spans), parts=tuple(parts[:-1]), numbers=answered.numbers)


def _behind_source(asked: Encoded, answered: Encoded) -> Encoded:
    source = asked.input_ids[: asked.parts[0]]
    targets = [answered.input_ids[side] for side in sides_of(answered)[1::2]]
    pieces = [piece for target in targets for piece in (source, target)]
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    spans = [[end - len(target), end] for end, target in zip(ends[1::2], targets, strict=True)]
    return Encoded(torch.cat(pieces), np.array(spans), parts=tuple(ends[:-1]), numbers=answered.numbers)
