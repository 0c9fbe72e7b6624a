"""What stage `ppo` can know before a weight is loaded; and its value model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tunecli.assembly.data import Data
from tunecli.assembly.rewards import check_rewards
from tunecli.config.errors import UserError
from tunecli.config.model import Attention, ModelConfig
from tunecli.config.paths import display as typed
from tunecli.config.run import RunConfig
from tunecli.config.stage import PPOConfig, ProblemType, Task, ValueFunction
from tunecli.config.train import Precision
from tunecli.config.virtual import virtual_ids
from tunecli.data.stop_tokens import stop_token_ids
from tunecli.engine.precision import DTYPES
from tunecli.models.load import Head, load_model, outline, shape_of, weight_dtype
from tunecli.models.positions import num_positions
from tunecli.models.self_test import choose_value_model
from tunecli.models.value_model import ValueModel
from tunecli.peft_methods.injection import activate, adapter_name, leave_casts_to_autocast
from tunecli.peft_methods.loading import base_task, head_of, require_one, stored_config, tokenizer_of
from tunecli.peft_methods.saving import load_adapter
from tunecli.peft_methods.source import Source, find_source

WHERE = "stage.value_path"
WHAT_IT_MAY_BE = "a run of stage=reward on the policy's base model, a decoder, or stage.value_path=null"


def check_ppo(config: RunConfig, data: Data) -> None:
    """Raises UserError: what `check_rewards` does; a stop token is none; policy or value model have too few
    positions; or the value model reads other tokens than the policy, or has no value for each token."""
    stage = config.stage
    if not isinstance(stage, PPOConfig):
        return
    check_rewards(config, data)
    stop_token_ids(stage.stop_tokens, data.tokenizer)
    if stage.task is Task.causal_lm:  # an encoder-decoder reads a prompt and writes an answer at places of their own
        _check_positions(data, stage, config.model, "stage.max_new_tokens")
    if stage.value is ValueFunction.model:
        source = _source(config, stage)
        _check_kind(config, source)
        _check_vocabulary(source, data.tokenizer)
        _check_positions(data, stage, source.base, WHERE)


def build_value_model(
    config: RunConfig, *, attention: Attention, precision: Precision, device: torch.device
) -> ValueModel:
    """What is trained is fp32: of a run that trained adapters these and the head, else all of it."""
    assert isinstance(config.stage, PPOConfig)
    source = _source(config, config.stage)
    head, is_new = _head(config, source)
    lm = load_model(
        replace(source.base, gradient_checkpointing=config.model.gradient_checkpointing, device_map=None),
        dtype=weight_dtype(source.base, DTYPES[precision], frozen=bool(source.adapters)),
        device=device,
        task=Task.sequence_classification,
        head=head,
    )
    lm.score.float()
    found = choose_value_model(lm, attention)
    if is_new:
        nn.init.zeros_(lm.score.weight)  # after the self-test, which it would pass whatever the rest does
    lm.requires_grad_(not source.adapters)
    lm.score.requires_grad_(is_new or not source.adapters)
    for folder in source.adapters:
        entry = source.run.peft[folder.name] if source.run is not None else None
        load_adapter(lm, folder, adapter_name(folder.name), trained=entry is None or not entry.freeze)
    activate(lm, [adapter_name(folder.name) for folder in source.adapters])
    if precision is not Precision.fp32:
        leave_casts_to_autocast(lm)
    return found


def described(config: RunConfig, model: ValueModel) -> str:
    assert isinstance(config.stage, PPOConfig)
    path = config.stage.value_path or config.model.path
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    named = typed(Path(path)) if Path(path).exists() else path
    return f"the value model starts from {named}, and {trained:,} of its parameters are trained"


def _source(config: RunConfig, stage: PPOConfig) -> Source:
    """Raises UserError: nothing is there, or adapters that cannot be trained on as they were."""
    if stage.value_path is None:
        return Source(config.model.path, config.model)
    try:
        source = find_source(stage.value_path)
        require_one(source)
    except UserError as error:
        raise UserError(f"{stage.value_path}: {error.what}", where=WHERE, fix=error.fix) from error
    if source.adapters and source.run is None:
        what = f"{stage.value_path} is an adapter without the run that trained it"
        raise UserError(what, where=WHERE, fix=f"tune merge {stage.value_path}, and name what that writes")
    if source.run is not None and (named := ", ".join(virtual_ids(source.run.peft))):
        what = f"{stage.value_path} was trained with the virtual tokens of {named}, and the policy has none of them"
        raise UserError(what, where=WHERE, fix=WHAT_IT_MAY_BE)
    return source


def _head(config: RunConfig, source: Source) -> tuple[Head, bool]:
    """The head for one number; and whether it is new."""
    stored = stored_config(source)
    if stored is not None and base_task(source) is Task.sequence_classification:
        return head_of(stored), False
    return Head(labels=["value"], problem_type=ProblemType.regression, seed=config.seed), True


def _check_kind(config: RunConfig, source: Source) -> None:
    """Raises UserError: it has no value for each token, each of what came before it."""
    stored, task = stored_config(source), base_task(source)
    if task is Task.sequence_classification and stored is not None and stored.num_labels != 1:
        what = f"{source.path} tells {stored.num_labels} labels apart, and a value is one number"
        raise UserError(what, where=WHERE, fix=WHAT_IT_MAY_BE)
    known = task in (Task.sequence_classification, Task.causal_lm)
    if not known or not _reads_the_last_token(config, source, stored):
        what = f"{source.path} is no decoder, which alone has a value for each token"
        raise UserError(what, where=WHERE, fix=WHAT_IT_MAY_BE)


def _reads_the_last_token(config: RunConfig, source: Source, stored: PretrainedConfig | None) -> bool:
    head, _ = _head(config, source)
    try:
        shape = stored if stored is not None else shape_of(source.base)
        return hasattr(outline(source.base, shape, task=Task.sequence_classification, head=head), "score")
    except UserError as error:
        raise UserError(f"{source.path}: {error.what}", where=WHERE, fix=error.fix) from error


def _check_vocabulary(source: Source, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError: the same number is another token to it than to the policy."""
    here, there = tokenizer.get_vocab(), tokenizer_of(source).get_vocab()
    differing = [token for token in sorted(here.keys() | there.keys()) if here.get(token) != there.get(token)]
    if differing:
        raise UserError(
            f"{source.path} has another vocabulary than the policy: {len(differing):,} of "
            f"{len(here.keys() | there.keys()):,} tokens differ, such as {differing[0]!r}",
            where=WHERE,
            fix=WHAT_IT_MAY_BE,
        )


def _check_positions(data: Data, stage: PPOConfig, model: ModelConfig, where: str) -> None:
    """Raises UserError: it cannot read the longest prompt with the longest answer. How long prompts that stream are,
    nobody knows yet."""
    most = num_positions(model)
    known = [side for side in (data.train, data.validation) if side is not None and len(side)]
    longest = max((int(max(side.lengths)) for side in known), default=0)
    if most is not None and most < longest + stage.max_new_tokens:
        what = f"{model.path} has {most} positions, and prompts with answers are up to "
        what += f"{longest + stage.max_new_tokens} tokens long"
        raise UserError(what, where=where, fix=f"data.max_length={max(most - stage.max_new_tokens, 1)}")
