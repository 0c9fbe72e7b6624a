"""What the model reads and predicts of an example, by task and stage, and how examples are laid side by side."""

from __future__ import annotations

from functools import partial

from tunecli.assembly.data import Data, encoding_of, sentinels_for
from tunecli.config.run import RunConfig, micro_batch_tokens
from tunecli.config.stage import (
    ClassifyConfig,
    Objective,
    PretrainConfig,
    RewardConfig,
    Task,
    VerbalizeConfig,
)
from tunecli.data.batching import Batching
from tunecli.data.candidates import Candidates
from tunecli.data.corruption import PrefixLM, SpanCorruption, end_of_text
from tunecli.data.labels import class_weights
from tunecli.data.masking import MaskedTokens, mask_of, ordinary_tokens
from tunecli.data.reading import EachWord, Place, Reader, SourceTarget, WholeAnswers, WholeText, next_tokens
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.verbalizing import Verbalizer
from tunecli.models.policy import Policy
from tunecli.models.self_test import Wrapped
from tunecli.models.seq2seq_policy import Seq2SeqPolicy, shifted


def batching_of(
    config: RunConfig, data: Data, policy: Wrapped, *, num_processes: int, process_index: int
) -> Batching:
    read = _reader(config, data, policy)
    return Batching(
        num_processes=num_processes,
        process_index=process_index,
        rows=config.train.micro_batch_size,
        tokens=micro_batch_tokens(config),
        packed=policy.packed,
        pad_token_id=data.tokenizer.pad_token_id or 0,
        read=read,
        copies=read.copies if isinstance(read, Candidates) else 1,
    )


def _reader(config: RunConfig, data: Data, policy: Wrapped) -> Reader:
    """What the model is to predict of an example."""
    stage = config.stage
    if isinstance(stage, PretrainConfig) and stage.task is Task.masked_lm:
        return MaskedTokens(
            seed=config.seed,
            probability=stage.mask_probability,
            mask=mask_of(data.tokenizer),
            vocabulary=ordinary_tokens(data.tokenizer),
        )
    if isinstance(stage, VerbalizeConfig):
        return _candidates(config, data)
    if isinstance(policy, Seq2SeqPolicy):
        return _two_sides(config, data, policy)
    if data.labels is None or isinstance(policy, Policy):
        return next_tokens
    token_types = getattr(policy.lm.config, "type_vocab_size", 0) > 1
    if isinstance(stage, RewardConfig):
        return WholeAnswers(place=Place.last if policy.looks_at_last else Place.first, token_types=token_types)
    if not isinstance(stage, ClassifyConfig):
        return EachWord(labels=data.labels, token_types=token_types)
    return WholeText(
        labels=data.labels,
        problem=stage.problem_type,
        place=Place.last if policy.looks_at_last else Place.first,
        token_types=token_types,
        class_weights=class_weights(stage, data.train),
    )


def _two_sides(config: RunConfig, data: Data, policy: Seq2SeqPolicy) -> Reader:
    """What an encoder-decoder reads, and what it is to write."""
    stage, shift = config.stage, partial(shifted, policy.lm)
    if not isinstance(stage, PretrainConfig):
        return SourceTarget(shift=shift)
    eos = end_of_text(data.tokenizer)
    if stage.objective is Objective.prefix_lm:
        return PrefixLM(seed=config.seed, eos=eos, shift=shift)
    return SpanCorruption(
        seed=config.seed,
        sentinels=sentinels_for(config, data.tokenizer),
        eos=eos,
        shift=shift,
        density=stage.mask_probability,
        mean_span=stage.mean_span_length,
    )


def _candidates(config: RunConfig, data: Data) -> Candidates:
    assert data.labels is not None
    verbalizer = Verbalizer(TextEncoder(data.tokenizer), encoding_of(config, data.tokenizer))
    labels = {label for labels in data.labels.by_task.values() for label in labels}
    words = [{label: verbalizer.ids(i, label) for label in labels} for i in range(len(verbalizer.templates))]
    masked = config.stage.task is Task.masked_lm
    return Candidates(labels=data.labels, words=words, mask=mask_of(data.tokenizer) if masked else None)
