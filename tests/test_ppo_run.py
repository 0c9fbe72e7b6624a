"""Stage ppo through `tune run` in this process: value models, and what is said before a weight is loaded."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import causal_lm, scoring_lm
from training import trained_run
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, GPT2Config, LlamaConfig

from tunecli import run
from tunecli.assembly.data import prepare_data
from tunecli.assembly.model import head_factors, pull_hooks
from tunecli.assembly.ppo import check_ppo
from tunecli.config.compose import compose_run, load_config
from tunecli.config.errors import UserError
from tunecli.config.run import RunConfig
from tunecli.data.stop_tokens import stop_token_ids
from tunecli.engine.optim import build_optimizer
from tunecli.engine.recorder import Recorder
from tunecli.lint import lint
from tunecli.models.builtin import materialize
from tunecli.models.policy import Policy
from tunecli.models.value_model import ValueModel
from tunecli.peft_methods.composition import inject, rate_factors
from tunecli.peft_methods.loading import load

PPO = ["train.eval_every=null", "data.validation=null", "train.max_steps=3", "train.save_every=1"]
BF16 = "train.precision=bf16"


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["train.max_steps=2", "train.eval_every=null", "data.validation=null"]
    return trained_run(tmp_path_factory.mktemp("reward") / "run", "smoke_reward", *words)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    (newest,) = run_dir.glob("checkpoints/step_00000003")
    return load_file(newest / "trainable.safetensors")


def test_a_value_model_starts_from_what_a_reward_run_trained_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward_run: Path
) -> None:
    words = [*PPO, "stage.value=model", f"stage.value_path={reward_run}", "stage.value_learning_rate=1e-9"]
    whole = trained_run(tmp_path / "whole", "smoke_ppo", *words)
    found, (reward, _) = weights(whole), load(reward_run)
    there = {f"value_model.lm.{name}": each for name, each in reward.state_dict().items()}
    own = {name for name in found if name.startswith("value_model.")}
    assert own and all("lora_" in name or "freeze_copy" in name for name in own)
    for name in own:
        assert found[name].dtype is torch.float32
        torch.testing.assert_close(found[name], there[name], atol=1e-6, rtol=0)
        assert not torch.equal(found[name], there[name]) or "lora_A" in name
    result = load_file(whole / "adapter" / "lora" / "adapter_model.safetensors")
    assert not [name for name in result if "value" in name or "score" in name]

    class Crash(Exception):
        pass

    original = Recorder.training

    def crash(self: Recorder, record: dict[str, Any]) -> None:
        if record["step"] == 3:
            raise Crash
        original(self, record)

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "training", crash)
        with pytest.raises(Crash):
            trained_run(tmp_path / "crashed", "smoke_ppo", *words)
    gc.collect()
    assert run.main(load_config(tmp_path / "crashed" / "config.yaml"), tmp_path / "crashed") == 0
    again = weights(tmp_path / "crashed")
    assert again.keys() == found.keys() and all(torch.equal(again[name], found[name]) for name in found)


def test_a_whole_model_is_trained_in_full_and_first_expects_nothing(tmp_path: Path) -> None:
    folder = trained_run(tmp_path / "run", "smoke_ppo", *PPO, BF16, "stage.value=model")
    found = {name: each for name, each in weights(folder).items() if name.startswith("value_model.")}
    assert any("embed_tokens" in name for name in found) and found["value_model.lm.score.weight"].any()
    assert {each.dtype for each in found.values()} == {torch.float32}
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["val/explained_var"] == 0  # it says 0 of everything


def test_what_a_value_model_starts_from_follows_its_run_into_half_precision(tmp_path: Path, reward_run: Path) -> None:
    words = [*PPO, BF16, "stage.value=model", f"stage.value_path={reward_run}"]
    folder = trained_run(tmp_path / "run", "smoke_ppo", *words)
    found = {name: each for name, each in weights(folder).items() if name.startswith("value_model.")}
    assert {each.dtype for each in found.values()} == {torch.float32}


def composed(*words: str) -> RunConfig:
    return compose_run("smoke_ppo", list(words)).config


def refusal(*words: str) -> str:
    config = composed(*words)
    with pytest.raises(UserError) as caught:
        check_ppo(config, prepare_data(config, show_progress=False))
    return str(caught.value)


def test_a_model_that_cannot_be_a_value_model_is_refused_before_weights(tmp_path: Path, reward_run: Path) -> None:
    def of(path: object) -> str:
        return refusal("stage.value=model", f"stage.value_path={path}")

    tokenizer = AutoTokenizer.from_pretrained(materialize("tiny_llama"))
    tiny = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name, config in {
        "labels": LlamaConfig(**tiny, intermediate_size=16, num_labels=3, pad_token_id=0),
        "encoder": BertConfig(**tiny, intermediate_size=16, num_labels=1),
        "short": GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=16, n_layer=1, n_head=2, num_labels=1),
    }.items():
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    assert "3 labels" in of(tmp_path / "labels")
    assert "no decoder" in of(tmp_path / "encoder")
    assert "no decoder" in of("builtin:tiny_t5")
    assert "16 positions" in of(tmp_path / "short")
    shutil.copytree(tmp_path / "labels", tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text((materialize("tiny_llama") / "config.json").read_text())
    more = AutoTokenizer.from_pretrained(tmp_path / "other")
    more.add_tokens(["<more>"])
    more.save_pretrained(tmp_path / "other")
    assert "another vocabulary" in of(tmp_path / "other") and "1 of" in of(tmp_path / "other")
    assert "without the run" in of(shutil.copytree(reward_run / "adapter", tmp_path / "adapter"))
    assert "stage.value_path" in of("builtin:nothing")


def test_stop_tokens_are_single_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(materialize("tiny_llama"))
    (end,) = tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]
    assert stop_token_ids(["<|im_end|>", "a"], tokenizer)[0] == end
    said = refusal("stage.stop_tokens=['<|im_end|>','ab','']")
    assert "stage.stop_tokens" in said and "'ab': 'a' + 'b'" in said and "'': no token" in said
    assert "im_end" not in said


def test_tune_check_says_what_is_wrong_with_rewards_and_stop_tokens() -> None:
    exact = ["reward.rules.rule=exact_match", "reward.rules.column=nothing", "reward.rules.pattern=null"]
    cases = {"reward.rules.column": exact, "stage.stop_tokens": ["stage.stop_tokens=[ab]"]}
    for where, words in cases.items():
        _, problems, _ = lint(composed(*words))
        assert [problem.where for problem in problems] == [where]
    assert not lint(composed())[1]


@pytest.mark.parametrize(("words", "factor"), [([], 1.0), (["stage.value_learning_rate=5e-2"], 5.0)])
def test_a_value_model_has_its_own_learning_rate_and_nothing_of_the_policys_methods(
    words: list[str], factor: float
) -> None:
    config = composed("stage.value=model", "peft.lora.loraplus_lr_ratio=8", "train.pull_to_start=1", *words)
    policy = Policy(causal_lm())
    policy.value_model = ValueModel(scoring_lm(), packed=True)
    for lm in (policy.lm, policy.value_model.lm):
        inject(lm, config.peft, seed=0)
    factors = rate_factors(policy, config.peft) | head_factors(policy, config)
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    own = {name for name in trained if name.startswith("value_model.")}
    assert {round(factors[name], 9) for name in own} == {factor}
    assert {factors.get(name, 1.0) for name in trained.keys() - own} == {1.0, 8.0}
    (hook,) = pull_hooks(config, policy, build_optimizer(policy, config.train, factors))
    assert set(hook.starts) == {trained[name] for name in trained.keys() - own}


def test_a_policy_has_positions_for_its_longest_answer() -> None:
    said = refusal("model=tiny_gpt2", "stage.max_new_tokens=5000")
    assert said.startswith("stage.max_new_tokens: ") and "positions, and prompts with answers are up to" in said
