"""What `tune check` says of the data group without reading a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.errors import Problem


@pytest.fixture(autouse=True)
def inside_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.csv"):
        Path(name).touch()
    Path("parts").mkdir()
    Path("parts/test.jsonl").touch()


def problems_of(*words: str) -> list[Problem]:
    return find_problems(compose_run("smoke_sft_lora", [*words]).config)


MIX = ["data=mix", "data.mix=[{path:a.jsonl,weight:2},{path:b.csv,weight:1}]"]


@pytest.mark.parametrize(
    "words",
    [
        ["data=file", "data.path=a.jsonl"],
        ["data=file", "data.path=parts", "data.validation=split:test"],
        ["data=file", "data.path='*.jsonl'"],
        ["data=file", "data.path=org/set", "data.validation=split:dev"],
        ["data.format=custom:my_pkg.formats:convert", "data.columns={anything: x}"],
        [*MIX, "data.mixing=weights"],
        [*MIX, "data.mixing=weights", "data.streaming=true", "data.validation=builtin:smoke"],
        [
            "data=mix",
            "data.mix=[{path:a.jsonl},{path:b.csv}]",
            "data.mixing=temperature",
            "data.mixing_temperature=5",
        ],
        ["data.system=replace", "data.system_prompt=Hello"],
        ["data.truncation_side=left"],
        ["data.chat_template_kwargs.enable_thinking=false"],
    ],
)
def test_what_is_right_passes(words: list[str]):
    assert problems_of(*words) == []


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["data.path=null"], "data", "neither path nor mix"),
        (["data.mix=[{path:a.jsonl}]"], "data", "both set"),
        (["data=mix", "data.mix=[{path:c.jsonl}]"], "data.mix[0].path", "does not exist"),
        (["data=file", "data.path='*.tsv'"], "data.path", "does not exist"),
        (["data.format=mesages"], "data.format", "no format 'mesages'"),
        (["data.format=custom:convert"], "data.format", "does not name a module and a function"),
        (["data.columns={mesages: x}"], "data.columns.mesages", "no such column"),
        (["data=mix", "data.mix=[{path:a.jsonl,format:x}]"], "data.mix[0].format", "no format 'x'"),
        (["data=mix", "data.mix=[{path:a.jsonl,max_samples:0}]"], "data.mix[0].max_samples", "is 0"),
        (["data.max_samples=0"], "data.max_samples", "is 0"),
        (["data.num_workers=0"], "data.num_workers", "is 0"),
        (["data.mixing=equal"], "data.mixing", "one source"),
        (["data.mixing_temperature=3"], "data.mixing_temperature", "no meaning for mixing=proportional"),
        (MIX, "data.mix[0].weight", "no meaning for mixing=proportional"),
        (["data=mix", "data.mix=[{path:a.jsonl}]", "data.mixing=weights"], "data.mix[0].weight", "is missing"),
        (["data=mix", "data.mix=[{path:a.jsonl,weight:-1}]", "data.mixing=weights"], "data.mix[0].weight", "is -1"),
        (["data.validation=1.5"], "data.validation", "is 1.5"),
        (["data.validation=0"], "data.validation", "is 0"),
        (["data.validation=gone.jsonl"], "data.validation", "does not exist"),
        (["data.validation=split:dev"], "data.validation", "has no splits"),
        ([*MIX, "data.mixing=weights", "data.validation=split:dev"], "data.validation", "no splits of its own"),
        (["data.validation=0.1", "data.streaming=true"], "data.validation", "while they stream"),
        (["data.system=add"], "data.system_prompt", "is empty"),
        (["data.system_prompt=Hello"], "data.system_prompt", "no meaning for system=keep"),
        (["stage.train_on_prompt=true", "stage.turns=last"], "stage.turns", "every token"),
        (["data.overlong=split", "data.truncation_side=left"], "data.truncation_side", "overlong=split"),
        (["data.chat_template_kwargs.tools=[]"], "data.chat_template_kwargs.tools", "set by tunecli itself"),
        (["data.chat_template=chatlm"], "data.chat_template", "neither a template's name nor a file"),
        (["data.streaming=true", "train.max_steps=null"], "train.max_steps", "length of a stream"),
        (["data.streaming=true", "data.num_workers=2"], "data.num_workers", "streaming=true"),
        (
            ["data=mix", "data.mix=[{path:a.jsonl},{path:b.csv}]", "data.streaming=true", "data.validation=a.jsonl"],
            "data.mixing",
            "needs the sizes",
        ),
    ],
)
def test_what_is_wrong_is_said_once_with_its_fix(words: list[str], where: str, what: str):
    (problem,) = [problem for problem in problems_of(*words) if problem.where == where]
    assert what in problem.what
    assert problem.fix


def test_a_wrong_key_of_an_entry_is_named():
    from tunecli.config.errors import ConfigError

    with pytest.raises(ConfigError, match="data.mix has an entry with 'wieght'\n.*did you mean weight"):
        compose_run("smoke_sft_lora", ["data=mix", "data.mix=[{path:a.jsonl,wieght:2}]"])


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["data.validation=null", "evaluation.exact_match=3"], "evaluation.exact_match", "no validation data"),
        (["data.validation=null", "evaluation.choices=[a,b]"], "evaluation.choices", "no validation data"),
        (["evaluation.choices=[a]"], "evaluation.choices", "are ['a']"),
        (["evaluation.choices=[a,a]"], "evaluation.choices", "are ['a', 'a']"),
        (["evaluation.temperature=1"], "evaluation.temperature", "no prompts"),
        (["evaluation.exact_match=-1"], "evaluation.exact_match", "is -1"),
        (["train.eval_every=null", "train.keep_best=true"], "train.keep_best", "evaluations to go by"),
        (["train.eval_every=null", "train.early_stopping=1"], "train.early_stopping", "evaluations to go by"),
        (["train.best_metric=los"], "train.best_metric", "no metric of an evaluation"),
        (["train.max_minutes=0"], "train.max_minutes", "is 0"),
    ],
)
def test_evaluations_that_cannot_be_made_are_refused(words: list[str], where: str, what: str):
    (problem,) = [problem for problem in problems_of(*words) if problem.where == where]
    assert what in problem.what


def test_prompts_need_no_validation_data():
    assert problems_of("data.validation=null", "evaluation.prompts=[hi]") == []
