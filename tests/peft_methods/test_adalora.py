"""AdaLoRA's training against peft's own, and what its allocator keeps."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from architectures import inputs_of, logits_of, model_of
from tiny import causal_lm
from torch.testing import assert_close
from transformers import PreTrainedModel
from tuners import disturbed, gradients, trained

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.peft import AdaLoraConfig, BitFitConfig, HoulsbyConfig, Ia3Config, LoraConfig, PeftConfig
from tunecli.config.peft_checks import schedule_problems
from tunecli.engine.step_hook import StepHook, hook_state, restore_hooks
from tunecli.peft_methods.composition import inject, step_hooks
from tunecli.peft_methods.saving import load_adapters, save_adapters

STEPS = 14
CONFIG = AdaLoraConfig(init_r=6, target_r=3, tinit=2, tfinal=4, deltaT=3, lora_alpha=64)
OTHERS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=4),
    "ia3": Ia3Config(),
    "bitfit": BitFitConfig(add_missing=True),
    "houlsby": HoulsbyConfig(bottleneck_size=8),
}
INPUTS = [inputs_of("llama", "causal_lm") | {"input_ids": torch.randint(4, 90, (2, 9))} for _ in range(STEPS)]
for batch in INPUTS:
    batch["labels"] = batch["input_ids"].where(batch["attention_mask"].bool(), -100)


def ours(config: AdaLoraConfig = CONFIG) -> tuple[PreTrainedModel, list[StepHook]]:
    model = causal_lm()
    inject(model, {"a": config}, seed=0)
    return model, step_hooks(model, {"a": config}, STEPS)


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(trained(model).values(), lr=0.5)


def take_steps(model: PreTrainedModel, hooks: list[StepHook], first: int, last: int) -> None:
    optimizer = sgd(model)
    for step in range(first, last + 1):
        (model.train()(**INPUTS[step - 1]).loss + sum(hook.penalty() for hook in hooks)).backward()
        optimizer.step()
        for hook in hooks:
            hook.after_step(step)
        optimizer.zero_grad()


def ranks(model: PreTrainedModel) -> dict[str, int]:
    return {
        name.removesuffix(".tune_a"): int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name
    }


def total(model: PreTrainedModel) -> int:
    return sum(ranks(model).values())


def theirs(start: PreTrainedModel) -> peft.PeftModel:
    """peft's own, from the same A and B."""
    targets = sorted({name.split(".")[4] for name in trained(start)})
    config = peft.AdaLoraConfig(
        init_r=6, target_r=3, tinit=2, tfinal=4, deltaT=3, lora_alpha=64, total_step=STEPS, target_modules=targets,
        task_type="CAUSAL_LM",  # without one peft adds no penalty
    )  # fmt: skip
    wrapped = peft.get_peft_model(causal_lm(), config)
    for mine, other in zip(trained(start).values(), trained(wrapped).values(), strict=True):
        other.data.copy_(mine.data)
    return wrapped


def test_every_step_is_pefts() -> None:
    model, hooks = ours()
    wrapped = theirs(model)
    optimizer, before = sgd(wrapped), total(model)
    falling = []
    for step in range(1, STEPS + 1):
        take_steps(model, hooks, step, step)
        wrapped.train()(**INPUTS[step - 1]).loss.backward()
        optimizer.step()
        wrapped.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        for (name, mine), other in zip(trained(model).items(), trained(wrapped).values(), strict=True):
            assert_close(mine, other, atol=1e-5, rtol=0, msg=f"step {step}: {name}")
        falling.append(total(model))
    assert before == 0
    assert total(model) == 3 * 14 and len(set(ranks(model).values())) > 1
    assert falling[:2] == [6 * 14] * 2 and falling[2] < 6 * 14 and falling[-4:] == [3 * 14] * 4


