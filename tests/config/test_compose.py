"""Laws of composing: the swap rule, the order of adapters, and that every mistake is reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunecli.config.compose import compose_run, load_config
from tunecli.config.errors import ConfigError, UserError
from tunecli.config.model import Quantization
from tunecli.config.peft import BitFitConfig, LoraConfig
from tunecli.config.peft_facts import BY_VALUES


def problems_of(recipe: str, *overrides: str) -> list[tuple[str, str, str]]:
    with pytest.raises(ConfigError) as caught:
        compose_run(recipe, list(overrides))
    return [(problem.where, problem.what, problem.fix) for problem in caught.value.problems]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a file below the current folder, which is an empty one with a space in its name."""
    folder = tmp_path / "my recipes"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def write_file(name: str, text: str) -> str:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return f"./{name}"

    return write_file


BASE = """\
defaults:
  - run
  - model: tiny_llama
  - data: smoke
  - peft: [lora]
  - stage: sft
  - launch: cpu
  - _self_
"""


def test_quantization_survives_a_change_of_model():
    config = compose_run("qlora_llama65b", ["model=llama_7b"]).config
    assert config.model.path == "huggyllama/llama-7b"
    assert config.model.quantization is Quantization.nf4


def test_full_fine_tuning_of_a_lora_recipe_has_no_entry_and_says_what_fell_away():
    composed = compose_run("sft_lora_smollm2", ["peft=full"])
    assert composed.config.peft == {}
    (note,) = composed.notes
    assert "peft.lora.r" in note and "peft.lora.target_modules" in note and "peft is now full" in note


def test_what_is_not_swapped_leaves_no_note():
    assert compose_run("sft_lora_smollm2", ["model=tiny_llama", "peft=lora", "train.max_steps=3"]).notes == []


@pytest.mark.parametrize("recipe", ["smoke_sft_full", "smoke_sft_lora"])
@pytest.mark.parametrize("order", [["lora", "bitfit"], ["bitfit", "lora"]])
def test_several_methods_keep_their_order(recipe: str, order: list[str]):
    config = compose_run(recipe, [f"peft=[{','.join(order)}]", "peft.lora.r=7"]).config
    assert list(config.peft) == order
    assert isinstance(config.peft["lora"], LoraConfig) and config.peft["lora"].r == 7
    assert isinstance(config.peft["bitfit"], BitFitConfig)


@pytest.mark.parametrize("option", ["lora", "ia3"])
def test_an_entry_is_not_chosen_twice_as_the_later_choice_would_undo_the_recipe(option: str):
    ((where, what, fix),) = problems_of("smoke_sft_lora", "peft=[lora]", f"+peft@peft.lora={option}")
    assert where == "peft.lora" and "twice" in what and f"+peft@peft.second={option}" in fix


@pytest.mark.parametrize(
    ("word", "what", "fix"),
    [
        ("peft=qlora", "qlora is no method", "peft=lora model.quantization=nf4"),
        ("peft=DoRA", "DoRA is no method", "peft.lora.use_dora=true"),
        ("peft=lora+", "lora+ is no method", "loraplus_lr_ratio"),
        ("peft=pissa", "pissa is no method", "init_lora_weights=pissa"),
        ("peft.dora.r=2", "dora is no method", "peft.lora.use_dora=true"),
        ("peft.houlsby.dropout=0.1", "no entry 'houlsby' in peft, which has lora", "peft=[lora,houlsby]"),
        ("peft.loar.r=2", "no entry 'loar'", "did you mean lora?"),
        ("peft.second=lora", "no entry 'second'", "+peft@peft.second=lora"),
    ],
)
def test_a_method_by_another_name_or_not_chosen_is_refused_with_the_words_to_type(word: str, what: str, fix: str):
    ((_, said, mend),) = problems_of("smoke_sft_lora", word)
    assert what in said and fix in mend


def test_values_that_a_hint_names_exist():
    for words in BY_VALUES.values():
        compose_run("smoke_sft_lora", words.split())


def test_a_second_lora_has_values_of_its_own():
    config = compose_run("smoke_sft_lora", ["+peft@peft.second=lora", "peft.second.r=2"]).config
    assert {name: method.r for name, method in config.peft.items()} == {"lora": 4, "second": 2}


