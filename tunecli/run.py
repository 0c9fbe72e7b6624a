"""The composition root: model -> PEFT -> data -> stage -> optimizer -> train. The only file that knows every axis."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from tunecli.config.data import Overlap, validation_share
from tunecli.config.errors import ConfigError, UserError
from tunecli.config.launch import Strategy
from tunecli.config.paths import display as typed
from tunecli.config.paths import point_latest_at
from tunecli.config.peft import without_head
from tunecli.config.peft_checks import schedule_problems
from tunecli.config.run import RunConfig, micro_batch_tokens, to_yaml
from tunecli.config.run_lock import lock_run
from tunecli.config.stage import (
    ClassifyConfig,
    HeadConfig,
    Objective,
    PretrainConfig,
    ProblemType,
    Subwords,
    Task,
    Turns,
    VerbalizeConfig,
)
from tunecli.config.train import Precision
from tunecli.data import about
from tunecli.data.batching import Batching, microbatches
from tunecli.data.candidates import Candidates
from tunecli.data.corruption import PrefixLM, SpanCorruption, end_of_text, sentinels_of
from tunecli.data.examples import Unusable
from tunecli.data.feed import Feed, Shuffled, stream
from tunecli.data.labels import Labels, class_weights, run_labels
from tunecli.data.left_out import LeftOut
from tunecli.data.masking import MaskedTokens, mask_of, ordinary_tokens
from tunecli.data.mixture import Mixture, build, shares
from tunecli.data.prompts import chat_prompt, raw_prompt, trained_on_raw_text
from tunecli.data.reading import EachWord, Place, Reader, SourceTarget, WholeText, next_tokens
from tunecli.data.sample import drawn
from tunecli.data.shots import few
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokens import Encoding
from tunecli.data.verbalizing import Verbalizer
from tunecli.engine.batch import Batch
from tunecli.engine.checkpoint import (
    Checkpoint,
    complete_checkpoints,
    follow_umask,
    restore_best,
    restore_optimizer,
    restore_parameters,
    write_atomically,
)
from tunecli.engine.console import Display
from tunecli.engine.distributed import make_accelerator, make_deterministic
from tunecli.engine.environment import describe_environment
from tunecli.engine.loop import Progress, Trainer, train
from tunecli.engine.optim import build_optimizer, build_scheduler
from tunecli.engine.precision import DTYPES, MIXED_PRECISION, resolve_precision
from tunecli.engine.recorder import Recorder
from tunecli.engine.signals import StopSignal
from tunecli.engine.stage import Stage
from tunecli.engine.step_hook import restore_hooks
from tunecli.engine.trackers import Trackers
from tunecli.evaluation.answers import check_choices
from tunecli.evaluation.evaluator import Evaluator
from tunecli.models.load import (
    Head,
    check_kind,
    load_model,
    load_tokenizer,
    num_parameters,
    resolve_path,
    weight_dtype,
)
from tunecli.models.policy import ONEDNN_MULTIPLE, Policy
from tunecli.models.self_test import Wrapped, choose_policy
from tunecli.models.seq2seq_policy import Seq2SeqPolicy, shifted
from tunecli.peft_methods.by_row import route_rows
from tunecli.peft_methods.composition import inject, rate_factors, step_hooks
from tunecli.peft_methods.injection import adapter_name, leave_casts_to_autocast
from tunecli.peft_methods.saving import save_adapters
from tunecli.peft_methods.starting import put_starts_in_place, start_folders
from tunecli.peft_methods.targets import is_under, task_heads
from tunecli.peft_methods.token_ids import places_of_virtual_tokens
from tunecli.report.card import write_card
from tunecli.report.gain import as_lines, gains, result_step
from tunecli.report.generalisation import as_line, write_gap
from tunecli.report.page import write_report
from tunecli.report.run_files import json_lines
from tunecli.stages import STAGES
from tunecli.stages.setting import Setting


@dataclass(frozen=True, slots=True)
class Data:
    tokenizer: PreTrainedTokenizerBase
    train: Mixture | None
    """None with `data.streaming`: nothing is known of the examples before they come"""
    validation: Mixture | None
    labels: Labels | None = None
    """of a model with a head for them"""


def main(config: RunConfig, run_dir: Path) -> int:
    """Train one rank of the run in `run_dir`, from its newest checkpoint if it has one.

    Returns:
        The exit status: 0, or 128 + the number of the signal that ended the run after a checkpoint.
    """
    stop = StopSignal(announce=os.environ.get("RANK", "0") == "0").install()
    cpu = config.launch.strategy is Strategy.cpu or not torch.cuda.is_available()
    make_deterministic(cpu=cpu)
    precision = resolve_precision(config.train.precision, cpu=cpu, frozen_base=bool(config.peft))
    accelerator = make_accelerator(cpu=cpu, mixed_precision=MIXED_PRECISION[precision])
    _check_world(config, accelerator)
    lock = lock_run(run_dir) if accelerator.is_main_process else None
    display = Display(enabled=accelerator.is_main_process, log_file=run_dir / "log.txt")
    config = put_starts_in_place(config, run_dir)

    data = prepare_data(config, show_progress=display.enabled)
    num_examples = _examples_to_train(config, data)
    num_steps = math.ceil(num_examples / config.train.global_batch_size)
    if problems := list(schedule_problems(config.peft, num_steps)):
        raise ConfigError(problems)
    checkpoint = next(iter(reversed(complete_checkpoints(run_dir / "checkpoints"))), None)
    progress = Progress(**checkpoint.state()["progress"]) if checkpoint else Progress()

    policy = build_policy(
        config,
        data,
        precision=precision,
        device=accelerator.device,
        display=display,
        batches=partial(first_batches, config, data),
        starts=start_folders(config, run_dir),
    )
    feed = build_feed(config, data, LeftOut(run_dir / "left_out.jsonl", enabled=accelerator.is_main_process))
    stage = build_stage(config, data, feed, policy, accelerator, num_examples)
    factors = rate_factors(policy, config.peft) | head_factors(policy, config)
    optimizer = build_optimizer(policy, config.train, factors)
    hooks = step_hooks(policy.lm, config.peft, num_steps)
    if checkpoint:
        restore_parameters(checkpoint, policy)
        restore_optimizer(checkpoint, policy, optimizer)
        restore_hooks(checkpoint.hooks(), hooks)
        stage.load_state_dict(checkpoint.state()["stage"])
    scheduler = build_scheduler(optimizer, config.train, num_steps=num_steps, done=progress.step)
    model, prepared = accelerator.prepare(policy, optimizer, device_placement=[config.model.device_map is None, True])
    if checkpoint and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(checkpoint.state()["scaler"])

    trackers = Trackers(config.train.trackers, run_dir, yaml.safe_load(to_yaml(config)), display, step=progress.step)
    recorder = Recorder(run_dir, display, num_steps=num_steps, trackers=trackers)
    recorder.forget_after(progress.step)
    if accelerator.is_main_process:
        _write_environment(run_dir, data)
        if checkpoint is None:
            point_latest_at(run_dir, config.recipe)
    _announce(config, display, policy, data, precision.value, num_steps, checkpoint)
    recorder.status("running", step=progress.step, exit_status=0)
    finished = train(
        Trainer(
            stage=stage,
            model=model,
            optimizer=prepared,
            scheduler=scheduler,
            accelerator=accelerator,
            config=config.train,
            recorder=recorder,
            progress=progress,
            stop=stop,
            seed=config.seed,
            num_steps=num_steps,
            hooks=hooks,
        )
    )
    exit_status = 0 if finished else 128 + (stop.number or 15)
    if accelerator.is_main_process and finished and num_steps > 0:
        if config.train.keep_best and progress.best_step not in (0, progress.step):
            _go_back_to_best(config, policy, recorder, progress.best_step, display)
        save_result(config, policy, data, run_dir)
    if finished and (accelerator.num_processes == 1 or not config.train.keep_best):  # else only one rank has the best
        _measure_gap(config, data, policy, model, accelerator, run_dir, display)
    recorder.status("finished" if finished else "interrupted", step=progress.step, exit_status=exit_status)
    trackers.finish()
    if accelerator.is_main_process:
        _write_report(run_dir, display)
    _say_goodbye(display, run_dir, finished=finished, step=progress.step, num_steps=num_steps)
    if lock is not None:
        lock.close()
    return exit_status


def prepare_data(config: RunConfig, *, show_progress: bool) -> Data:
    """Tokenizer and tokenised data, from the cache where they are there already."""
    check_kind(config.model, config.stage.task)
    tokenizer = load_tokenizer(config.model)
    if config.stage.task is Task.masked_lm:
        mask_of(tokenizer)
    _sentinels(config, tokenizer)
    train, validation = build(config.data, tokenizer, encoding_of(config, tokenizer), show_progress=show_progress)
    if validation is not None and config.evaluation.choices:
        check_choices(validation, tokenizer, config.evaluation.choices)
    stage = config.stage
    labels = None
    if isinstance(stage, HeadConfig | VerbalizeConfig):
        labels = run_labels(config.data, stage, train, validation)
    if train is not None and config.data.shots is not None:
        train = few(train, config.data.shots, config.seed)
    if labels is not None and isinstance(stage, VerbalizeConfig):
        Verbalizer(TextEncoder(tokenizer), encoding_of(config, tokenizer)).check(labels.by_task)
    return Data(tokenizer, train, validation, labels)


def encoding_of(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Encoding:
    """What tokenisation depends on besides the rows and the tokenizer, whose unused tokens may be virtual ones."""
    data, stage = config.data, config.stage
    return Encoding(
        task=stage.task,
        max_length=data.max_length,
        max_target_length=getattr(stage, "max_target_length", 0),
        overlong=data.overlong,
        truncation_side=data.truncation_side,
        train_on_prompt=getattr(stage, "train_on_prompt", False),
        turns=getattr(stage, "turns", Turns.all),
        labels=tuple(getattr(stage, "labels", ())),
        problem_type=getattr(stage, "problem_type", ProblemType.single_label),
        label_subwords=getattr(stage, "label_subwords", Subwords.first),
        overlap=getattr(stage, "overlap", 0),
        templates=tuple(getattr(stage, "templates", ())),
        verbalizer=dict(getattr(stage, "verbalizer", {})),
        system=data.system,
        system_prompt=data.system_prompt,
        thinking=data.thinking,
        chat_template_kwargs=dict(data.chat_template_kwargs),
        **places_of_virtual_tokens(config.peft, tokenizer, adapter_column=data.adapter_column),
    )


def build_feed(config: RunConfig, data: Data, left_out: LeftOut) -> Feed:
    """What training draws its examples from."""
    if data.train is not None:
        left_out.write(data.train.left_out + (data.validation.left_out if data.validation else []))
        return Shuffled(data.train, config.seed, shares(config.data, np.diff(data.train.starts).tolist()))
    keep_apart = data.validation is not None and config.data.overlap is Overlap.drop
    return stream(
        config.data,
        data.tokenizer,
        encoding_of(config, data.tokenizer),
        seed=config.seed,
        exclude=data.validation.contents if data.validation is not None and keep_apart else np.zeros(0, np.int64),
        report=left_out.write,
    )


def first_batches(config: RunConfig, data: Data, policy: Wrapped) -> Iterator[Batch]:
    """Micro-batches of what training begins with: the same on every rank, and without end."""
    feed = build_feed(config, data, LeftOut(Path(), enabled=False))
    batching = batching_of(config, data, policy, num_processes=1, process_index=0)
    while True:
        yield from microbatches(*feed.take(config.train.global_batch_size), batching)


def build_policy(
    config: RunConfig,
    data: Data,
    *,
    precision: Precision,
    device: torch.device,
    display: Display,
    batches: Callable[[Wrapped], Iterator[Batch]],
    starts: Mapping[str, Path],
) -> Wrapped:
    """The model with its trainable parameters, behind the fastest exact forward.

    Args:
        batches: gives what a method may look at before it starts.
        starts: entry -> peft folder that it starts from.
    """
    if config.model.trust_remote_code:
        display.note(f"running the Python code that comes with {config.model.path} (model.trust_remote_code=true)")
    stored = weight_dtype(config.model, DTYPES[precision], frozen=bool(config.peft))
    task = config.stage.task
    lm = load_model(config.model, dtype=stored, device=device, task=task, head=_head(config, data))
    if task.has_labels:
        lm.config.pad_token_id = data.tokenizer.pad_token_id
    verdict = choose_policy(lm, config.model.attention, task)
    if verdict.note:
        display.note(verdict.note, style="yellow")
    inject(
        lm,
        config.peft,
        seed=config.seed,
        tokenizer=data.tokenizer,
        batches=partial(batches, verdict.policy),
        starts=starts,
    )
    if config.data.adapter_column is not None:
        route_rows(lm, [adapter_name(name) for name in without_head(config.peft)])
    if precision is not Precision.fp32:
        leave_casts_to_autocast(lm)
        verdict.policy.multiple = ONEDNN_MULTIPLE if device.type == "cpu" else 1
    return verdict.policy


def head_factors(policy: Wrapped, config: RunConfig) -> dict[str, float]:
    """Parameter of the head -> what its learning rate is multiplied by."""
    rate = getattr(config.stage, "head_learning_rate", None)
    if rate is None:
        return {}
    heads = [f"lm.{name}" for name in task_heads(policy.lm)]
    return {name: rate / config.train.learning_rate for name, _ in policy.named_parameters() if is_under(name, heads)}


def _head(config: RunConfig, data: Data) -> Head | None:
    if data.labels is None or not config.stage.task.has_labels:
        return None
    problem = getattr(config.stage, "problem_type", ProblemType.single_label)
    return Head(labels=data.labels.names, problem_type=problem, seed=config.seed)


def build_stage(
    config: RunConfig, data: Data, feed: Feed, policy: Wrapped, accelerator: Accelerator, num_examples: int
) -> Stage:
    setting = replace(build_setting(config, data, policy, accelerator), feed=feed, num_examples=num_examples)
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
    )


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
        sentinels=_sentinels(config, data.tokenizer),
        eos=eos,
        shift=shift,
        density=stage.mask_probability,
        mean_span=stage.mean_span_length,
    )


def _sentinels(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Enough for the longest text with the objective span_corruption; none with others."""
    stage = config.stage
    if not isinstance(stage, PretrainConfig) or stage.objective is not Objective.span_corruption:
        return []
    shares = {"density": stage.mask_probability, "mean_span": stage.mean_span_length}
    return sentinels_of(tokenizer, config.data.max_length, **shares)


