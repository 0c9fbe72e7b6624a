"""The ready data sets in configs/data: each says how it is read, so that nothing is guessed from the rows."""

from __future__ import annotations

import string

import pytest
import yaml

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.data_checks import FORMATS
from tunecli.config.paths import config_root, option_names

OPEN = {"file": "data.path=org/set", "mix": "data.mix=[{path: org/set}]"}
"""Options that leave the source to the user, and how one is given."""
NEED_ASSETS = {"wnut16", *(name for name in option_names("data") if name.startswith(("sentiment_", "movie_")))}
STAGE_OF = {"classification": "classify", "pair_classification": "classify", "tagging": "tag", "seq2seq": "seq2seq"}
STAGE_OF |= {"preference": "reward"}
FOR_LATER = {"smoke_feedback", "smoke_prompts"}
"""Options whose format no stage of STAGE_OF reads."""
PUBLIC = [name for name in option_names("data") if name not in OPEN]


def option(name: str) -> dict:
    return yaml.safe_load((config_root() / "data" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", [name for name in option_names("data") if name not in NEED_ASSETS | FOR_LATER])
def test_an_option_passes_every_check(name: str):
    given = [OPEN[name]] if name in OPEN else []
    given += [f"stage={STAGE_OF[format]}" for format in [option(name).get("format")] if format in STAGE_OF]
    composed = compose_run("smoke_sft_full", [f"data={name}", "train.eval_every=null", *given])
    assert find_problems(composed.config) == []


@pytest.mark.parametrize("name", PUBLIC)
def test_an_option_says_which_columns_its_format_reads(name: str):
    values = option(name)
    assert set(values.get("columns", {})) <= set(FORMATS[values["format"]])


@pytest.mark.parametrize("name", PUBLIC)
def test_columns_name_one_column_or_a_text_around_columns(name: str):
    for column in option(name).get("columns", {}).values():
        fields = [field for _, field, _, _ in string.Formatter().parse(column) if field]
        assert fields if "{" in column else column.replace(".", "_").isidentifier()


def test_no_set_is_there_twice():
    keys = ("path", "subset", "split", "format")
    sources = [tuple(option(name).get(key) for key in keys) for name in PUBLIC]
    assert len(set(sources)) == len(sources)


def test_mix_takes_sources_and_nothing_else():
    config = compose_run("smoke_sft_full", ["data=mix", "data.mix=[{path: a/b}, {path: c/d}]"]).config
    assert config.data.path is None and [source.path for source in config.data.mix] == ["a/b", "c/d"]
    assert "neither path nor mix" in str(
        find_problems(compose_run("smoke_sft_full", ["data=mix", "train.eval_every=null"]).config)[0]
    )
