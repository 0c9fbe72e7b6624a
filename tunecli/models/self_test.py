"""Whether packed rows and our way to a head are exact for this very model, found out by trying, at load.

Two short random sequences go through the model alone, in its stock attention; then packed into one row through
`Policy`. How far the second may differ is measured too: it must stay well below what a leak across the boundary does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.model import Attention
from tunecli.config.stage import Task
from tunecli.engine.batch import Batch
from tunecli.models.classifier import Classifier
from tunecli.models.masked import MaskedLM, heads
from tunecli.models.policy import Head, Policy, use_packed_attention, values_of
from tunecli.models.seq2seq_policy import Seq2SeqPolicy, shifted
from tunecli.models.value_model import ValueModel
from tunecli.ops.logprobs import token_logprobs

LENGTHS = (7, 12)
TARGET_LENGTHS = (5, 9)
"""Of the targets of encoder-decoders, whose sources have LENGTHS."""
EXACT = 1e-5
"""A mean difference of log-probabilities below this is rounding, whatever a leak would do."""
SHARE_OF_LEAK = 0.1
_HALF_AND_WHOLE = [torch.tensor([length // 2, length - 1]) for length in LENGTHS]
"""Positions of each sequence whose values are compared: a model that looks ahead differs at the first."""

# Configuration fields that change logits after the output embedding. On random weights their effect can drown.
LOGIT_FIELDS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "output_multiplier_scale",
    "lm_head_multiplier",
)


LanguageModel = Policy | Seq2SeqPolicy
Wrapped = LanguageModel | Classifier | MaskedLM
Way = TypeVar("Way", bound=Wrapped | ValueModel)


@dataclass(frozen=True, slots=True)
class Verdict:
    policy: Wrapped
    note: str
    """for the user; empty where the fast way is exact"""


@torch.no_grad()
def choose_policy(lm: PreTrainedModel, attention: Attention, task: Task = Task.causal_lm) -> Verdict:
    """Wrap `lm` in what is fastest of all that is exact for it: in a `Classifier` if `task` has labels, in a
    `Seq2SeqPolicy` if it is for encoder-decoders, in a `MaskedLM` or else in a `Policy`.

    Raises:
        UserError: `model.attention=packed` was asked for and is not exact, or no way is.
    """
    training = lm.training
    lm.eval()
    if task is Task.seq2seq_lm:
        verdict = Verdict(_seq2seq(lm, attention), "")
    else:
        ways = _classifiers if task.has_labels else _masked_lms if task is Task.masked_lm else _policies
        verdict = Verdict(*_fastest(lm, attention, partial(ways, lm, task), *_reference(lm, task)))
    lm.train(training)
    return verdict


@torch.no_grad()
def choose_value_model(lm: PreTrainedModel, attention: Attention) -> ValueModel:
    """Wrap a classifier with one logit, whose head `score` is fp32, in the fastest `ValueModel` that says of the
    beginning of a text what it would say without the rest.

    Raises:
        UserError: `model.attention=packed` was asked for and is not exact, or no way is: it looks ahead, say.
    """
    training = lm.training
    lm.eval()
    found, _ = _fastest(lm, attention, partial(_value_models, lm), *_reference_values(lm))
    lm.train(training)
    return found


def _fastest(
    lm: PreTrainedModel,
    attention: Attention,
    ways: Callable[..., Iterator[Way]],
    alone: Tensor,
    batches: list[Tensor],
) -> tuple[Way, str]:
    """The first of the `ways` that is exact, packed ones before padded ones; and a note for the user."""
    stock = lm.config._attn_implementation
    failure = ""
    if attention is not Attention.padded:
        policy, failure = _first_exact(ways(packed=True), batches, alone)
        if policy is not None:
            return policy, ""
        if attention is Attention.packed:
            raise UserError(
                f"packed rows are not exact: {failure}", where="model.attention", fix="model.attention=auto"
            )
        lm.set_attn_implementation(stock)
    policy, padded_failure = _first_exact(ways(packed=False), batches, alone)
    if policy is None:
        raise UserError(
            f"{type(lm).__name__} gives other outputs in a batch than alone: {padded_failure}",
            where="model.path",
            fix="this model cannot be trained here; please report it",
        )
    return policy, f"padding-free rows are off, batches are padded by length: {failure or 'as asked'}"


def _seq2seq(lm: PreTrainedModel, attention: Attention) -> Seq2SeqPolicy:
    """Raises UserError: padding changes what the model says, or packed rows were asked for."""
    if attention is Attention.packed:
        raise UserError("encoder-decoders read padded rows", where="model.attention", fix="model.attention=auto")
    alone, batch = _source_target_reference(lm)
    policy = Seq2SeqPolicy(lm, head=Head.logits)
    found = policy(batch)
    unmasked = replace(batch, attention_mask=torch.ones_like(batch.input_ids))
    error, leak = _distance(found, alone), _distance(policy(unmasked), alone)
    if error > max(EXACT, SHARE_OF_LEAK * leak):
        raise UserError(
            f"{type(lm).__name__} gives other outputs in a batch than alone: they differ by {error:.1e}",
            where="model.path",
            fix="this model cannot be trained here; please report it",
        )
    chunked = Seq2SeqPolicy(lm, head=Head.chunked)
    try:
        same = _distance(chunked(batch), found) <= EXACT
    except (AttributeError, TypeError, ValueError):  # parts that are called in another way than most
        same = False
    return chunked if same else policy


def _distance(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().mean().item()


def _source_target_reference(lm: PreTrainedModel) -> tuple[Tensor, Batch]:
    """The log-probabilities of two random targets, each given its source alone through the stock model; and all of
    it as one padded batch."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = lm.get_input_embeddings().weight.shape[0]

    def of_lengths(lengths: tuple[int, ...]) -> list[Tensor]:
        found = [torch.randint(vocabulary, (length,), generator=generator) for length in lengths]
        return [_with_end(ids, lm.config).to(lm.device) for ids in found]

    sources, targets = of_lengths(LENGTHS), of_lengths(TARGET_LENGTHS)
    read = [shifted(lm, target) for target in targets]
    alone = []
    for source, target, ids in zip(sources, targets, read, strict=True):
        logits = lm(input_ids=source[None], decoder_input_ids=ids[None], use_cache=False).logits[0]
        alone.append(token_logprobs(logits, target))
    pad = torch.nn.utils.rnn.pad_sequence
    width = max(TARGET_LENGTHS)
    kept = torch.cat([row * width + torch.arange(length) for row, length in enumerate(TARGET_LENGTHS)])
    batch = Batch(
        input_ids=pad(sources, batch_first=True),
        position_ids=torch.arange(max(LENGTHS)).expand(2, -1),
        cu_seq_lens=None,
        attention_mask=pad([torch.ones_like(ids) for ids in sources], batch_first=True),
        kept=kept,
        targets=torch.cat(targets),
        weights=torch.ones(len(kept)),
        sources=torch.zeros(len(kept), dtype=torch.int64),
        decoder_input_ids=pad(read, batch_first=True),
        decoder_attention_mask=pad([torch.ones_like(ids) for ids in read], batch_first=True),
        num_tokens=sum(LENGTHS) + sum(TARGET_LENGTHS),
        rows=(0, 1),
    )
    return torch.cat(alone), batch.to(lm.device)