def _candidates(config: RunConfig, data: Data) -> Candidates:
    assert data.labels is not None
    verbalizer = Verbalizer(TextEncoder(data.tokenizer), encoding_of(config, data.tokenizer))
    labels = {label for labels in data.labels.by_task.values() for label in labels}
    words = [{label: verbalizer.ids(i, label) for label in labels} for i in range(len(verbalizer.templates))]
    masked = config.stage.task is Task.masked_lm
    return Candidates(labels=data.labels, words=words, mask=mask_of(data.tokenizer) if masked else None)


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


def _go_back_to_best(config: RunConfig, policy: Wrapped, recorder: Recorder, step: int, display: Display) -> None:
    restore_best(recorder.best, policy, step)
    display.note(f"the result is the model after step {step}, the best by {config.train.best_metric}")


def save_result(config: RunConfig, policy: Wrapped, data: Data, run_dir: Path) -> None:
    """Write `adapter/<name>/` or `model/`, the tokenizer beside it, and the model card."""
    result = run_dir / ("adapter" if config.peft else "model")
    if config.peft:
        save_adapters(policy.lm, config.peft, result, base=resolve_path(config.model.path))
        if config.stage.task.has_labels:
            policy.lm.config.save_pretrained(result)  # with the names of the labels
    else:
        policy.lm.save_pretrained(result)
        follow_umask(result)
    data.tokenizer.save_pretrained(result)
    summary = data.train.summary if data.train is not None else None
    write_card(config, run_dir, data=summary, results=_results(run_dir))


