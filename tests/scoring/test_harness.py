"""lm-evaluation-harness asks our models: what it finds likely is what we find likely, adapters and soft prompts
included. All but the first tests are for machines where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training import trained_run

from tunecli.assembly.data import Data
from tunecli.assembly.readers import batching_of
from tunecli.cli import main
from tunecli.config.errors import UserError
from tunecli.data.batching import microbatches
from tunecli.data.encoded import Encoded
from tunecli.data.feed import Window
from tunecli.scoring import files, open_session
from tunecli.scoring.harness import Options, _encoding, build_model, score_with_harness, tasks_in
from tunecli.scoring.subject import find_subject

installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason='pip install "tunecli[harness]"')

CHOICE = """
task: own_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: right
metric_list: [{metric: acc}]
"""
ANSWER = """
task: own_answer
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[right]}}"
generation_kwargs: {max_gen_toks: 6, until: ["."]}
metric_list: [{metric: exact_match}]
"""
ROLLING = """
task: own_text
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: byte_perplexity}]
"""
ROWS = [
    {"question": "A lime is", "choices": [" green", " a king of old"], "right": 0},
    {"question": "The sea at night, says Anna, is", "choices": [" dry", " deep"], "right": 1},
    {"question": "Ten is more than", "choices": [" twelve", " two", " ten and a half"], "right": 1},
]
SHORT = ("train.max_steps=3", "train.eval_every=null", "train.save_every=3", "train.precision=fp32")
RUNS = {
    "lora": ("smoke_sft_lora", "train.learning_rate=0.05", *SHORT),
    "several": ("smoke_sft_lora", "peft=[lora,prompt_tuning]", "peft.prompt_tuning.num_virtual_tokens=3", *SHORT),
    "p_tuning": ("smoke_sft_lora", "peft=p_tuning", *SHORT),
    "prefix": ("smoke_sft_lora", "peft=prefix_tuning", *SHORT),
    "seq2seq": ("smoke_seq2seq", "peft=prompt_tuning", "peft.prompt_tuning.num_virtual_tokens=3", *SHORT),
}


def test_without_it_one_message_says_how_to_install_it(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tunecli.scoring.harness.PACKAGE", "no_such_package")
    assert main(["eval", "builtin:tiny_llama", "harness=arc_easy"]) == 2
    assert 'pip install "tunecli[harness]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["harness=a", "data=smoke"], "bring their data"),
        (["harness=a", "--compare", "builtin:tiny_llama"], "the harness has tasks"),
        (["harness=a", "--limit", "0"], "1 or more"),
        (["harness="], "names no task"),
        (["--limit", "3"], "is for tasks"),
    ],
)
def test_what_has_no_meaning_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "builtin:tiny_llama", *words]) == 2
    assert said in capsys.readouterr().err


def test_tasks_are_named_with_commas() -> None:
    assert tasks_in(["harness=a,b", "harness=[c,d.yaml]"]) == ["a", "b", "c", "d.yaml"]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in {"choice": CHOICE, "answer": ANSWER, "rolling": ROLLING}.items():
        (folder / f"{name}.yaml").write_text(text.replace("FILE", str(rows)))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: trained_run(folder / name, *words) for name, words in RUNS.items()}


def ours(path: str, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
    """Log-probability of each second part, by the forward of training."""
    subject = find_subject(path)
    session = open_session(subject, subject.config)
    window = Window(["pairs"])
    for head, tail in pairs:
        spans = np.array([len(head), len(head) + len(tail)])
        window.examples.append(Encoded.of(np.array(head + tail), spans, parts=(len(head),)))
        window.sources.append(0)
        window.origins.append("")
        window.adapters.append(-1)
    data = Data(subject.tokenizer, None, None, subject.labels)
    batching = batching_of(session.config, data, session.policy, num_processes=1, process_index=0)
    found = [0.0] * len(pairs)
    with torch.no_grad():
        for batch in microbatches(window, list(range(len(pairs))), batching):
            logprobs = session.model(batch)
            sizes = [len(pairs[row][1]) for row in batch.rows]
            for row, each in zip(batch.rows, logprobs.split(sizes), strict=True):
                found[row] = float(each.sum())
    return found


@installed
@pytest.mark.parametrize("name", RUNS)
def test_what_is_likely_to_the_harness_is_likely_to_us(runs, name: str) -> None:
    from lm_eval.api.instance import Instance

    subject = find_subject(str(runs[name]))
    model = build_model(subject, _encoding(subject), batch_size=2)
    texts = [(row["question"], choice) for row in ROWS for choice in row["choices"]]
    asked = [Instance("loglikelihood", {}, arguments=each, idx=i) for i, each in enumerate(texts)]
    found = [value for value, _ in model.loglikelihood(asked, disable_tqdm=True)]
    pairs = [model._encode_pair(*each) for each in texts]
    assert (model.added > 0) == (name in ("several", "p_tuning", "seq2seq"))
    known = ours(str(runs[name]), [(model.surrounded(head), tail) for head, tail in pairs])
    assert found == pytest.approx(known, abs=2e-4)
    if model.added:
        assert known != pytest.approx(ours(str(runs[name]), pairs), abs=1e-3)


@installed
@pytest.mark.parametrize("name", RUNS)
def test_local_tasks_of_every_kind(runs, name: str, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = "own_choice,own_answer" + ("" if name == "seq2seq" else ",own_text")
    command = ["eval", str(runs[name]), f"harness={names}", "--task-files", str(tasks), "--out", str(out)]
    assert main(command) == 0
    result, samples = files.read(out)
    found = {(each["task"], each["metric"]): each for each in result["metrics"]}
    assert found["own_choice", "acc"]["questions"] == 3
    assert 0 <= found["own_choice", "acc"]["value"] <= 1 and "exact_match" in {metric for _, metric in found}
    assert {sample["task"] for sample in samples} == set(names.split(","))
    assert "evaluation harness" in (out / files.PAGE).read_text()
    assert main([*command, "train.micro_batch_size=1", "--json", "--force"]) == 0
    again, _ = files.read(out)
    assert [each["value"] for each in again["metrics"]] == pytest.approx(
        [each["value"] for each in result["metrics"]], rel=1e-4
    )


@installed
def test_generated_texts_are_ours(runs, tmp_path: Path) -> None:
    """Greedy answers of the harness begin as ours do."""
    from lm_eval.api.instance import Instance

    from tunecli.evaluation.answers import Question, answer_all

    for name in ("several", "seq2seq"):
        subject = find_subject(str(runs[name]))
        model = build_model(subject, _encoding(subject), batch_size=2)
        options = {"max_gen_toks": 6, "until": ["\n\n\n"]}
        asked = [Instance("generate_until", {}, (row["question"], options), i) for i, row in enumerate(ROWS)]
        found = model.generate_until(asked, disable_tqdm=True)
        session = open_session(subject, subject.config)
        questions = [Question(model.surrounded(model.tok_encode(row["question"])), []) for row in ROWS]
        known = answer_all(session.policy, subject.tokenizer, questions, 6)
        assert [text.strip() for text in found] == known


@installed
def test_what_is_wrong_is_one_message(runs, tasks: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tunecli.scoring.harness.build_model", None)
    for path, options, said in (
        ("builtin:tiny_llama", Options(["own_choise"], tasks), "no task 'own_choise'.*own_choice"),
        ("builtin:tiny_llama", Options(["own_choice"], tmp_path / "none"), "no such folder"),
        ("builtin:tiny_bert", Options(["own_choice"], tasks), "ask for texts"),
    ):
        with pytest.raises(UserError, match=f"(?s){said}"):
            score_with_harness(path, options)
    (tasks / "bad.yaml").write_text(CHOICE.replace("own_choice", "bad").replace("FILE", str(tmp_path / "gone.jsonl")))
    with pytest.raises(UserError, match="cannot be prepared"):
        score_with_harness("builtin:tiny_llama", Options(["bad"], tasks))
