"""Mistakes with the stages `pretrain` and `verbalize` are found, named by their key, and mended by their fix."""

from __future__ import annotations

import pytest

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.errors import Problem


def problems_of(recipe: str, *overrides: str) -> list[Problem]:
    return find_problems(compose_run(recipe, list(overrides)).config)


@pytest.mark.parametrize("recipe", ["smoke_pretrain", "smoke_mlm"])
def test_shipped_recipes_have_no_problem(recipe: str) -> None:
    assert problems_of(recipe) == []


MISTAKES = {
    ("smoke_mlm", "stage.mask_probability=0"): ("stage.mask_probability", "greater than 0"),
    ("smoke_pretrain", "stage.mask_probability=0.3"): ("stage.mask_probability", "stage.objective=masked_lm"),
    ("smoke_mlm", "evaluation.choices=[a,b]"): ("evaluation.choices", "evaluation.choices=[]"),
    ("smoke_mlm", "evaluation.prompts=[a]"): ("evaluation.prompts", "evaluation.prompts=[]"),
    ("smoke_mlm", "data.format=messages"): ("data.format", "data.format=text"),
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_a_mistake_is_the_only_problem_and_has_its_fix(words: tuple[str, ...]) -> None:
    where, fix = MISTAKES[words]
    (problem,) = problems_of(*words)
    assert problem.where == where
    assert fix in problem.fix
