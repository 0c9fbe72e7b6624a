"""Mistakes with the stages `pretrain` and `verbalize` are found, named by their key, and mended by their fix."""

from __future__ import annotations

import pytest

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.errors import Problem


def problems_of(recipe: str, *overrides: str) -> list[Problem]:
    return find_problems(compose_run(recipe, list(overrides)).config)


CAUSAL = ("model=tiny_llama", "stage.language_model=causal_lm")


@pytest.mark.parametrize("recipe", ["smoke_pretrain", "smoke_mlm", "smoke_verbalize"])
def test_shipped_recipes_have_no_problem(recipe: str) -> None:
    assert problems_of(recipe) == []


MISTAKES = {
    ("smoke_mlm", "stage.mask_probability=0"): ("stage.mask_probability", "greater than 0"),
    ("smoke_pretrain", "stage.mask_probability=0.3"): ("stage.mask_probability", "stage.objective=masked_lm"),
    ("smoke_mlm", "evaluation.choices=[a,b]"): ("evaluation.choices", "evaluation.choices=[]"),
    ("smoke_mlm", "evaluation.prompts=[a]"): ("evaluation.prompts", "evaluation.prompts=[]"),
    ("smoke_mlm", "data.format=messages"): ("data.format", "data.format=text"),
    ("smoke_mlm", "data.shots=4"): ("data.shots", "data.shots=null"),
    ("smoke_verbalize", "stage.templates=[]"): ("stage.templates", "stage.templates=["),
    ("smoke_verbalize", "stage.templates=['{text}.']"): ("stage.templates[0]", "stage.templates=["),
    ("smoke_verbalize", *CAUSAL): ("stage.templates[1]", "stage.language_model=masked_lm"),
    ("smoke_verbalize", "stage.verbalizer.negative=good"): ("stage.verbalizer", "another word"),
    ("smoke_verbalize", "stage.verbalizer.negative=''"): ("stage.verbalizer", "a word for each label"),
    ("smoke_verbalize", "evaluation.exact_match=5"): ("evaluation.exact_match", "evaluation.exact_match=0"),
    ("smoke_verbalize", "data.overlong=split"): ("data.overlong", "data.overlong=truncate"),
    ("smoke_verbalize", "data.format=text"): ("data.format", "classification or pair_classification"),
    ("smoke_verbalize", "peft=p_tuning", "peft.p_tuning.template='{v2} {text} {label}'"): (
        "peft.p_tuning.template",
        "{prompt} {completion}",
    ),
    ("smoke_classify", "data.shots=4", "stage.problem_type=multi_label"): ("data.shots", "data.shots=null"),
    ("smoke_classify", "data.shots=4", "stage.balanced=true"): ("stage.balanced", "leave it out"),
    ("smoke_verbalize", "train.max_steps=0", "data.validation=null", "train.eval_every=null"): (
        "train.max_steps",
        "data.validation=0.05",
    ),
}


@pytest.mark.parametrize("words", [("peft=p_tuning",), ("data.shots=8",), ("train.max_steps=0",)], ids=" ".join)
def test_what_goes_with_templates(words: tuple[str, ...]) -> None:
    assert problems_of("smoke_verbalize", *words) == []


def test_words_are_needed_where_rows_stream() -> None:
    config = compose_run(
        "smoke_verbalize", ["data.streaming=true", "data.validation=null", "train.eval_every=null"]
    ).config
    assert find_problems(config) == []
    config.stage.verbalizer.clear()
    (problem,) = find_problems(config)
    assert problem.where == "stage.verbalizer" and "data.streaming=false" in problem.fix


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_a_mistake_is_the_only_problem_and_has_its_fix(words: tuple[str, ...]) -> None:
    where, fix = MISTAKES[words]
    (problem,) = problems_of(*words)
    assert problem.where == where
    assert fix in problem.fix
