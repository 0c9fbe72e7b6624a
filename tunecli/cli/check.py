"""Find everything that is wrong with a configuration and its data, and print what follows from it. Loads no weights.

tune check recipe=sft_lora_smollm2 train.micro_batch_size=4
tune check recipe=sft_lora_llama3_8b --data      reads the rows although they or the tokenizer are on the Hub
tune check recipe=sft_lora_smollm2 --no-data     the configuration alone, at once

Methods are tried on the model's shape where its config.json is on this disk. Rows are tokenized as for training, and
kept for it. Faults end with status 2; what is only odd is printed.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tunecli.cli.words import split_recipe
from tunecli.config.counted import counted
from tunecli.config.errors import ConfigError

if TYPE_CHECKING:
    from tunecli.config.run import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="recipe=NAME key=value", help="the recipe, and what to change in it"
    )
    parser.add_argument(
        "--data",
        action=argparse.BooleanOptionalAction,
        help="read the rows too; without a word about it: where tokenizer and data lie on this disk",
    )


def run(args: argparse.Namespace) -> int:
    recipe, overrides = split_recipe("check", args.words)
    from tunecli.config.checks import find_problems
    from tunecli.config.compose import compose_run
    from tunecli.config.origins import find_origins, stated
    from tunecli.launch import machine_problems

    composed = compose_run(recipe, overrides)
    for note in composed.notes:
        print(f"note: {note}")
    if problems := [*find_problems(composed.config, new_run=True), *machine_problems(composed.config)]:
        raise ConfigError(problems)
    for name, value in derived(composed.config).items():
        print(f"{name:<12}{value}")
    elsewhere, given = _on_the_hub(composed.config), stated(find_origins(composed))
    for path in elsewhere:
        print(f"{path} is no file or folder here, so it is looked for on the Hugging Face Hub")
    if args.data is False or (args.data is None and elsewhere):
        if args.data is None:
            _check_model(composed.config, elsewhere, given)
        print("no problems found in the configuration; the rows were not read: tune check ... --data does")
        return 0
    _check_data(composed.config, given)
    return 0


def _on_the_hub(config: RunConfig) -> list[str]:
    """Models and data that are not on this disk."""
    from tunecli.config.data import training_sources, validation_source
    from tunecli.config.data_files import is_local
    from tunecli.config.reward import RewardModelConfig
    from tunecli.config.stage import PPOConfig

    sources = [*training_sources(config.data), validation_source(config.data)]
    paths = [config.model.path, *(source.path for source in sources if source is not None)]
    paths += [reward.path for reward in config.reward.values() if isinstance(reward, RewardModelConfig)]
    if isinstance(config.stage, PPOConfig) and config.stage.value_path is not None:
        paths.append(config.stage.value_path)
    return [path for path in dict.fromkeys(paths) if not path.startswith("builtin:") and not is_local(path)]


def _check_model(config: RunConfig, elsewhere: list[str], given: dict[str, str]) -> None:
    """Where the model, and what adapters start from, are on this disk.

    Raises:
        ConfigError: methods that do not fit the model.
    """
    from tunecli.config.data_files import is_local

    starts = [entry.init_from for entry in config.peft.values() if entry.init_from is not None]
    if config.model.path in elsewhere or not all(map(is_local, starts)):
        return
    from tunecli.lint import fit_problems

    if problems := fit_problems(config, given):
        raise ConfigError(problems)


def _check_data(config: RunConfig, given: dict[str, str]) -> None:
    """Print what the data are and what is odd about them.

    Raises:
        ConfigError: rows that cannot be used, and methods that do not fit the model.
    """
    from tunecli.lint import lint

    facts, problems, odd = lint(config, given)
    for fact in facts:
        print(fact)
    for oddity in odd:
        print(f"warning: {oddity}")
    sys.stdout.flush()
    if problems:
        raise ConfigError(problems)
    warned = f", {counted(len(odd), 'warning')}" if odd else ""
    print(f"no problems found{warned}; tune preview shows the examples")


def derived(config: RunConfig) -> dict[str, str]:
    """What the configuration does not say itself but leads to."""
    from tunecli.config.run import micro_batch_tokens, with_head
    from tunecli.launch import num_processes

    if config.stage.name == "label":
        return _labels(config)
    train, processes = config.train, num_processes(config)
    share = -(-train.global_batch_size // processes)
    batch = f"{counted(train.global_batch_size, 'example')} per step = {counted(processes, 'process', 'processes')}"
    if train.micro_batch_size is None:
        tokens = micro_batch_tokens(config)
        batch += f" x {counted(share, 'example')}, in micro-batches of up to {tokens} tokens"
    else:
        size = min(train.micro_batch_size, share)
        batch += (
            f" x {counted(-(-share // size), 'micro-batch', 'micro-batches')} of up to {counted(size, 'example')}"
        )
    warmup = f"warm-up {counted(int(train.warmup_steps), 'step')}"
    if 0 < train.warmup_steps < 1:
        warmup = f"of which {train.warmup_steps:.3g} of all are warm-up"
    length = counted(train.max_steps, "step") if train.max_steps else f"{train.num_epochs:g} passes over the data"
    return {
        "model": config.model.path + _storage(config),
        "trains": ", ".join(with_head(config).peft) or "every weight (full fine-tuning)",
        "batch": batch,
        "length": f"{length}, {warmup}",
    }


def _labels(config: RunConfig) -> dict[str, str]:
    """Of a run that trains nothing."""
    judge, stage = config.judge, config.stage
    named = "" if judge is None else getattr(judge, "path", "") or getattr(judge, "model", "")
    return {
        "model": config.model.path + _storage(config),
        "labels": f"{stage.mode.value}, {counted(stage.prompts_together, 'prompt')} together",  # type: ignore[attr-defined]
        "judge": named or "none: the model criticises itself",
    }


def _storage(config: RunConfig) -> str:
    kind = config.model.quantization.value
    return "" if kind == "none" else f" in {kind}"