def test_full_and_an_adapter_exclude_each_other(write):
    ((where, what, _),) = problems_of("smoke_sft_lora", "peft=[full,lora]")
    assert where == "command line" and "full" in what
    path = write("both.yaml", BASE.replace("peft: [lora]", "peft: [full, lora]"))
    ((where, what, _),) = problems_of(path)
    assert where == "both.yaml:5" and "full" in what


def test_the_written_text_reads_back_as_the_same_config(tmp_path: Path):
    words = ["+peft@peft.second=lora", "data.columns.messages=chat", "train.adam_epsilon=1e-9"]
    composed = compose_run("qlora_llama65b", words)
    path = tmp_path / "config.yaml"
    path.write_text(composed.text)
    assert load_config(path) == composed.config
    assert composed.config.recipe == "qlora_llama65b"


def test_reading_back_reports_every_mistake_with_its_line(tmp_path: Path):
    path = tmp_path / "config.yaml"
    lines = compose_run("smoke_sft_lora", []).text.replace("max_steps: 10", "max_steps: ten").splitlines()
    lines[lines.index("    r: 4")] = "    rank: 4"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    first, second = caught.value.problems
    assert first.where == f"{path}:{lines.index('    rank: 4') + 1}" and "peft.lora.r" in first.fix
    assert second.where == f"{path}:{lines.index('  max_steps: ten') + 1}" and "whole number" in second.fix


def test_reading_back_refuses_a_method_that_does_not_exist(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(compose_run("smoke_sft_lora", []).text.replace("method: lora", "method: lorra"))
    with pytest.raises(ConfigError, match=r"(?s)lorra.*did you mean lora\?"):
        load_config(path)


def test_every_problem_of_the_command_line_is_reported_at_once():
    problems = problems_of(
        "smoke_sft_lora",
        *(
            "modle=tiny_llama",
            "model=tiny_lama",
            "peft.lora.rank=8",
            "+peft.lora.rank=8",
            "lr=3",
            "train.max_steps=abc",
            "train.trackers=tensorboard",
            "train.max_grad_norm=null",
        ),
        *("train.lr_scheduler=cosin", "++seed=1", "~peft", "nothing", "seed=1,2", "+seed=3", "stage.name=dpo"),
    )
    assert {where for where, _, _ in problems} == {"command line"}
    fixes = {what: fix for _, what, fix in problems}
    assert len(problems) == 15
    expected = {
        "no key 'modle'": "did you mean model?",
        "no option 'tiny_lama'": "did you mean tiny_llama?",
        "no key 'peft.lora.rank'": "did you mean peft.lora.r?",
        "no key 'lr'": "did you mean train.learning_rate?",
        "train.max_steps is 'abc'": "whole number",
        "train.trackers takes a list": "train.trackers=[VALUE]",
        "train.max_grad_norm cannot be null": "tune show",
        "train.lr_scheduler is 'cosin'": "did you mean cosine?",
        "'++seed=1'": "seed=VALUE",
        "'~peft'": "another option",
        "cannot read 'nothing'": "key=value",
        "'seed=1,2' names several": "[a,b]",
        "+seed adds nothing": "seed=VALUE",
        "stage.name only records": "stage=NAME",
    }
    for what, fix in expected.items():
        assert any(what in found and fix in advice for found, advice in fixes.items()), what


def test_every_problem_of_a_recipe_is_reported_with_its_line(write):
    body = "train: {learnin_rate: 3, precision: bf15}\ntrain.max_steps: 3\n"
    body += "peft:\n  lora: {r: a}\n  bitfit: {}\nhydra: {x: 1}\n"
    problems = problems_of(write("mine.yaml", BASE + body), "seed=x")
    found = {(where, what) for where, what, _ in problems}
    assert found == {
        ("mine.yaml:9", "there is no key 'train.learnin_rate'"),
        ("mine.yaml:9", "train.precision is 'bf15'"),
        ("mine.yaml:10", "'train.max_steps' is a dotted key"),
        ("mine.yaml:12", "peft.lora.r is 'a'"),
        ("mine.yaml:13", "there is no entry 'bitfit' in peft, which has lora"),
        ("mine.yaml:14", "there is no key 'hydra.x'"),
        ("command line", "seed is 'x'"),
    }


def test_every_wrong_name_in_a_defaults_list_is_reported_with_its_line(write):
    text = "defaults:\n  - run\n  - model: tiny_lama\n  - dat: smoke\n  - smoke_sft_lor\n"
    problems = problems_of(write("mine.yaml", text))
    assert [(where, fix.split("?")[0]) for where, _, fix in problems] == [
        ("mine.yaml:3", "did you mean tiny_llama"),
        ("mine.yaml:4", "did you mean data"),
        ("mine.yaml:5", "did you mean smoke_sft_lora"),
    ]


def test_a_mistake_in_an_option_file_is_reported_with_its_line(write):
    write("model/mine.yaml", "defaults: [/schema/model/model@_here_, _self_]\npath: a/b\ndtyp: bfloat16\n")
    ((where, what, fix),) = problems_of(write("mine.yaml", BASE), "model=mine")
    assert (where, what) == ("model/mine.yaml:3", "there is no key 'model.dtyp'")
    assert "model.dtype" in fix


def test_a_peft_option_must_name_its_entry_and_its_schema(write):
    path = write("mine.yaml", BASE)
    write("peft/mine.yaml", "defaults: [/schema/peft/lora@_here_, _self_]\nr: 3\n")
    assert [where for where, _, fix in problems_of(path, "peft=mine") if "# @package peft.mine" in fix]
    write("peft/mine.yaml", "# @package peft.mine\nr: 3\n")
    assert [where for where, _, fix in problems_of(path, "peft=mine") if "/schema/peft/" in fix]
    write("peft/mine.yaml", "# @package peft.mine\ndefaults: [/schema/peft/lora@_here_, _self_]\nr: 3\n")
    assert compose_run(path, ["peft=mine"]).config.peft == {"mine": LoraConfig(r=3)}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("defaults: [run]\ntrain: {a: \n b: c: d\n", "cannot be read as YAML"),
        ("- a\n- b\n", "not a mapping"),
        ("", "does not begin from the schema"),
        ("train: {max_steps: 3}\n", "does not begin from the schema"),
        ("defaults: [run, mine]\n", "inherits itself"),
    ],
)
def test_files_that_are_no_recipe(write, text: str, what: str):
    ((where, found, _),) = problems_of(write("mine.yaml", text))
    assert where.startswith("mine.yaml") and what in found