def _check_world(config: RunConfig, accelerator: Accelerator) -> None:
    if accelerator.num_processes != config.launch.num_processes:
        raise RuntimeError(
            f"started as {accelerator.num_processes} process(es), but config.yaml says launch.num_processes="
            f"{config.launch.num_processes}; start runs with `tune run`"
        )


def _examples_to_train(config: RunConfig, data: Data) -> int:
    """Examples over the whole run, repetitions counted."""
    if config.train.max_steps is not None:
        return config.train.max_steps * config.train.global_batch_size
    assert data.train is not None  # `checks` asks for max_steps where data are streamed
    return math.ceil(config.train.num_epochs * len(data.train))


def _write_environment(run_dir: Path, data: Data) -> None:
    sets = {"train": data.train, "validation": data.validation}
    record = describe_environment() | {"data": {name: each.summary for name, each in sets.items() if each}}
    write_atomically(run_dir / "environment.json", json.dumps(record, indent=2))


def _announce(
    config: RunConfig,
    display: Display,
    policy: Wrapped,
    data: Data,
    precision: str,
    num_steps: int,
    checkpoint: Checkpoint | None,
) -> None:
    """Derived values, said once."""
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total = num_parameters(policy)
    train = config.train
    number = config.launch.num_processes
    processes = "1 process" if number == 1 else f"{number} processes"
    tokens = micro_batch_tokens(config)
    cut = f"{train.micro_batch_size} examples" if tokens is None else f"up to {tokens} tokens"
    full = "" if config.peft else ": full fine-tuning, as `peft` has no entry"
    display.note(f"trains {trained:,} of {total:,} parameters ({trained / total:.2%}), {precision}{full}")
    for name, entry in config.peft.items():
        if entry.init_from is not None:
            display.note(f"{name} starts from {typed(Path(entry.init_from))}{', frozen' if entry.freeze else ''}")
    for line in about.facts(config.data, data.train, data.validation):
        display.note(line)
    # With a share held out both sides are read from the same rows, and lost the same.
    both = (data.train, data.validation if validation_share(config.data) is None else None)
    for examples in both:
        if examples is not None:
            for line, _ in about.losses(config.data, examples):
                display.note(line, style="yellow")
            for line in about.splits(config.data, examples):
                display.note(line)
    if num_steps == 0:
        display.note(
            "train.max_steps=0: the model is evaluated as it is; nothing is trained, and no weights are saved"
        )
        return
    display.note(
        f"{num_steps} steps of {train.global_batch_size} examples over {processes}, "
        f"micro-batches of {cut}, {'padding-free' if policy.packed else 'padded'}"
    )
    if checkpoint:
        display.note(f"resumes after step {checkpoint.step}", style="green")


