"""The training stage, and what it takes to measure a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from tunecli.assembly.data import Data, build_feed, encoding_of
from tunecli.assembly.readers import batching_of
from tunecli.config.errors import UserError
from tunecli.config.run import RunConfig
from tunecli.config.stage import PPOConfig, Task
from tunecli.data.batching import microbatches
from tunecli.data.examples import Unusable
from tunecli.data.feed import Feed
from tunecli.data.left_out import LeftOut
from tunecli.data.prompts import chat_prompt, raw_prompt, trained_on_raw_text
from tunecli.engine.batch import Batch
from tunecli.engine.stage import Stage
from tunecli.evaluation.evaluator import Evaluator
from tunecli.models.self_test import Wrapped
from tunecli.peft_methods.reference import reference_of
from tunecli.rewards import build_rewards
from tunecli.stages import STAGES
from tunecli.stages.setting import Setting


def build_stage(
    config: RunConfig,
    data: Data,
    feed: Feed,
    policy: Wrapped,
    accelerator: Accelerator,
    num_examples: int,
    *,
    run_dir: Path,
    note: Callable[[str], None],
) -> Stage:
    """To be called before a checkpoint is restored: the reference is the policy as it is now."""
    stage = config.stage
    setting = replace(
        build_setting(config, data, policy, accelerator),
        feed=feed,
        num_examples=num_examples,
        train=data.train,
        reference=reference_of(policy.lm, config.peft) if getattr(stage, "has_reference", False) else None,
        scorer=build_rewards(config.reward) if isinstance(stage, PPOConfig) else None,
        run_dir=run_dir,
        note=note,
    )
    return STAGES[config.stage.name](setting)


def build_setting(config: RunConfig, data: Data, policy: Wrapped, accelerator: Accelerator) -> Setting:
    """What it takes to measure a model on `data.validation`, and nothing of what it takes to train one."""
    batching = batching_of(
        config, data, policy, num_processes=accelerator.num_processes, process_index=accelerator.process_index
    )
    evaluator = Evaluator(
        config.evaluation, data.tokenizer, data.validation, prompt_ids(config, data), batching, accelerator
    )
    return Setting(
        config=config.stage,
        validation=data.validation,
        evaluator=evaluator,
        batching=batching,
        accelerator=accelerator,
        global_batch_size=config.train.global_batch_size,
        labels=data.labels,
        seed=config.seed,
    )


def first_batches(config: RunConfig, data: Data, policy: Wrapped) -> Iterator[Batch]:
    """Micro-batches of what training begins with: the same on every rank, and without end."""
    feed = build_feed(config, data, LeftOut(Path(), enabled=False))
    batching = batching_of(config, data, policy, num_processes=1, process_index=0)
    while True:
        yield from microbatches(*feed.take(config.train.global_batch_size), batching)


def prompt_ids(config: RunConfig, data: Data) -> list[list[int]]:
    """`evaluation.prompts` as the model is asked: through the chat template, where training goes through it."""
    known = data.train or data.validation
    formats = [format.name for format in known.formats] if known is not None else [config.data.format]
    encoding = encoding_of(config, data.tokenizer)
    try:
        if encoding.template or encoding.task is Task.seq2seq_lm or trained_on_raw_text(config.data, formats):
            return [raw_prompt(text, data.tokenizer, encoding) for text in config.evaluation.prompts]
        chats = [[{"role": "user", "content": text}] for text in config.evaluation.prompts]
        return [chat_prompt(chat, data.tokenizer, encoding) for chat in chats]
    except Unusable as error:
        raise UserError(error.what, where="evaluation.prompts", fix=error.fix) from error
