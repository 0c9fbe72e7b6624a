"""Whether sequences that begin alike may be read as a tree (`tunecli.models.attention`), found out by trying.

Two random ones go through the model whole, then with what they share read once. How far the second may differ is
measured too: it must stay well below what the endings would be off if they did not see the beginning.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from tunecli.engine.batch import Batch
from tunecli.models.classifier import Classifier
from tunecli.models.policy import Policy
from tunecli.models.self_test import EXACT, SHARE_OF_LEAK

SHARED, ENDINGS = 7, (5, 9)


@torch.no_grad()
def shares_beginnings(policy: Policy | Classifier) -> str:
    """Why `policy`, which reads packed rows, cannot read trees; empty if it can."""
    lm = policy.lm
    training = lm.training
    lm.eval()
    try:
        whole, tree = _whole(policy), _tree(policy)
        alone = policy(whole)
        error = _distance(policy(tree), alone)
        leak = _distance(policy(replace(tree, parents=None)), alone)
        exact = error <= max(EXACT, SHARE_OF_LEAK * leak)
        return "" if exact else f"outputs differ by {error:.1e} (without the beginning: {leak:.1e})"
    except Exception as error:  # noqa: BLE001 - whatever an unknown architecture raises here means: not this way
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        lm.train(training)


def _distance(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().mean().item()


def _ids(policy: Policy | Classifier) -> list[Tensor]:
    """The beginning and the endings."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = policy.lm.get_input_embeddings().weight.shape[0]
    return [torch.randint(vocabulary, (length,), generator=generator) for length in (SHARED, *ENDINGS)]


def _whole(policy: Policy | Classifier) -> Batch:
    beginning, *endings = _ids(policy)
    sequences = [torch.cat([beginning, ending]) for ending in endings]
    positions = [torch.arange(len(sequence)) for sequence in sequences]
    first = len(sequences[0])
    kept = [places[SHARED:] + start for places, start in zip(positions, (0, first), strict=True)]
    return _batch(policy, sequences, positions, kept, None)


def _tree(policy: Policy | Classifier) -> Batch:
    beginning, *endings = _ids(policy)
    positions = [torch.arange(SHARED), *(torch.arange(SHARED, SHARED + length) for length in ENDINGS)]
    starts = torch.tensor([SHARED, *ENDINGS]).cumsum(0).tolist()
    kept = [torch.arange(start, end) for start, end in pairwise(starts)]
    return _batch(policy, [beginning, *endings], positions, kept, torch.tensor([-1, 0, 0]))


def _batch(
    policy: Policy | Classifier,
    sequences: list[Tensor],
    positions: list[Tensor],
    kept: list[Tensor],
    parents: Tensor | None,
) -> Batch:
    """What each ending gives: at all of its tokens, or at the last one for a whole text."""
    if isinstance(policy, Classifier):
        kept = [places[-1:] for places in kept] if policy.whole else kept
    targets = torch.cat([torch.zeros_like(places) for places in kept])  # any will do; a classifier reads none
    edges = torch.tensor([0, *map(len, sequences)]).cumsum(0)
    return Batch(
        input_ids=torch.cat(sequences)[None],
        position_ids=torch.cat(positions)[None],
        cu_seq_lens=edges.to(torch.int32),
        attention_mask=None,
        parents=parents,
        kept=torch.cat(kept),
        targets=targets,
        weights=torch.ones(len(targets)),
        sources=torch.zeros(len(targets), dtype=torch.int64),
        num_tokens=len(torch.cat(sequences)),
        rows=(0, 1),
    ).to(policy.lm.device)