def _results(run_dir: Path) -> dict[str, float]:
    """Of the model that is the result: the last value of each loss and evaluation up to its step."""
    records = list(json_lines(run_dir / "metrics.jsonl"))
    end = result_step(run_dir, records[-1]["step"])
    results: dict[str, float] = {}
    for record in records:
        if record["step"] <= end:
            results |= {name: value for name, value in record.items() if name == "loss" or name.startswith("eval/")}
    return results


def _measure_gap(
    config: RunConfig,
    data: Data,
    policy: Wrapped,
    model: nn.Module,
    accelerator: Accelerator,
    run_dir: Path,
    display: Display,
) -> None:
    """Of models that answer in one forward pass, where it costs one more evaluation; `tune eval` has it for all."""
    if not config.stage.task.has_labels or data.train is None or data.validation is None:
        return
    sample = drawn(data.train, len(data.validation), config.seed)
    model.eval()
    setting = replace(build_setting(config, data, policy, accelerator), validation=sample)
    found = STAGES[config.stage.name](setting).evaluate(model, lambda done: True)
    if accelerator.is_main_process:
        gap = write_gap(run_dir, len(sample), found.metrics, _results(run_dir))
        if line := as_line(gap):
            display.note(line)


def _write_report(run_dir: Path, display: Display) -> None:
    """A page that cannot be written is no reason to call a run failed."""
    try:
        write_report(run_dir)
    except UserError as error:
        display.note(str(error), style="yellow")


def _say_goodbye(display: Display, run_dir: Path, *, finished: bool, step: int, num_steps: int) -> None:
    if finished:
        for line in as_lines(gains(run_dir)) if display.enabled else ():
            display.note(line)
        display.note(f"done: {typed(run_dir)}", style="bold green")
    else:
        display.note(f"stopped after step {step} of {num_steps}, checkpoint saved", style="yellow")
        display.note(f"  go on with: tune resume {typed(run_dir)}", style="yellow")
