"""Every shipped YAML: it says what it is, it composes, and its options can be exchanged for every other."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tunecli.config.compose import SOURCE_KEYS, compose_run, load_config
from tunecli.config.errors import UserError
from tunecli.config.judge import JUDGE_SCHEMAS
from tunecli.config.paths import GROUPS, config_root, option_names, recipe_names, recipe_root, summary
from tunecli.config.peft import PEFT_SCHEMAS, LoraConfig
from tunecli.config.run import RunConfig, to_yaml
from tunecli.config.stage import STAGE_SCHEMAS
from tunecli.config.store import SCHEMAS
from tunecli.config.yaml_file import YamlFile

RECIPES = recipe_names()
IN_SOME = ("judge",)
"""Groups that most recipes choose nothing of."""
WORDS = [[f"{group}={option}" for option in option_names(group)] for group in GROUPS if group not in IN_SOME]
# One option of each group at a time, so that few compositions hold every option once.
CHOICES = [tuple(words[i % len(words)] for words in WORDS) for i in range(max(map(len, WORDS)))]
# Groups know nothing of each other: every option in two recipes, every recipe with some options of every group.
PAIRS = [(RECIPES[(i + shift) % len(RECIPES)], choices) for i, choices in enumerate(CHOICES) for shift in (0, 7)]
FILES = sorted([*recipe_root().glob("*.yaml"), *config_root().glob("*/*.yaml")])


REWARD = GROUPS.index("reward")


def _added(recipe: str, choice: str) -> str:
    """Most recipes choose no reward that another could replace."""
    return choice if "- reward:" in (recipe_root() / f"{recipe}.yaml").read_text() else f"+{choice}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_composes_and_knows_its_name(recipe: str):
    composed = compose_run(recipe, [])
    assert composed.config.recipe == recipe
    assert composed.notes == []


@pytest.mark.parametrize(
    ("recipe", "choices"), PAIRS, ids=lambda each: each if isinstance(each, str) else " ".join(each)
)
def test_options_fit_into_recipes(recipe: str, choices: tuple[str, ...]):
    adds = {choice: choice for choice in choices} | {choices[REWARD]: _added(recipe, choices[REWARD])}
    composed = compose_run(recipe, [*adds.values(), "model.path=org/mine", "data.path=mine.jsonl"])
    files = {layer.file.path for layer in composed.layers}
    for choice in choices:
        group, _, option = choice.partition("=")
        assert config_root() / group / f"{option}.yaml" in files


ADDED = [f"+{group}={option}" for group in IN_SOME for option in option_names(group)]
NAMED = {"judge": ["judge.path=mine", "judge.model=mine"]}
"""What says which model it is, where an option does not."""


@pytest.mark.parametrize("word", ADDED)
def test_options_of_other_groups_can_be_added(word: str):
    group = word.strip("+").partition("=")[0]
    for named in NAMED[group]:
        try:
            config = compose_run("smoke_sft_lora", [word, named]).config
        except UserError as error:
            assert f"there is no key '{named.partition('=')[0]}'" in str(error)
        else:
            assert load_config_of(config) == config
            return
    pytest.fail(word)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_says_what_it_is(path: Path):
    assert len(summary(path)) > 15


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_on_what_it_runs_and_what_to_expect(recipe: str):
    text = (recipe_root() / f"{recipe}.yaml").read_text()
    comment = text[: text.index("defaults:")]
    assert "Hardware:" in comment and "Expected time and result:" in comment


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_body_never_sets_what_identifies_an_option_that_it_selects(recipe: str):
    body = YamlFile(recipe_root() / f"{recipe}.yaml").body()
    assert not [path for path in body if len(path) > 1 and path[1] in SOURCE_KEYS.get(path[0], ())]


def load_config_of(config: RunConfig) -> RunConfig:
    """Written and read back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(to_yaml(config))
        return load_config(path)


def test_every_schema_has_an_option_file():
    assert set(GROUPS) == set(SCHEMAS) == {path.name for path in config_root().iterdir()}
    assert set(PEFT_SCHEMAS) | {"full"} == set(option_names("peft"))
    assert set(STAGE_SCHEMAS) == set(option_names("stage"))
    assert set(JUDGE_SCHEMAS) <= set(option_names("judge"))


@pytest.mark.parametrize("option", option_names("peft"))
def test_a_peft_option_lands_under_its_own_name(option: str):
    config = compose_run("smoke_sft_full", [f"peft={option}"]).config
    expected = {} if option == "full" else {option: PEFT_SCHEMAS[option]}
    assert {name: type(method) for name, method in config.peft.items()} == expected


def test_qlora_llama65b_has_the_settings_of_guanaco():
    config = compose_run("qlora_llama65b", []).config
    assert config.model.path == "huggyllama/llama-65b"
    assert config.model.quantization.value == "nf4" and config.model.double_quantization
    assert config.peft == {
        "lora": LoraConfig(r=64, lora_alpha=16, lora_dropout=0.05, target_modules=["all-linear"]),
    }
    train = config.train
    assert (train.learning_rate, train.lr_scheduler.value, train.warmup_steps) == (1e-4, "constant", 0)
    assert (train.global_batch_size, train.max_steps, config.data.max_length) == (16, 1875, 512)
    assert (train.optimizer.value, train.max_grad_norm, train.adam_beta2) == ("paged_adamw_32bit", 0.3, 0.999)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("smoke_")])
def test_smoke_recipes_are_short_and_need_no_files(recipe: str):
    config = compose_run(recipe, []).config
    steps = config.train.max_steps
    assert config.stage.name == "label" or (steps is not None and steps <= 10)
    assert all(path.startswith("builtin:") for path in (config.model.path, config.data.path))