@pytest.mark.parametrize("stop", [1, 5, 10, 12])
def test_resumed_is_uninterrupted(stop: int) -> None:
    whole, hooks = ours()
    take_steps(whole, hooks, 1, STEPS)
    first, hooks = ours()
    take_steps(first, hooks, 1, stop)
    kept = {name: tensor.clone() for name, tensor in hook_state(hooks).items()}
    second, hooks = ours()
    for mine, other in zip(trained(second).values(), trained(first).values(), strict=True):
        mine.data.copy_(other.data)
    restore_hooks(kept, hooks)
    take_steps(second, hooks, stop + 1, STEPS)
    for mine, other in zip(trained(second).values(), trained(whole).values(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("steps", [0, 5, STEPS])
def test_what_is_saved_is_pruned_and_loads_here_and_in_peft(steps: int, tmp_path: Path) -> None:
    model, hooks = ours()
    take_steps(model, hooks, 1, steps)
    inputs = inputs_of("llama", "causal_lm")
    expected = logits_of(model, inputs)
    save_adapters(model, ["a"], tmp_path, base="somewhere")
    saved = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert {name: sum(rows) for name, rows in saved["rank_pattern"].items()} == ranks(model)
    assert (saved["total_step"], saved["tinit"], saved["tfinal"]) == (STEPS, 2, 4)
    loaded = causal_lm()
    load_adapters(loaded, [tmp_path / "a"])
    assert_close(logits_of(loaded, inputs), expected, atol=1e-6, rtol=0)
    wrapped = peft.PeftModel.from_pretrained(causal_lm(), str(tmp_path / "a"))
    assert_close(logits_of(wrapped, inputs), expected, atol=1e-6, rtol=0)
    save_adapters(loaded, ["a"], tmp_path / "again", base="somewhere")  # what was loaded can be saved again
    files = [folder / "a" / "adapter_model.safetensors" for folder in (tmp_path, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_peft_saved_is_loaded(tmp_path: Path) -> None:
    wrapped = theirs(ours()[0])
    optimizer = sgd(wrapped)
    for step in range(1, STEPS + 1):
        wrapped.train()(**INPUTS[step - 1]).loss.backward()
        optimizer.step()
        wrapped.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    expected = logits_of(wrapped, inputs_of("llama", "causal_lm"))
    wrapped.save_pretrained(str(tmp_path))
    loaded = causal_lm()
    load_adapters(loaded, [tmp_path])
    assert_close(logits_of(loaded, inputs_of("llama", "causal_lm")), expected, atol=1e-6, rtol=0)


def test_two_at_once_do_not_meddle() -> None:
    configs = {"a": AdaLoraConfig(init_r=4, target_r=2, tinit=1, tfinal=2, deltaT=1, target_modules=["q_proj"])}
    configs["ab"] = AdaLoraConfig(init_r=6, target_r=1, tinit=1, tfinal=2, deltaT=1, target_modules=["q_proj"])
    model = causal_lm()
    inject(model, configs, seed=0)
    take_steps(model, step_hooks(model, configs, STEPS), 1, STEPS)
    left = {
        name: sum(int((p != 0).sum()) for path, p in model.named_parameters() if path.endswith(f"lora_E.tune_{name}"))
        for name in configs
    }
    assert left == {"a": 4, "ab": 2}


AMONG = ["lora", "ia3", "a", "bitfit", "houlsby"]


@pytest.mark.parametrize("names", [AMONG, AMONG[::-1]], ids=["inside out", "outside in"])
@pytest.mark.parametrize(("architecture", "task"), [("llama", "causal_lm"), ("gpt2", "causal_lm"), ("t5", "seq2seq")])
def test_among_others(names: list[str], architecture: str, task: str, tmp_path: Path) -> None:
    methods = {name: CONFIG if name == "a" else OTHERS[name] for name in names}
    model, inputs = model_of(architecture, task), inputs_of(architecture, task)
    before = logits_of(model, inputs)
    inject(model, methods, seed=0)
    assert_close(logits_of(model, inputs), before, atol=2e-6, rtol=0)
    gradients(model, inputs)
    expected = logits_of(disturbed(model), inputs)
    save_adapters(model, names, tmp_path, base="somewhere")
    loaded = model_of(architecture, task)
    load_adapters(loaded, [tmp_path / name for name in names])
    assert torch.equal(logits_of(loaded, inputs), expected)


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["peft.adalora.tinit=6", "peft.adalora.tfinal=6", "train.max_steps=12"], "peft.adalora"),
        (["peft.adalora.tinit=0.5", "peft.adalora.tfinal=0.5", "train.max_steps=12"], "peft.adalora"),
        (["peft.adalora.target_r=12"], "peft.adalora.target_r"),
        (["peft.adalora.deltaT=0"], "peft.adalora.deltaT"),
        (["peft.adalora.beta1=1"], "peft.adalora.beta1"),
        (["peft.adalora.tinit=-1"], "peft.adalora.tinit"),
    ],
)
def test_schedules_that_cannot_be_are_refused_before_anything_is_loaded(overrides: list[str], where: str) -> None:
    config = compose_run("smoke_sft_lora", ["peft=adalora", *overrides]).config
    (problem,) = find_problems(config)
    assert problem.where == where


def test_a_run_whose_length_the_data_decide_is_checked_too() -> None:
    assert not list(schedule_problems({"a": CONFIG}, 7))
    (problem,) = schedule_problems({"a": CONFIG}, 6)
    assert "leave ranks none of 6 steps" in problem.what
