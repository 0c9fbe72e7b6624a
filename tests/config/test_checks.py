"""Each cross-field mistake is found, named by its key, and mended by following its fix."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import pytest

from tunecli.config import data_checks
from tunecli.config.checks import FRACTION, NOT_NEGATIVE, POSITIVE, find_problems
from tunecli.config.compose import compose_run
from tunecli.config.errors import Problem
from tunecli.config.run import RunConfig


def problems_of(*overrides: str, recipe: str = "smoke_sft_lora", new_run: bool = False) -> list[Problem]:
    return find_problems(compose_run(recipe, list(overrides)).config, new_run=new_run)


@pytest.mark.parametrize("recipe", ["smoke_sft_lora", "smoke_sft_full", "smoke_qlora", "qlora_llama65b"])
def test_shipped_recipes_that_need_no_files_have_no_problem(recipe: str):
    assert problems_of(recipe=recipe) == []


MISTAKES = {
    ("train.micro_batch_size=2", "train.micro_batch_tokens=9"): ("train", "train.micro_batch_size=null"),
    ("model.quantization=int8", "peft=full"): ("model.quantization", "peft=lora"),
    ("model.quantization=nf4", "peft=[lora,loha]"): ("peft.loha", "tune ls peft"),
    ("peft=houlsby", "peft.houlsby.reduction_factor=0"): ("peft.houlsby.reduction_factor", "at least 1"),
    ("peft=[lora,oft]", "peft.oft.oft_block_size=1"): ("peft.oft.oft_block_size", "at least 2"),
    ("peft.lora.rank_pattern={q_proj: 0}",): ("peft.lora.rank_pattern.q_proj", "greater than 0"),
    ("model.device_map=auto", "launch.num_processes=2"): ("model.device_map", "launch.num_processes=1"),
    ("model.device_map=auto", "launch=cpu"): ("model.device_map", "model.device_map=null"),
    ("train.precision=fp16", "launch=cpu"): ("train.precision", "train.precision=auto"),
    ("train.warmup_steps=10",): ("train.warmup_steps", "train.warmup_steps=1"),
    ("train.keep_best=true", "train.best_metric=eval/nope"): ("train.best_metric", "one of eval/loss"),
    ("train.best_metric=eval/exact_match",): ("train.best_metric", "evaluation.exact_match=100"),
    ("train.best_metric=eval/choice_accuracy",): ("train.best_metric", "evaluation.choices=["),
    ("data.validation=null",): ("train.eval_every", "data.validation=0.05"),
    ("train.global_batch_size=1", "launch=cpu_2"): ("train.global_batch_size", "train.global_batch_size=2"),
    ("peft.lora.target_modules=[]",): ("peft.lora.target_modules", "[all-linear]"),
    ("peft.lora.target_modules=[all-linear,q_proj]",): ("peft.lora.target_modules", "[all-linear]"),
    ("data.format=mesages",): ("data.format", "did you mean messages?"),
    ("data.chat_template=chatlm",): ("data.chat_template", "chatml"),
    ("data.path=./no/such.jsonl",): ("data.path", "data.path=PATH"),
    ("data.path=nothing.jsonl", "data.split=x"): ("data.path", "data.path=PATH"),
    ("model.path=assets/no_such_model",): ("model.path", "python scripts/fetch_assets.py"),
    ("model.path=/no/such/model",): ("model.path", "model.path=PATH"),
    ("data.validation=assets/no_such.jsonl",): ("data.validation", "python scripts/fetch_assets.py"),
}


@pytest.mark.parametrize("overrides", MISTAKES, ids=" ".join)
def test_a_mistake_is_the_only_problem_and_has_its_fix(overrides: tuple[str, ...]):
    where, fix = MISTAKES[overrides]
    (problem,) = problems_of(*overrides)
    assert problem.where == where
    assert fix in problem.fix


def test_a_model_that_must_be_fetched_can_come_from_the_hub_instead():
    (problem,) = problems_of("model.path=assets/no_such_model")
    assert "model=smollm2_135m_hub" in problem.fix


@pytest.mark.parametrize("path", ["HuggingFaceTB/SmolLM2-135M-Instruct", "gpt2", "builtin:tiny_llama"])
def test_a_hub_id_is_not_looked_for_on_the_disk(path: str):
    assert problems_of(f"model.path={path}") == []


def test_all_problems_are_reported_at_once():
    found = problems_of("train.micro_batch_size=2", "train.micro_batch_tokens=9", "data.format=nope", "seed=-1")
    assert {problem.where for problem in found} == {"train", "data.format", "seed"}


BOUNDS = [
    *((key, 0) for key in POSITIVE),
    *((key, -1) for key in NOT_NEGATIVE),
    *((key, 1) for key in FRACTION),
    *((key, -0.1) for key in FRACTION),
    *(
        ("peft.lora.r", 0),
        ("peft.lora.lora_alpha", 0),
        ("peft.lora.lora_dropout", 1),
        ("peft.lora.lora_dropout", -0.1),
    ),
    *(("train.learning_rate", math.nan), ("train.learning_rate", math.inf)),
]


@pytest.fixture(scope="module")
def good() -> RunConfig:
    return compose_run("smoke_sft_lora", []).config


@pytest.mark.parametrize(("key", "value"), BOUNDS)
def test_numbers_out_of_range(key: str, value: float, good: RunConfig):
    config = copy.deepcopy(good)
    section, name = key.rpartition(".")[::2]
    target = config.peft["lora"] if section == "peft.lora" else getattr(config, section) if section else config
    setattr(target, name, value)
    assert key in [problem.where for problem in find_problems(config)]


def test_every_number_of_the_training_section_has_a_range():
    """A new field must be put into one of the tables."""
    from dataclasses import fields

    from tunecli.config.train import TrainConfig

    numbers = {f"train.{field.name}" for field in fields(TrainConfig) if str(field.type).startswith(("int", "float"))}
    assert numbers == {key for key in (*POSITIVE, *NOT_NEGATIVE, *FRACTION) if key.startswith("train.")}


def test_a_directory_that_holds_a_run_is_not_taken_over(tmp_path: Path):
    word = f"output_dir={tmp_path}"
    assert problems_of(word, new_run=True) == []
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert problems_of(word, new_run=True) == []  # it failed before it trained
    (tmp_path / "metrics.jsonl").touch()
    (problem,) = problems_of(word, new_run=True)
    assert problem.where == "output_dir" and f"tune resume {tmp_path}" in problem.fix
    assert problems_of(word) == []


def test_a_second_adapter_is_checked_too():
    (problem,) = problems_of("+peft@peft.second=lora", "peft.second.r=0")
    assert problem.where == "peft.second.r"


def test_names_written_here_are_those_of_the_tables():
    """`config` may not import `data`; so the names stand in both and are held equal here."""
    from tunecli.data.formats import FORMATS
    from tunecli.data.templates import NAMED

    assert set(data_checks.FORMATS) == set(FORMATS)
    assert set(data_checks.CHAT_TEMPLATES) == set(NAMED)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_fix_of_a_schedule_without_room_is_not_what_is_set_already_and_works(steps: int):
    words = ["peft=adalora", f"train.max_steps={steps}", "train.warmup_steps=0"]
    for own in ([], ["peft.adalora.tinit=0.6", "peft.adalora.tfinal=0.5"]):
        problems = [problem for problem in problems_of(*words, *own) if problem.where == "peft.adalora"]
        for problem in problems:
            mended = re.findall(r"[a-z_A-Z.]+=[\d.]+", problem.fix)
            assert set(mended) - {*words, *own}
            assert "peft.adalora" not in [left.where for left in problems_of(*words, *own, *mended)]
        assert problems or (steps == 5 and not own)
