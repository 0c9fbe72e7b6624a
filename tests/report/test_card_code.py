"""The code in a card runs as it stands, and plain peft or transformers say what we say: for every method and task."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import finished
from training import trained_run

from tunecli.assembly.data import encoding_of
from tunecli.config.compose import compose_run, load_config
from tunecli.config.data import SystemPolicy
from tunecli.config.peft import PEFT_SCHEMAS
from tunecli.config.run import RunConfig
from tunecli.config.stage import Task
from tunecli.data.encode import RowEncoder
from tunecli.data.feed import window_of
from tunecli.data.formats import choose_format
from tunecli.data.rows import Row
from tunecli.peft_methods.loading import load
from tunecli.push import prepare
from tunecli.report.card import NAME
from tunecli.report.card_use import IN_PEFT, SOFT

SMALL: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "adalora": {"init_r": 4, "target_r": 2},
    "vera": {"r": 16},
    "oft": {"oft_block_size": 16},
    "bitfit": {"add_missing": True},
    "p_tuning": {"encoder_hidden_size": 16},
    "prefix_tuning": {"encoder_hidden_size": 16},
    "freeze": {"last_n_layers": 1},
}
"""Values that fit tiny models."""
CAUSAL = ["model=tiny_llama", "stage.language_model=causal_lm", "stage.templates=['{text} It was {mask}.']"]


@dataclass
class Piece:
    """Code of a card, after it ran."""

    code: str
    said: str
    names: dict[str, Any]

    @property
    def ids(self) -> list[int]:
        return self.names["inputs"]["input_ids"][0].tolist()


def executed(run: Path, changed: Callable[[str], str] = str) -> list[Piece]:
    text = (run / NAME).read_text()
    assert "None" not in text and "Init." not in text
    with contextlib.chdir(run):
        return [_executed(changed(code)) for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def _executed(code: str) -> Piece:
    names: dict[str, Any] = {}
    short = code.replace("max_new_tokens=64", "max_new_tokens=6")
    with contextlib.redirect_stdout(io.StringIO()) as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(short, "card", "exec"), names)
    return Piece(code, out.getvalue(), names)


def agreeing(run: Path, count: int) -> list[Piece]:
    """The pieces of its card: `count` of them, which all say the same."""
    pieces = executed(run)
    assert len(pieces) == count
    assert len({piece.said for piece in pieces}) == 1 and pieces[0].said
    return pieces


@pytest.fixture(scope="module")
def smoke() -> RunConfig:
    return compose_run("smoke_sft_lora", []).config


def run_of(folder: Path, smoke: RunConfig, methods: dict[str, str], column: str | None = None) -> Path:
    """A run that trained these entries: name -> method."""
    peft = {name: PEFT_SCHEMAS[method](**SMALL.get(method, {})) for name, method in methods.items()}
    return finished(folder, replace(smoke, peft=peft, data=replace(smoke.data, adapter_column=column)))


@pytest.mark.parametrize("method", PEFT_SCHEMAS)
def test_of_every_method(method: str, smoke: RunConfig, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", smoke, {method: method})
    ours, *theirs = agreeing(run, 2 if method in IN_PEFT else 1)
    if method in SOFT:
        assert max(ours.ids) >= len(ours.names["tokenizer"])  # its virtual tokens are there
    if theirs:
        assert_same_logits(ours, theirs[0])


def assert_same_logits(ours: Piece, theirs: Piece) -> None:
    ids = torch.tensor([ours.ids])
    with torch.no_grad():
        found = [piece.names["model"](input_ids=ids).logits for piece in (ours, theirs)]
    assert ours.ids == theirs.ids
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("methods", "in_peft"),
    [
        ({}, True),
        ({"one": "lora", "two": "lora"}, True),
        ({"one": "lora", "two": "ia3"}, False),
        ({"one": "lora", "two": "prompt_tuning"}, False),
    ],
    ids=["full", "two_loras", "lora_ia3", "lora_prompt"],
)
def test_of_mixtures(methods: dict[str, str], in_peft: bool, smoke: RunConfig, tmp_path: Path) -> None:
    pieces = agreeing(run_of(tmp_path / "run", smoke, methods), 1 + in_peft)
    if in_peft:
        assert_same_logits(*pieces)


def test_the_system_message_is_there(smoke: RunConfig, tmp_path: Path) -> None:
    data = replace(smoke.data, system=SystemPolicy.replace, system_prompt="Be brief.")
    ours, theirs = agreeing(finished(tmp_path / "run", replace(smoke, data=data)), 2)
    assert ours.ids == theirs.ids and "Be brief." in ours.names["tokenizer"].decode(ours.ids)


@pytest.mark.parametrize(("method", "column"), [("lora", "who"), ("prompt_tuning", "*")])
def test_of_adapters_of_which_one_is_on(method: str, column: str, smoke: RunConfig, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", smoke, {"ann": method, "ben": method}, column)
    pieces = agreeing(run, 2 if method == "lora" else 1)
    assert pieces[0].names["path"].endswith("/adapter/ann") and '# or "/adapter/ben"' in pieces[0].code
    with contextlib.chdir(run):
        other = _executed(pieces[0].code.replace("/adapter/ann", "/adapter/ben"))
    assert other.said != pieces[0].said


@pytest.mark.parametrize(
    ("methods", "column", "count"),
    [
        ({"lora": "lora"}, None, 2),
        ({"two": "lora", "one": "lora"}, None, 2),
        ({"two": "ia3", "one": "lora"}, None, 1),  # in their order, which is not that of their names
        ({"two": "prompt_tuning", "one": "lora"}, "who", 1),
    ],
    ids=["one", "two", "ordered", "alternatives"],
)
def test_of_a_repository_on_the_hub(
    methods: dict[str, str], column: str | None, count: int, smoke: RunConfig, tmp_path: Path, monkeypatch
) -> None:
    run = run_of(tmp_path / "run", smoke, methods, column)
    local = executed(run)
    for file in prepare(run, "me/x").files:
        (tmp_path / "hub" / file.name).parent.mkdir(parents=True, exist_ok=True)
        content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
        (tmp_path / "hub" / file.name).write_bytes(content)
    monkeypatch.setattr("huggingface_hub.snapshot_download", str)
    pieces = executed(tmp_path / "hub", lambda code: code.replace('"me/x"', repr(str(tmp_path / "hub"))))
    assert [piece.said for piece in pieces] == [local[0].said] * count


@pytest.mark.parametrize(
    ("recipe", "words", "count"),
    [
        ("smoke_pretrain", [], 2),
        ("smoke_mlm", [], 2),
        ("smoke_mlm", ["peft=[prompt_tuning]"], 1),
        ("smoke_t5_pretrain", [], 2),
        ("smoke_seq2seq", [], 2),
        ("smoke_seq2seq", ["peft=[prompt_tuning]"], 1),
        ("smoke_classify", ["peft=full"], 2),
        ("smoke_classify", ["peft=[prompt_tuning]"], 1),
        ("smoke_tag", ["peft=[prompt_tuning]"], 1),
        ("smoke_reward", [], 2),
        ("smoke_reward", ["peft=full", "model=tiny_bert"], 2),
        ("smoke_reward", ["peft=houlsby"], 1),
    ],
)
def test_of_every_task(recipe: str, words: list[str], count: int, tmp_path: Path) -> None:
    words = [*words, "train.max_steps=1", "data.validation=null"]
    pieces = agreeing(trained_run(tmp_path / "run", recipe, *words), count)
    if "peft=[prompt_tuning]" in words:
        assert max(pieces[0].ids) >= len(pieces[0].names["tokenizer"])


@pytest.mark.parametrize("words", [[], ["peft=[prompt_tuning]"], CAUSAL], ids=["masked", "soft", "causal"])
def test_words_for_labels_are_scored_as_in_training(words: list[str], tmp_path: Path) -> None:
    words = [*words, "train.max_steps=1", "data.validation=null"]
    run = trained_run(tmp_path / "run", "smoke_verbalize", *words)
    pieces = agreeing(run, 1 if "peft=[prompt_tuning]" in words else 2)
    expected = {label: score_as_in_training(run, label) for label in ("positive", "negative")}
    said = dict(line.split() for line in pieces[0].said.splitlines())
    assert {label: float(value) for label, value in said.items()} == pytest.approx(expected, abs=1e-4)


def score_as_in_training(run: Path, label: str) -> float:
    """The mean log-probability of the label's word in the gaps of the sentences that training makes of a row."""
    model, tokenizer = load(run)
    config = load_config(run / "config.yaml")
    values = {"text": "A text.", "label": label}
    encoder = RowEncoder(choose_format("classification", {}, values), tokenizer, encoding_of(config, tokenizer))
    example = window_of(encoder([Row("rows.jsonl", 1, values)]), "")[0]
    scores = []
    for start, end in zip((0, *example.parts), (*example.parts, len(example.input_ids)), strict=True):
        ids = example.input_ids[None, start:end].clone()
        [(first, last)] = [(a - start, b - start) for a, b in example.spans.tolist() if start <= a < end]
        word = ids[0, first:last].clone()
        masked = config.stage.task is Task.masked_lm
        if masked:
            ids[0, first:last] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].log_softmax(-1)
        places = torch.arange(first, last) - (0 if masked else 1)
        scores.append(logits[places, word].sum().item())
    return sum(scores) / len(scores)