def test_values_that_are_missing_are_named(write):
    ((where, _, fix),) = problems_of("smoke_sft_lora", "data=file")
    assert where == "data.path" and fix.startswith("data.path=FILE")
    path = write("mine.yaml", "defaults:\n  - run\n  - model: tiny_llama\n  - data: smoke\n")
    ((_, what, fix),) = problems_of(path)
    assert what == "none is chosen" and "stage: sft" in fix


def test_a_group_that_the_recipe_leaves_open_is_added_with_a_plus(write):
    path = write("mine.yaml", "defaults:\n  - run\n  - model: tiny_llama\n  - data: smoke\n  - stage: sft\n")
    ((_, _, fix),) = problems_of(path, "launch=cpu_2")
    assert "+launch=cpu_2" in fix
    assert compose_run(path, ["+launch=cpu_2"]).config.launch.num_processes == 2


@pytest.mark.parametrize("name", ["smoke_sft_lor", "./nowhere.yaml", "nowhere/at/all"])
def test_a_recipe_that_does_not_exist(name: str):
    with pytest.raises(UserError, match="tune ls"):
        compose_run(name, [])


def test_a_recipe_of_the_user_inherits_a_shipped_one_and_uses_options_beside_it(write):
    write("model/mine.yaml", "# mine\ndefaults: [/schema/model/model@_here_, _self_]\npath: a/b\n")
    text = "defaults:\n  - smoke_sft_lora\n  - override model: mine\n  - override peft: bitfit\n"
    composed = compose_run(write("child.yaml", text + "train: {learning_rate: 1e-4}\n"), [])
    assert composed.config.recipe == "child"
    assert composed.config.model.path == "a/b"
    assert composed.config.train.learning_rate == 1e-4  # plain YAML would read text here
    assert composed.config.train.max_steps == 10
    assert list(composed.config.peft) == ["bitfit"]
    assert "peft.lora.r" in composed.notes[0]