def _policies(lm: PreTrainedModel, task: Task, *, packed: bool) -> Iterator[Policy]:
    if packed:
        use_packed_attention(lm)
    yield from (Policy(lm, packed=packed, head=head) for head in _heads(lm))


def _classifiers(lm: PreTrainedModel, task: Task, *, packed: bool) -> Iterator[Classifier]:
    whole = task is Task.sequence_classification
    if not packed:
        yield Classifier(lm, packed=False, whole=whole)
        return
    use_packed_attention(lm)
    yield Classifier(lm, packed=True, whole=whole)
    if lm.config.pad_token_id is not None:
        yield Classifier(lm, packed=True, whole=whole, first_position=lm.config.pad_token_id + 1)


def _masked_lms(lm: PreTrainedModel, task: Task, *, packed: bool) -> Iterator[MaskedLM]:
    if not packed:
        yield MaskedLM(lm, packed=False)
        return
    use_packed_attention(lm)
    for head in heads(lm):
        yield MaskedLM(lm, packed=True, head=head)
        if lm.config.pad_token_id is not None:
            yield MaskedLM(lm, packed=True, head=head, first_position=lm.config.pad_token_id + 1)


def _value_models(lm: PreTrainedModel, *, packed: bool) -> Iterator[ValueModel]:
    if packed:
        use_packed_attention(lm)
    yield ValueModel(lm, packed=packed)


def _heads(lm: PreTrainedModel) -> list[Head]:
    text = lm.config.get_text_config()
    scaled = any(getattr(text, name, None) not in (None, 1, 1.0) for name in LOGIT_FIELDS)
    return [Head.logits] if scaled else [Head.chunked, Head.logits]


