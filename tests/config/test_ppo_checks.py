"""What is wrong with stage ppo and the group reward, all at once and with a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run, load_config
from tunecli.config.errors import ConfigError
from tunecli.config.reward import RewardModelConfig, RulesConfig
from tunecli.config.run import to_yaml


def problems(*words: str, recipe: str = "smoke_ppo") -> dict[str, str]:
    return {each.where: each.what for each in find_problems(compose_run(recipe, list(words)).config)}


@pytest.mark.parametrize("recipe", ["smoke_ppo", "smoke_rloo", "smoke_grpo"])
def test_smoke_recipes_are_right(recipe: str) -> None:
    assert problems(recipe=recipe) == {}


@pytest.mark.parametrize("recipe", ["ppo_sentiment", "rloo_sentiment", "grpo_sentiment", "ppo_llama3_8b"])
def test_a_recipe_with_a_reward_model_says_how_to_make_one(recipe: str) -> None:
    found = {each.where: each for each in find_problems(compose_run(recipe, []).config)}
    problem = found["reward.reward_model.path"]
    assert "recipe=reward_sentiment" in problem.fix and "reward.reward_model.path=outputs/" in problem.fix


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("stage.rollout_batch_size=6", "stage.rollout_batch_size"),
        ("stage.num_samples=3", "stage.rollout_batch_size"),
        ("stage.advantage=rloo", "stage.num_samples"),
        ("stage.temperature=0", "stage.temperature"),
        ("stage.top_p=1.5", "stage.top_p"),
        ("stage.min_new_tokens=9", "stage.min_new_tokens"),
        ("stage.kl_target=3", "stage.kl_target"),
        ("stage.kl_in=loss", "stage.kl_estimator"),
        ("peft.lora.lora_dropout=0.1", "peft.lora.lora_dropout"),
        ("evaluation.exact_match=3", "evaluation.exact_match"),
        ("train.best_metric=eval/accuracy", "train.best_metric"),
        ("reward.rules.weight=0", "reward.rules.weight"),
        ("reward.rules.length=5", "reward.rules.length"),
        ("reward.rules.pattern='['", "reward.rules.pattern"),
        ("reward.rules.rule=exact_match", "reward.rules.column"),
        ("reward=reward_model", "reward.reward_model.path"),
        ("reward=custom", "reward.custom.custom"),
    ],
)
def test_mistakes(word: str, key: str) -> None:
    assert key in problems(word)


def test_what_does_nothing_is_refused() -> None:
    words = ["stage.advantage=rloo", "stage.num_samples=2", "stage.lam=0.5", "stage.vf_coef=1"]
    assert set(problems(*words)) == {"stage.lam", "stage.vf_coef"}


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["stage.value_path=builtin:tiny_llama"], "stage.value_path"),
        (["stage.value=model", "stage.value_path=./nowhere"], "stage.value_path"),
        (["stage.value=model", "model.quantization=nf4"], "stage.value_path"),
        (["stage.value=model", "stage.advantage=rloo", "stage.num_samples=2"], "stage.value"),
        (["stage.value=model", "stage.language_model=seq2seq_lm", "model=tiny_t5"], "stage.value"),
        (["stage.value=model", "peft=prompt_tuning"], "stage.value"),
    ],
)
def test_value_models_that_cannot_be_or_do_nothing(words: list[str], key: str) -> None:
    assert set(problems(*words)) == {key}
    assert problems("stage.value=model") == {}


def test_a_stage_that_asks_for_no_reward_refuses_one() -> None:
    assert "reward" in problems("+reward=rules", recipe="smoke_sft_lora")


def test_ppo_needs_a_reward() -> None:
    words = ["data=smoke_prompts", "stage=ppo", "train.best_metric=eval/score", "train.global_batch_size=4"]
    assert set(problems(*words, recipe="smoke_sft_lora")) == {"reward"}


def test_rewards_are_an_ordered_mapping_like_methods(tmp_path: Path) -> None:
    words = ["reward=[rules,reward_model]", "+reward@reward.second=rules", "reward.reward_model.path=assets/x"]
    words += ["reward.second.rule=json_valid", "reward.second.weight=-0.5"]
    config = compose_run("smoke_ppo", words).config
    assert [(name, type(each)) for name, each in config.reward.items()] == [
        ("rules", RulesConfig),
        ("reward_model", RewardModelConfig),
        ("second", RulesConfig),
    ]
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reward.custom.weight=2"], r"no entry 'custom' in reward.*\n.*reward=\[rules,custom\]"),
        (["reward.rules.kind=custom"], "only records which option"),
        (["reward.rules.wieght=2"], "did you mean reward.rules.weight"),
        (["reward=[rules,rules]"], r"\+reward@reward.second=rules"),
    ],
)
def test_wrong_keys_are_told(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose_run("smoke_ppo", words)