def test_where_data_comes_from_never_outlives_its_option(write):
    """Else `data=alpaca` would read the user's own file in alpaca's format."""
    path = write("mine.yaml", BASE.replace("smoke", "file") + "data: {path: mine.jsonl, max_length: 99}\n")
    assert compose_run(path, []).config.data.path == "mine.jsonl"
    swapped = compose_run(path, ["data=alpaca"])
    assert swapped.config.data.path == "tatsu-lab/alpaca"
    assert swapped.config.data.max_length == 99
    assert len(swapped.notes) == 1 and "data.path" in swapped.notes[0]


def test_a_file_named_like_the_root_schema_is_refused(write):
    write("run.yaml", "seed: 3\n")
    ((_, what, fix),) = problems_of(write("mine.yaml", BASE))
    assert "run.yaml" in what and "rename" in fix


def test_mappings_with_free_keys_and_whole_sections_on_the_command_line():
    words = [
        "data.columns={messages: chat}",
        "data.columns.x=y",
        "train={max_steps: 3}",
        "peft.lora.target_modules=[a,b]",
    ]
    config = compose_run("smoke_sft_lora", words).config
    assert config.data.columns == {"messages": "chat", "x": "y"}
    assert config.train.max_steps == 3 and config.train.global_batch_size == 4
    assert config.peft["lora"].target_modules == ["a", "b"]


def test_a_mapping_with_free_keys_replaces_the_one_before():
    """Else labels of the recipe would stay beside those that were written, each with its word."""
    words = ["stage.verbalizer={yes: good, no: poor}", "stage.verbalizer.maybe=so"]
    stage = compose_run("smoke_verbalize", words).config.stage
    assert stage.verbalizer == {"yes": "good", "no": "poor", "maybe": "so"}  # of the recipe: positive, negative
    assert compose_run("smoke_verbalize", ["stage.verbalizer={}"]).config.stage.verbalizer == {}


def test_composing_leaves_the_process_as_it_was():
    import logging
    import os

    before = (os.getcwd(), list(logging.getLogger().handlers), logging.getLogger().level)
    compose_run("smoke_sft_lora", [])
    assert (os.getcwd(), list(logging.getLogger().handlers), logging.getLogger().level) == before


def test_methods_that_only_peft_has_are_refused_by_name(write):
    recipe = write("mine.yaml", BASE.replace("peft: [lora]", "peft: [hira]"))
    (problem,) = problems_of("smoke_sft_lora", "peft=[ia3,boft]")
    assert problem == (
        "command line", "peft has boft, but it is not supported here", "the nearest: peft=oft (tune ls peft)"
    )  # fmt: skip
    assert problems_of(recipe)[0][1:] == (
        "peft has hira, but it is not supported here",
        "the nearest: peft=loha (tune ls peft)",
    )


def test_they_are_refused_in_a_written_configuration_too(tmp_path: Path):
    written = tmp_path / "config.yaml"
    written.write_text(compose_run("smoke_sft_lora", []).text.replace("method: lora", "method: xlora"))
    with pytest.raises(ConfigError, match="peft has xlora, but it is not supported here"):
        load_config(written)


@pytest.mark.parametrize(
    ("word", "what", "fix"),
    [
        ("peft@peft.second=lora", "no peft@peft.second that could be", "+peft@peft.second=lora adds one; peft=lora"),
        ("peft@second=lora", "no place 'second' for peft lora", "+peft@peft.NAME=lora"),
        ("+peft@peft.second=[ia3,vera]", "no place 'peft.second' for peft ia3, vera", "+peft@peft.NAME=ia3"),
        ("+model@x=tiny_llama", "no place 'x' for model tiny_llama", "model=tiny_llama"),
    ],
)
def test_an_entry_in_the_wrong_place_is_explained(word: str, what: str, fix: str):
    ((where, said, mended),) = problems_of("smoke_sft_lora", word)
    assert where == "command line" and what in said and mended.startswith(fix)


def test_of_many_options_the_nearest_are_named():
    ((_, _, fix),) = problems_of("smoke_sft_lora", "data=glue_sts")
    assert fix.startswith("did you mean glue_stsb or ") and "`tune ls data` lists all " in fix and len(fix) < 120
    ((_, _, few),) = problems_of("smoke_sft_lora", "stage=sfx")
    assert "did you mean sft? options: classify, " in few