def _reference(lm: PreTrainedModel, task: Task) -> tuple[Tensor, list[Tensor]]:
    """What each of two sequences gives alone through the stock model, log-probabilities or logits of labels; and the
    sequences."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = lm.get_input_embeddings().weight.shape[0]
    sequences = [torch.randint(vocabulary, (length,), generator=generator).to(lm.device) for length in LENGTHS]
    if task.has_labels:
        sequences = [_with_end(ids, lm.config) for ids in sequences]
        each = [lm(input_ids=ids[None]).logits.float() for ids in sequences]
        return torch.cat([logits.view(-1, logits.shape[-1]) for logits in each]), sequences
    if task is Task.masked_lm:  # how likely each next token is where the one before it stands: any target will do
        sequences = [_with_end(ids, lm.config) for ids in sequences]
        alone = [token_logprobs(lm(input_ids=ids[None]).logits[0, :-1], ids[1:]) for ids in sequences]
        return torch.cat(alone), sequences
    alone = [token_logprobs(lm(input_ids=ids[None], use_cache=False).logits[0, :-1], ids[1:]) for ids in sequences]
    return torch.cat(alone), sequences


def _reference_values(lm: PreTrainedModel) -> tuple[Tensor, list[Tensor]]:
    """Values of the first half and of the whole of each of two sequences, each alone; and the sequences."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = lm.get_input_embeddings().weight.shape[0]
    sequences = [torch.randint(vocabulary, (length,), generator=generator).to(lm.device) for length in LENGTHS]
    sequences = [_with_end(ids, lm.config) for ids in sequences]
    texts = [ids[: int(last) + 1] for ids, places in zip(sequences, _HALF_AND_WHOLE, strict=True) for last in places]
    states = [lm.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0, -1:] for ids in texts]
    return torch.cat([values_of(lm.score, each) for each in states]), sequences


def _with_end(ids: Tensor, config: PretrainedConfig) -> Tensor:
    """`ids` without padding and end-of-text tokens, but one at the end where encoder-decoders look for it."""
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    special = [token for token in (end, config.pad_token_id) if token is not None]
    usual = next(token for token in range(1, 9) if token not in special)
    ids = ids.masked_fill(torch.isin(ids, ids.new_tensor(special)), usual)
    return torch.cat([ids[:-1], ids.new_tensor([end])]) if config.is_encoder_decoder else ids


def _first_exact(policies: Iterator[Way], sequences: list[Tensor], alone: Tensor) -> tuple[Way | None, str]:
    failure = ""
    try:
        for policy in policies:
            error, leak = _errors(policy, sequences, alone)
            if error <= max(EXACT, SHARE_OF_LEAK * leak):
                return policy, ""
            failure = f"outputs differ by {error:.1e} (a leak: {leak:.1e})"
    except Exception as error:  # noqa: BLE001 - whatever an unknown architecture raises here means: not this way
        failure = f"{type(error).__name__}: {str(error)[:200]}"
    return None, failure


def _errors(policy: Wrapped | ValueModel, sequences: list[Tensor], alone: Tensor) -> tuple[float, float]:
    """Mean difference from `alone`, and what it would be if the second sequence saw the first."""
    kept = _kept(policy)
    batch = _pack(sequences, kept) if policy.packed else _pad(sequences, kept, policy.lm.config.pad_token_id or 0)
    error = (policy(batch) - alone).abs().mean().item()
    if policy.packed:
        assert batch.cu_seq_lens is not None
        joined = replace(batch, cu_seq_lens=batch.cu_seq_lens[[0, -1]])
    elif isinstance(policy, Policy | ValueModel):
        joined = replace(batch, position_ids=batch.position_ids + 1)
    else:  # it counts positions itself
        joined = replace(batch, input_ids=batch.input_ids.roll(1, 1))
    leak = (policy(joined) - alone).abs()[len(kept[0]) :].mean().item()
    return error, leak


def _kept(policy: Wrapped | ValueModel) -> list[Tensor]:
    """The positions of each sequence whose outputs are compared."""
    if isinstance(policy, ValueModel):
        return _HALF_AND_WHOLE
    if not isinstance(policy, Classifier):
        return [torch.arange(length - 1) for length in LENGTHS]
    if policy.whole:
        return [torch.tensor([length - 1 if policy.looks_at_last else 0]) for length in LENGTHS]
    return [torch.arange(length) for length in LENGTHS]


def _pack(sequences: list[Tensor], places: list[Tensor]) -> Batch:
    first, second = LENGTHS
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).to(sequences[0].device)
    kept = torch.cat([places[0], first + places[1]])
    return _batch(
        torch.cat(sequences)[None],
        positions[None],
        kept,
        sequences,
        cu_seq_lens=torch.tensor([0, first, first + second], dtype=torch.int32),
    )


def _pad(sequences: list[Tensor], places: list[Tensor], pad_token_id: int) -> Batch:
    first, width = LENGTHS
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad_token_id)
    mask = torch.ones_like(ids)
    mask[0, first:] = 0
    positions = torch.arange(width, device=ids.device).expand(2, -1)
    kept = torch.cat([places[0], width + places[1]])
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
        targets=torch.cat([ids[1:] for ids in sequences]),  # a classifier reads none
        weights=torch.ones(len(kept)),
        sources=torch.zeros(len(kept), dtype=torch.int64),
        num_tokens=sum(LENGTHS),
        rows=(0, 1),
    ).to(input_ids.device)
