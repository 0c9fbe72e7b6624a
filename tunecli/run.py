"""The composition root: model -> PEFT -> data -> stage -> optimizer -> train. The only file that knows every axis."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from torch import nn

from tunecli.assembly import reloaded
from tunecli.assembly.data import Data, build_feed, prepare_data
from tunecli.assembly.model import build_policy, head_factors, pull_hooks
from tunecli.assembly.positions import within_positions
from tunecli.assembly.ppo import check_ppo
from tunecli.assembly.stage import build_setting, build_stage, first_batches
from tunecli.config.counted import counted
from tunecli.config.data import validation_share
from tunecli.config.errors import ConfigError, UserError
from tunecli.config.launch import Strategy
from tunecli.config.paths import display as typed
from tunecli.config.paths import point_latest_at
from tunecli.config.peft import HEAD
from tunecli.config.peft_checks import schedule_problems
from tunecli.config.reward import CustomConfig
from tunecli.config.run import RunConfig, micro_batch_tokens, to_yaml
from tunecli.config.run_lock import lock_run
from tunecli.config.stage import PPOConfig, RewardConfig, steps_per_rollout
from tunecli.data import about
from tunecli.data.formats import custom
from tunecli.data.left_out import LeftOut
from tunecli.data.sample import drawn
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
from tunecli.engine.precision import MIXED_PRECISION, resolve_precision
from tunecli.engine.recorder import Recorder
from tunecli.engine.signals import StopSignal
from tunecli.engine.step_hook import restore_hooks
from tunecli.engine.trackers import Trackers
from tunecli.models.load import (
    num_parameters,
    resolve_path,
)
from tunecli.models.self_test import Wrapped
from tunecli.peft_methods.composition import rate_factors, step_hooks
from tunecli.peft_methods.rehearsal import misfits
from tunecli.peft_methods.saving import save_adapters, save_with_head
from tunecli.peft_methods.starting import head_left_behind, put_starts_in_place, start_folders
from tunecli.report.card import write_card
from tunecli.report.card_use import PLAIN, in_plain_peft
from tunecli.report.gain import as_lines, gains, result_step
from tunecli.report.generalisation import as_line, write_gap
from tunecli.report.page import write_report
from tunecli.report.run_files import json_lines
from tunecli.stages import STAGES


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
    config, notes = within_positions(put_starts_in_place(config, run_dir))
    if problems := misfits(config, start_folders(config, run_dir)):
        raise ConfigError(problems)

    data = prepare_data(config, show_progress=display.enabled)
    check_ppo(config, data)
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
    stage = build_stage(config, data, feed, policy, accelerator, num_examples, run_dir=run_dir, note=display.note)
    factors = rate_factors(policy, config.peft) | head_factors(policy, config)
    optimizer = build_optimizer(policy, config.train, factors)
    hooks = [*step_hooks(policy.lm, config.peft, num_steps), *pull_hooks(config, policy, optimizer)]
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
    for note in notes:
        display.note(note, style="yellow")
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
        if isinstance(config.stage, RewardConfig):
            display.note(reloaded.compare(config, data, policy, accelerator, run_dir, precision))
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
        if plain := in_plain_peft(config):
            save_with_head(result / plain, result / HEAD, run_dir / PLAIN)
            policy.lm.config.save_pretrained(run_dir / PLAIN)
            data.tokenizer.save_pretrained(run_dir / PLAIN)
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
    if isinstance(config.stage, PPOConfig):
        return _answers_to_train(config, config.stage, data)
    assert data.train is not None  # `checks` asks for max_steps where data are streamed
    return math.ceil(config.train.num_epochs * len(data.train))


def _answers_to_train(config: RunConfig, stage: PPOConfig, data: Data) -> int:
    """Of the rollouts that ask every prompt `train.num_epochs` times, each learnt from in all its epochs."""
    assert data.train is not None
    answers = math.ceil(config.train.num_epochs * len(data.train)) * stage.num_samples
    steps = math.ceil(answers / stage.rollout_batch_size) * steps_per_rollout(stage, config.train.global_batch_size)
    return steps * config.train.global_batch_size


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
    processes = counted(number or 1, "process", "processes")
    tokens = micro_batch_tokens(config)
    cut = counted(train.micro_batch_size or 1, "example") if tokens is None else f"up to {tokens} tokens"
    full = "" if config.peft else ": full fine-tuning"
    display.note(f"trains {trained:,} of {total:,} parameters ({trained / total:.2%}), {precision}{full}")
    for name, entry in config.peft.items():
        if entry.init_from is not None:
            display.note(f"{name} starts from {typed(Path(entry.init_from))}{', frozen' if entry.freeze else ''}")
    if left := head_left_behind(config.peft):
        display.note(
            f"the head is new; to take that of the earlier run: +peft@peft.{HEAD}=freeze peft.{HEAD}.init_from={left}"
        )
    for line in about.facts(config.data, data.train, data.validation):
        display.note(line)
    # With a share held out both sides are read from the same rows, and lost the same.
    both = (data.train, data.validation if validation_share(config.data) is None else None)
    for examples in both:
        if examples is not None:
            for line, _ in about.losses(config.data, examples):
                display.note(line, style="yellow")
            for line in about.splits(config.data, config.stage, examples):
                display.note(line)
    if num_steps == 0:
        display.note(
            "train.max_steps=0: the model is evaluated as it is; nothing is trained, and no weights are saved"
        )
        return
    display.note(
        f"{counted(num_steps, 'step')} of {counted(train.global_batch_size, 'example')} over {processes}, "
        f"micro-batches of {cut}, {'padding-free' if policy.packed else 'padded'}"
    )
    if isinstance(config.stage, PPOConfig):
        _announce_rollouts(config, config.stage, num_steps, display)
    if checkpoint:
        display.note(f"resumes after step {checkpoint.step}", style="green")


def _announce_rollouts(config: RunConfig, stage: PPOConfig, num_steps: int, display: Display) -> None:
    steps = steps_per_rollout(stage, config.train.global_batch_size)
    prompts = stage.rollout_batch_size // stage.num_samples
    each = f"{stage.num_samples} to each of {counted(prompts, 'prompt')}, " if stage.num_samples > 1 else ""
    early = " or fewer" if stage.early_stop_kl is not None else ""
    display.note(
        f"a rollout is {counted(stage.rollout_batch_size, 'answer')}, {each}learnt from in {counted(steps, 'step')}"
        f"{early} ({stage.num_ppo_epochs} x {steps // stage.num_ppo_epochs}): "
        f"{'about ' if early else ''}{counted(math.ceil(num_steps / steps), 'rollout')}"
    )
    for name, reward in config.reward.items():
        if isinstance(reward, CustomConfig):
            display.note(f"reward.{name} runs the Python code of {custom.file_of(custom.PREFIX + reward.custom)}")


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
