"""What `tune check` says of virtual tokens without reading a row."""

from __future__ import annotations

import pytest

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.errors import Problem

COLUMNS = "peft.p_tuning.template='{v3} {text} It was {v2} {label}'"
BETWEEN = "peft.p_tuning.template='{v3} {prompt} {v2} {completion}'"

FEW = "peft.prompt_tuning.num_virtual_tokens=2"


def problems_of(*words: str) -> list[Problem]:
    return find_problems(compose_run("smoke_sft_lora", [*words]).config)


@pytest.mark.parametrize(
    "words",
    [
        ["peft=prompt_tuning"],
        ["peft=prompt_tuning", "peft.prompt_tuning.init=random_uniform"],
        ["peft=prompt_tuning", "peft.prompt_tuning.init=text", "peft.prompt_tuning.init_text='Answer this:'"],
        ["peft=prompt_tuning", "peft.prompt_tuning.init=labels", "peft.prompt_tuning.init_labels=[good,bad]"],
        ["peft=p_tuning"],
        ["peft=p_tuning", COLUMNS, "data.format=columns"],
        ["peft=p_tuning", COLUMNS, "data.format=custom:my_pkg.formats:convert"],
        ["peft=p_tuning", BETWEEN, "stage.turns=last"],
        ["peft=[prompt_tuning,p_tuning,lora]"],
        ["peft=prompt_tuning", "+peft@peft.second=prompt_tuning"],
        ["peft=[prefix_tuning,p_tuning_v2]"],
        ["peft=prompt_tuning", "data.max_length=21"],
    ],
)
def test_what_is_right_passes(words: list[str]):
    assert problems_of(*words) == []


@pytest.mark.parametrize(
    ("words", "where", "what", "fix"),
    [
        (
            ["peft=prompt_tuning", "peft.prompt_tuning.init=text"],
            "peft.prompt_tuning.init_text",
            "not set",
            "init_text=",
        ),
        (
            ["peft=prompt_tuning", "peft.prompt_tuning.init=labels"],
            "peft.prompt_tuning.init_labels",
            "empty",
            "[positive,negative]",
        ),
        (
            ["peft=prompt_tuning", "peft.prompt_tuning.init=labels", "peft.prompt_tuning.init_labels=[a,b,c]", FEW],
            "peft.prompt_tuning.init_labels",
            "are 3, and there are 2",
            "num_virtual_tokens=3",
        ),
        (
            ["peft=prompt_tuning", "peft.prompt_tuning.num_virtual_tokens=0"],
            "peft.prompt_tuning.num_virtual_tokens",
            "is 0",
            "greater than 0",
        ),
        (
            ["peft=p_tuning", "peft.p_tuning.template='{text} {label}'"],
            "peft.p_tuning.template",
            "has no virtual tokens",
            "{v20} {prompt} {completion}",
        ),
        (
            ["peft=p_tuning", "peft.p_tuning.template='{v3} {text} {mask}'", "data.format=columns"],
            "peft.p_tuning.template",
            "for masked language models",
            "{label}",
        ),
        (["peft=p_tuning", COLUMNS], "peft.p_tuning.template", "columns of rows (text, label)", "format=columns"),
        (["peft=p_tuning", BETWEEN], "peft.p_tuning.template", "in front of {completion}", "stage.turns=last"),
        (
            ["peft=p_tuning", COLUMNS, "data.format=columns", "stage.train_on_prompt=true"],
            "stage.train_on_prompt",
            "only {label} is trained",
            "train_on_prompt=false",
        ),
        (["peft=lora", "data.format=columns"], "data.format", "there is none that names any", "peft=p_tuning"),
        (["peft=p_tuning", "data.format=columns"], "data.format", "there is none that names any", "peft=p_tuning"),
        (
            ["peft=prompt_tuning", "data.max_length=20"],
            "data.max_length",
            "20 virtual tokens alone fill it",
            "max_length=40",
        ),
        (["peft=p_tuning", "+peft@peft.second=p_tuning"], "peft", "each have a template", "keep p_tuning; prompt_"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_once_with_a_fix(words: list[str], where: str, what: str, fix: str):
    (problem,) = problems_of(*words)
    assert problem.where == where
    assert what in problem.what
    assert fix in (problem.fix or "")
