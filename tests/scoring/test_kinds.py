"""`tune eval` and `tune predict` for stages without a head: their numbers are those of training, of libraries and of
transformers alone; batches change nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
import torch
from sklearn import metrics as sk
from training import trained_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.scoring.test_scoring import logged, smoke_rows
from tunecli.cli import main
from tunecli.config.errors import UserError
from tunecli.evaluation.texts import rouge
from tunecli.evaluation.uncertainty import LEAST
from tunecli.models.builtin import materialize
from tunecli.scoring import Scores, files, score
from tunecli.scoring.comparison import compare

SHORT = ("train.max_steps=4", "train.eval_every=4", "train.save_every=4")
RUNS = {
    "verbalize": ("smoke_verbalize", *SHORT),
    "seq2seq": ("smoke_seq2seq", *SHORT, "train.learning_rate=0.1", "evaluation.bleu=6"),
    "causal": ("smoke_pretrain", *SHORT),
    "masked": ("smoke_mlm", *SHORT),
    "spans": ("smoke_t5_pretrain", *SHORT),
}
WORDS = {"positive": " good", "negative": " poor"}
ASKED = ["stage.verbalizer={positive: good, negative: poor}", "stage.templates=['{text} It was {mask}.']"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: trained_run(folder / name, *words) for name, words in RUNS.items()}


@pytest.fixture(scope="module")
def scores(runs: dict[str, Path]) -> dict[str, Scores]:
    return {name: score(str(run)) for name, run in runs.items()}


def values(scores: Scores) -> dict[str, float]:
    return {name: metric.value for name, metric in scores.metrics.items()}


@pytest.mark.parametrize("name", RUNS)
def test_the_numbers_are_those_that_training_logged(runs, scores, name: str) -> None:
    known, found = logged(runs[name]), values(scores[name])
    assert known and known == pytest.approx({each: found[each] for each in known}, abs=1e-5, rel=1e-5)
    sure = [metric for metric in scores[name].metrics.values() if metric.low is not None]
    assert all(metric.low <= metric.value <= metric.high for metric in sure)
    assert bool(sure) == (len(scores[name].records) >= LEAST or "exact_match" in found)
    assert scores[name].gap is not None and set(scores[name].gap.difference) >= set(known)


@pytest.mark.parametrize("name", RUNS)
def test_batches_change_nothing(runs, scores, name: str) -> None:
    for words in (["train.micro_batch_size=1"], ["train.micro_batch_size=5", "model.attention=padded"]):
        found = score(str(runs[name]), words, gap=False)
        assert values(found) == pytest.approx(values(scores[name]), abs=1e-4, rel=1e-5)
        assert [r.get("predicted") for r in found.records] == [r.get("predicted") for r in scores[name].records]


def test_words_for_labels_are_measured_as_a_classifier(scores) -> None:
    found, records = values(scores["verbalize"]), scores["verbalize"].records
    expected, predicted = [[record[key] for record in records] for key in ("expected", "predicted")]
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(expected, predicted))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(expected, predicted, average="macro", zero_division=0))
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(expected, predicted))
    (table,) = scores["verbalize"].tables
    labels = table.confusion.labels
    assert table.confusion.counts == sk.confusion_matrix(expected, predicted, labels=labels).tolist()
    assert set(labels) == {"positive", "negative"} and table.calibration
    rows = smoke_rows("smoke_labels")
    assert all(record["text"] == rows[record["row"] - 1]["text"] for record in records)


def test_generated_texts_are_measured_as_the_libraries_do(scores) -> None:
    found, records = values(scores["seq2seq"]), scores["seq2seq"].records
    said, right = [[record[key] for record in records[:8]] for key in ("predicted", "expected")]
    assert any(said)
    assert {name: found[name] for name in ("rouge1", "rouge2", "rougeL")} == pytest.approx(rouge(said, right))
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, [right]).score)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said[:6], [right[:6]]).score)
    assert found["exact_match"] == sum(map(str.__eq__, said, right)) / 8
    rows = smoke_rows("smoke_seq2seq")
    assert all(record["expected"] == rows[record["row"] - 1]["target"] for record in records)


def test_a_base_model_fills_the_gap_as_it_is(tmp_path: Path) -> None:
    """Zero-shot: the probabilities of the labels are those of their words by hand."""
    rows = smoke_rows("smoke_labels")[:4]
    file = tmp_path / "few.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = score("builtin:tiny_llama", [*ASKED, f"data.path={file}"])
    folder = materialize("tiny_llama")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert found.gap is None and found.stage == "verbalize"
    for row, record in zip(rows, found.records, strict=True):
        likely = torch.stack([likelihood(model, tokenizer, f"{row['text']} It was", word) for word in WORDS.values()])
        sure = likely.softmax(0).tolist()
        assert list(record["probabilities"].values()) == pytest.approx(sure, abs=1e-5)
        assert record["predicted"] == list(WORDS)[sure.index(max(sure))]
    masked = score("builtin:tiny_bert", [*ASKED, f"data.path={file}"])
    assert masked.stage == "verbalize" and len(masked.records) == 4


@torch.no_grad()
def likelihood(model, tokenizer, prompt: str, word: str) -> torch.Tensor:
    head, tail = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, word))
    logprobs = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return sum(logprobs[len(head) - 1 + i, token] for i, token in enumerate(tail))


@torch.no_grad()
def test_perplexity_of_documents_is_that_of_transformers(tmp_path: Path) -> None:
    texts = ["A river begins as a spring.", "It gathers brooks on its way, and turns mills.", "Its end is the sea."]
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = score("builtin:tiny_llama", ["stage=pretrain", f"data.path={file}"])
    folder = materialize("tiny_llama")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    total = number = 0
    for text, record in zip(texts, found.records, strict=True):
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        own = float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        assert record["loss"] == pytest.approx(own, rel=1e-5) and record["units"] == ids.shape[1] - 1
        total, number = total + own, number + ids.shape[1] - 1
    assert found.metrics["perplexity"].value == pytest.approx(torch.tensor(total / number).exp().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "words", "stage"),
    [
        ("builtin:tiny_bert", ["data=smoke_text"], "pretrain"),
        ("builtin:tiny_t5", ["data=smoke_seq2seq"], "seq2seq"),
        ("builtin:tiny_t5", ["data=smoke_text", "stage=pretrain", "stage.objective=prefix_lm"], "pretrain"),
    ],
)
def test_what_a_base_model_is_for_is_told_from_its_class(model: str, words: list[str], stage: str) -> None:
    found = score(model, words)
    assert found.stage == stage and found.gap is None and found.metrics["perplexity"].value > 1


def test_models_are_not_asked_what_they_cannot_say(runs) -> None:
    for model, words, said in (
        ("builtin:tiny_bert", ["stage=sft"], "which stage=sft cannot score"),
        ("builtin:tiny_t5", ASKED, "which stage=verbalize cannot score"),
        ("builtin:tiny_llama", ["stage=pretrain", "stage.objective=masked_lm", "data=smoke_text"], "no model for"),
        ("builtin:tiny_llama", ["stage.templates=['no gap']", "data=smoke_labels"], "exactly one {mask}"),
        (str(runs["seq2seq"]), ["stage=verbalize"], "was trained as seq2seq"),
        (str(runs["causal"]), ["stage.objective=masked_lm"], "another model"),
    ):
        with pytest.raises(UserError) as error:
            score(model, words)
        assert said in str(error.value)


def test_a_run_is_scored_as_something_else(runs, scores) -> None:
    """The adapted model of documents fills gaps, and has no training rows of that."""
    found = score(str(runs["causal"]), [*ASKED, "data=smoke_labels"])
    assert found.stage == "verbalize" and found.gap is None and "trained as pretrain" in found.notes[0]
    assert values(found)["loss"] != values(score("builtin:tiny_llama", [*ASKED, "data=smoke_labels"]))["loss"]
    other = score(str(runs["verbalize"]), ["stage.templates=['{text} {mask}']"])
    assert values(other)["loss"] != values(scores["verbalize"])["loss"]


def test_adapters_outside_of_their_run(runs, scores, tmp_path: Path) -> None:
    shutil.copytree(runs["verbalize"] / "adapter", tmp_path / "mine")
    asked = ["stage.templates=['{text} It was {mask}.','Just {mask}! {text}']", ASKED[0]]
    rows = tmp_path / "rows.jsonl"
    chosen = [smoke_rows("smoke_labels")[record["row"] - 1] for record in scores["verbalize"].records]
    rows.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    found = score(str(tmp_path / "mine"), [*asked, f"data.path={rows}", "train.precision=fp32"])
    assert values(found)["loss"] == pytest.approx(values(scores["verbalize"])["loss"], abs=1e-5)
    assert [r["predicted"] for r in found.records] == [r["predicted"] for r in scores["verbalize"].records]


def test_predictions_are_those_of_an_evaluation(runs, scores, tmp_path: Path) -> None:
    for name, column in (("verbalize", "text"), ("seq2seq", "source")):
        builtin = "smoke_labels" if name == "verbalize" else "smoke_seq2seq"
        known = [record for record in scores[name].records if "predicted" in record]
        rows = [{column: smoke_rows(builtin)[record["row"] - 1][column]} for record in known]
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / "out.jsonl"
        assert main(["predict", str(runs[name]), str(tmp_path / "in.jsonl"), "--out", str(out), "--force"]) == 0
        said = [json.loads(line) for line in out.read_text().splitlines()]
        assert [each["predicted"] for each in said] == [each["predicted"] for each in known]
        if name == "verbalize":
            assert [e["probability"] for e in said] == pytest.approx([e["probability"] for e in known], abs=1e-5)
    (tmp_path / "in.txt").write_text("A river begins\n")
    assert main(["predict", str(runs["causal"]), str(tmp_path / "in.txt"), "--out", str(out), "--force"]) == 0
    assert json.loads(out.read_text())["prompt"].endswith("A river begins")
    assert main(["predict", str(runs["masked"]), str(tmp_path / "in.txt")]) == 2


def test_what_differs_is_told_of_texts_and_documents(runs, scores, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # evaluations of models that are no runs are written below the current folder
    files.write(scores["seq2seq"], tmp_path / "one")
    right = [dict(r, exact_match=True, rouge1=1.0) if "predicted" in r else r for r in scores["seq2seq"].records]
    files.write(scores["seq2seq"], tmp_path / "two")
    with (tmp_path / "two" / files.PREDICTIONS).open("w") as file:
        file.writelines(files.as_lines(right))
    _, other = compare([str(tmp_path / "one"), str(tmp_path / "two")], [], show_progress=False).runs
    assert other.differences["exact_match"].p < 0.05 and other.differences["exact_match"].low > 0
    assert other.differences["rouge1"].value > 0 and other.differences["rouge1"].low is None  # of 8 answers
    assert other.differences["chrf"].value == 0
    assert other.mcnemar.only_this == 8 and other.mcnemar.p == pytest.approx(2 * 0.5**8)
    base = compare(
        ["builtin:tiny_llama", str(runs["causal"])], ["stage=pretrain", "data=smoke_text"], show_progress=False
    )
    assert base.runs[1].differences["perplexity"].value < 0 and base.runs[1].mcnemar is None


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_give_the_same(runs, scores, name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tunecli", "eval", str(runs[name]), "launch.num_processes=2"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result, records = files.read(tmp_path)
    found = {each: metric["value"] for each, metric in result["metrics"].items()}
    assert found == pytest.approx(values(scores[name]), abs=1e-4, rel=1e-5)
    assert result["gap"]["difference"] == pytest.approx(scores[name].gap.difference, abs=1e-4, rel=1e-4)
    known = [(record["row"], record.get("predicted")) for record in scores[name].records]
    assert [(record["row"], record.get("predicted")) for record in records] == known
