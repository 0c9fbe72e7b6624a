"""Whether packed rows and the chunked head are exact for this very model, found out by trying, at load.

Two short random sequences go through the model alone, in its stock attention; then packed into one row through
`Policy`. How far the second may differ is measured too: it must stay well below what a leak across the boundary does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.model import Attention
from tunecli.engine.batch import Batch
from tunecli.models.policy import Head, Policy, use_packed_attention
from tunecli.ops.logprobs import token_logprobs

LENGTHS = (7, 12)
EXACT = 1e-5
"""A mean difference of log-probabilities below this is rounding, whatever a leak would do."""
SHARE_OF_LEAK = 0.1

# Configuration fields that change logits after the output embedding. On random weights their effect can drown.
LOGIT_FIELDS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "output_multiplier_scale",
    "lm_head_multiplier",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    policy: Policy
    note: str
    """for the user; empty where the fast way is exact"""


@torch.no_grad()
def choose_policy(lm: PreTrainedModel, attention: Attention) -> Verdict:
    """Wrap `lm` in the fastest policy that is exact for it.

    Raises:
        UserError: `model.attention=packed` was asked for and is not exact, or no way is.
    """
    training = lm.training
    lm.eval()
    stock = lm.config._attn_implementation
    alone, batches = _reference(lm)
    failure = ""
    if attention is not Attention.padded:
        policy, failure = _first_exact(_packed_policies(lm), batches, alone)
        if policy is not None:
            lm.train(training)
            return Verdict(policy, "")
        if attention is Attention.packed:
            raise UserError(
                f"packed rows are not exact: {failure}", where="model.attention", fix="model.attention=auto"
            )
        lm.set_attn_implementation(stock)
    policy, padded_failure = _first_exact(_padded_policies(lm), batches, alone)
    lm.train(training)
    if policy is None:
        raise UserError(
            f"{type(lm).__name__} gives other log-probabilities in a batch than alone: {padded_failure}",
            where="model.path",
            fix="this model cannot be trained here; please report it",
        )
    return Verdict(policy, f"padding-free rows are off, batches are padded by length: {failure or 'as asked'}")


def _packed_policies(lm: PreTrainedModel) -> Iterator[Policy]:
    use_packed_attention(lm)
    yield from (Policy(lm, packed=True, head=head) for head in _heads(lm))


def _padded_policies(lm: PreTrainedModel) -> Iterator[Policy]:
    yield from (Policy(lm, packed=False, head=head) for head in _heads(lm))


def _heads(lm: PreTrainedModel) -> list[Head]:
    text = lm.config.get_text_config()
    scaled = any(getattr(text, name, None) not in (None, 1, 1.0) for name in LOGIT_FIELDS)
    return [Head.logits] if scaled else [Head.chunked, Head.logits]


def _reference(lm: PreTrainedModel) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of both sequences, each alone through the stock model; and the sequences."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = lm.get_input_embeddings().weight.shape[0]
    sequences = [torch.randint(vocabulary, (length,), generator=generator).to(lm.device) for length in LENGTHS]
    alone = [token_logprobs(lm(input_ids=ids[None], use_cache=False).logits[0, :-1], ids[1:]) for ids in sequences]
    return torch.cat(alone), sequences


def _first_exact(policies: Iterator[Policy], sequences: list[Tensor], alone: Tensor) -> tuple[Policy | None, str]:
    failure = ""
    try:
        for policy in policies:
            error, leak = _errors(policy, sequences, alone)
            if error <= max(EXACT, SHARE_OF_LEAK * leak):
                return policy, ""
            failure = f"log-probabilities differ by {error:.1e} (a leak: {leak:.1e})"
    except Exception as error:  # noqa: BLE001 - whatever an unknown architecture raises here means: not this way
        failure = f"{type(error).__name__}: {str(error)[:200]}"
    return None, failure


def _errors(policy: Policy, sequences: list[Tensor], alone: Tensor) -> tuple[float, float]:
    """Mean difference from `alone`, and what it would be if the second sequence saw the first."""
    batch = (_pack if policy.packed else _pad)(sequences)
    error = (policy(batch) - alone).abs().mean().item()
    if policy.packed:
        assert batch.cu_seq_lens is not None
        joined = replace(batch, cu_seq_lens=batch.cu_seq_lens[[0, -1]])
    else:
        joined = replace(batch, position_ids=batch.position_ids + 1)
    leak = (policy(joined) - alone).abs()[LENGTHS[0] - 1 :].mean().item()
    return error, leak


def _pack(sequences: list[Tensor]) -> Batch:
    first, second = LENGTHS
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).to(sequences[0].device)
    kept = torch.cat([torch.arange(first - 1), first + torch.arange(second - 1)])
    return _batch(
        torch.cat(sequences)[None],
        positions[None],
        kept,
        sequences,
        cu_seq_lens=torch.tensor([0, first, first + second], dtype=torch.int32),
    )


def _pad(sequences: list[Tensor]) -> Batch:
    first, width = LENGTHS
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.ones_like(ids)
    mask[0, first:] = 0
    positions = torch.arange(width, device=ids.device).expand(2, -1)
    kept = torch.cat([torch.arange(first - 1), width + torch.arange(width - 1)])
    return _batch(ids, positions, kept, sequences, attention_mask=mask)


def _batch(
    input_ids: Tensor,
    position_ids: Tensor,
    kept: Tensor,
    sequences: list[Tensor],
    *,
    cu_seq_lens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Batch:
    return Batch(
        input_ids=input_ids,
        position_ids=position_ids,
        cu_seq_lens=cu_seq_lens,
        attention_mask=attention_mask,
        kept=kept,
        targets=torch.cat([ids[1:] for ids in sequences]),
        weights=torch.ones(len(kept)),
        sources=torch.zeros(len(kept), dtype=torch.int64),
        num_tokens=sum(LENGTHS),
        rows=(0, 1),
    ).to(input_ids.device)
