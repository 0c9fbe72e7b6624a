"""Find everything that is wrong with a configuration, and print what follows from it. Loads no weights.

tune check recipe=sft_lora_smollm2 train.micro_batch_size=4
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tunecli.cli.words import split_recipe
from tunecli.config.errors import ConfigError

if TYPE_CHECKING:
    from tunecli.config.run import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="recipe=NAME key=value", help="the recipe, and what to change in it"
    )


def run(args: argparse.Namespace) -> int:
    recipe, overrides = split_recipe("check", args.words)
    from tunecli.config.checks import find_problems
    from tunecli.config.compose import compose_run
    from tunecli.launch import machine_problems

    composed = compose_run(recipe, overrides)
    for note in composed.notes:
        print(f"note: {note}")
    if problems := [*find_problems(composed.config, new_run=True), *machine_problems(composed.config)]:
        raise ConfigError(problems)
    for name, value in derived(composed.config).items():
        print(f"{name:<12}{value}")
    print("no problems found in the configuration; rows are read and checked when the run starts")
    return 0


def derived(config: RunConfig) -> dict[str, str]:
    """What the configuration does not say itself but leads to."""
    from tunecli.config.run import micro_batch_tokens
    from tunecli.launch import num_processes

    train, processes = config.train, num_processes(config)
    share = -(-train.global_batch_size // processes)
    batch = f"{train.global_batch_size} examples per step = {_count(processes, 'process', 'processes')}"
    if train.micro_batch_size is None:
        tokens = micro_batch_tokens(config)
        batch += f" x {share} examples, in micro-batches of up to {tokens} tokens"
    else:
        size = min(train.micro_batch_size, share)
        batch += f" x {_count(-(-share // size), 'micro-batch', 'micro-batches')} of up to {_count(size, 'example')}"
    length = f"{train.max_steps} steps" if train.max_steps else f"{train.num_epochs:g} passes over the data"
    return {
        "model": config.model.path + _storage(config),
        "data": f"{config.data.path} ({config.data.format})",
        "trains": ", ".join(config.peft) or "every weight",
        "batch": batch,
        "length": f"{length}, warm-up {_count(train.warmup_steps, 'step')}",
    }


def _storage(config: RunConfig) -> str:
    kind = config.model.quantization.value
    return "" if kind == "none" else f" in {kind}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
