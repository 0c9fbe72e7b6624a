"""`tune eval`: its numbers are those of training, and those of scikit-learn and seqeval from its own predictions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from seqeval.metrics import classification_report, f1_score
from sklearn import metrics as sk
from training import trained_run

from tunecli.cli import main
from tunecli.config.checks import metrics_of
from tunecli.config.compose import load_config
from tunecli.config.errors import UserError
from tunecli.evaluation.uncertainty import Difference
from tunecli.report.generalisation import read_gap
from tunecli.scoring import Scores, files, score
from tunecli.scoring.comparison import compare

RUNS = {
    "classify": ("smoke_classify", "train.learning_rate=3e-3"),
    "tag": ("smoke_tag",),
    "sft": ("smoke_sft_lora", "evaluation.exact_match=3", "evaluation.max_new_tokens=4", "train.max_steps=4"),
}
TRUNCATED = ["data.max_length=8"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: trained_run(folder / name, *words) for name, words in RUNS.items()}


@pytest.fixture(scope="module")
def scores(runs: dict[str, Path]) -> dict[str, Scores]:
    return {name: score(str(run)) for name, run in runs.items()}


def logged(run: Path) -> dict[str, float]:
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {name.removeprefix("eval/"): value for name, value in last.items() if name.startswith("eval/")}


@pytest.mark.parametrize("name", RUNS)
def test_the_numbers_are_those_that_training_logged(runs, scores, name: str) -> None:
    found = {each: metric.value for each, metric in scores[name].metrics.items()}
    known = logged(runs[name])
    assert known and known == pytest.approx({each: found[each] for each in known}, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_intervals_hold_their_values_and_stay_the_same(runs, scores, name: str) -> None:
    again = score(str(runs[name]))
    assert again.metrics == scores[name].metrics
    for metric in again.metrics.values():
        assert metric.low is None or metric.low <= metric.value <= metric.high
    sure = [metric for metric in again.metrics.values() if metric.low is not None]
    assert any(metric.low < metric.value < metric.high for metric in sure)


@pytest.mark.parametrize("name", ["classify", "tag"])
def test_batches_change_nothing(runs, scores, name: str) -> None:
    for words in (["train.micro_batch_size=1"], ["train.micro_batch_size=5", "model.attention=padded"]):
        found = score(str(runs[name]), words, gap=False)
        values = {each: metric.value for each, metric in found.metrics.items()}
        assert values == pytest.approx(
            {each: metric.value for each, metric in scores[name].metrics.items()}, abs=1e-5
        )
        assert [record["predicted"] for record in found.records] == [
            record["predicted"] for record in scores[name].records
        ]


def test_a_classifier_is_measured_as_scikit_learn_does(runs, scores, tmp_path: Path) -> None:
    files.write(scores["classify"], tmp_path)
    result, records = files.read(tmp_path)
    expected, predicted = [[record[key] for record in records] for key in ("expected", "predicted")]
    found = {name: each["value"] for name, each in result["metrics"].items()}
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(expected, predicted))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(expected, predicted, average="macro"))
    assert "f1_micro" not in found  # it is the accuracy
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(expected, predicted))
    (table,) = result["tables"]
    report = sk.classification_report(expected, predicted, output_dict=True, zero_division=0)
    for each in table["classes"]:
        row = report[each["label"]]
        assert (each["precision"], each["recall"], each["f1"], each["support"]) == pytest.approx(
            (row["precision"], row["recall"], row["f1-score"], row["support"])
        )
    labels = table["confusion"]["labels"]
    assert table["confusion"]["counts"] == sk.confusion_matrix(expected, predicted, labels=labels).tolist()
    assert [record["row"] for record in records] == sorted(record["row"] for record in records)
    texts = {i + 1: row["text"] for i, row in enumerate(smoke_rows("smoke_labels"))}
    assert all(record["text"] == texts[record["row"]] for record in records)
    for record in records:
        assert max(record["probabilities"], key=record["probabilities"].get) == record["predicted"]
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def smoke_rows(name: str) -> list[dict]:
    import tunecli

    file = Path(tunecli.__file__).parent / "data" / "builtin" / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_tagger_is_measured_as_seqeval_does(scores, tmp_path: Path) -> None:
    files.write(scores["tag"], tmp_path)
    result, records = files.read(tmp_path)
    expected, predicted = [[record[key] for record in records] for key in ("expected", "predicted")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = classification_report(expected, predicted, output_dict=True, zero_division=0)
    assert result["metrics"]["f1"]["value"] == pytest.approx(f1_score(expected, predicted))
    (table,) = result["tables"]
    for each in table["classes"]:
        row = report[each["label"]]
        assert (each["precision"], each["recall"], each["f1"], each["support"]) == pytest.approx(
            (row["precision"], row["recall"], row["f1-score"], row["support"])
        )
    rows = smoke_rows("smoke_tags")
    assert all(record["words"] == rows[record["row"] - 1]["tokens"] for record in records)
    assert all(record["expected"] == rows[record["row"] - 1]["tags"] for record in records)


def test_words_that_were_cut_off_have_no_prediction(runs) -> None:
    found = score(str(runs["tag"]), TRUNCATED, gap=False)
    assert found.data["truncated"] > 0
    cut = [record for record in found.records if None in record["predicted"]]
    assert cut and all(len(record["predicted"]) == len(record["words"]) for record in cut)
    pairs = [
        [(e, p) for e, p in zip(r["expected"], r["predicted"], strict=True) if p is not None] for r in found.records
    ]
    value = f1_score([[e for e, _ in each] for each in pairs], [[p for _, p in each] for each in pairs])
    assert found.metrics["f1"].value == pytest.approx(value)


def test_the_gap_is_training_rows_minus_these(runs, scores) -> None:
    gap = scores["classify"].gap
    assert gap is not None and gap.examples == len(scores["classify"].records)
    for name, value in gap.difference.items():
        assert value == pytest.approx(gap.train[name] - scores["classify"].metrics[name].value)
    assert score(str(runs["classify"]), gap=False).gap is None
    assert score(str(runs["classify"]), ["seed=7"]).gap.train != gap.train


def test_all_rows_of_a_file_count(runs, tmp_path: Path) -> None:
    rows = smoke_rows("smoke_labels")[:9]
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = score(str(runs["classify"]), [f"data.path={file}"])
    assert [record["row"] for record in found.records] == list(range(1, 10))
    assert [record["expected"] for record in found.records] == [row["label"] for row in rows]
    assert found.gap is not None and found.gap.examples == 9  # of the run's own training rows
    assert found.data["name"] == "test"


def test_without_its_training_rows_a_run_is_scored_on_others(runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["classify"], run)
    text = (run / "config.yaml").read_text().replace("path: builtin:smoke_labels", f"path: {tmp_path}/gone.jsonl")
    (run / "config.yaml").write_text(text)
    found = score(str(run), ["data=smoke_labels"])
    assert found.gap is None and "cannot be read any more" in found.notes[0]
    with pytest.raises(UserError, match="gone.jsonl"):
        score(str(run))


def test_what_is_wrong_is_said_before_weights_are_loaded(runs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tunecli.scoring.load_wrapped", None)
    file = tmp_path / "other.jsonl"
    file.write_text('{"text": "fine", "label": "positive"}\n{"text": "hm", "label": "positiv"}\n')
    with pytest.raises(UserError, match=r"(?s)row 2.*'positiv'.*the model knows negative, positive"):
        score(str(runs["classify"]), [f"data.path={file}"])
    file.write_text('{"text": "no label"}\n')
    with pytest.raises(UserError, match="no column 'label'"):
        score(str(runs["classify"]), [f"data.path={file}"])
    with pytest.raises(UserError, match="another model"):
        score(str(runs["classify"]), ["train.learning_rate=1"])
    with pytest.raises(UserError, match="no folder"):
        score("./no_such_run")
    with pytest.raises(UserError, match="without a head for labels of texts"):
        score("builtin:tiny_llama", ["stage=classify", f"data.path={file}"])
    with pytest.raises(UserError, match="says nowhere what"):
        score("builtin:tiny_llama")


def test_a_model_of_somebody_elses_is_told_from_its_class(runs, scores, tmp_path: Path) -> None:
    from tunecli import load

    full = trained_run(tmp_path / "full", "smoke_classify", "peft=full", "train.max_steps=2", "train.precision=fp32")
    model, tokenizer = load(full)
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    mine = score(str(full))
    theirs = score(str(tmp_path / "plain"), ["data=smoke_labels", "data.max_length=128"])
    assert theirs.metrics["accuracy"] == mine.metrics["accuracy"] and theirs.gap is None
    assert theirs.metrics["loss"].value == pytest.approx(mine.metrics["loss"].value, abs=1e-5)


def test_a_language_model_without_training(scores) -> None:
    found = score("builtin:tiny_llama", ["data=smoke"])
    assert set(found.metrics) == {"loss", "perplexity"} and found.gap is None
    assert len(found.records) == len(scores["sft"].records)


def test_generated_answers_are_written(scores) -> None:
    records = scores["sft"].records
    assert [("predicted" in record, "exact_match" in record) for record in records[:4]] == [(True, True)] * 3 + [
        (False, False)
    ]
    total = sum(record["loss"] for record in records) / sum(record["units"] for record in records)
    assert total == pytest.approx(scores["sft"].metrics["loss"].value, abs=1e-6)


def test_a_run_does_not_differ_from_itself(runs, tmp_path: Path) -> None:
    run = str(runs["classify"])
    found = compare([run, run], [], show_progress=False)
    _, other = found.runs
    assert other.name.endswith("(2)")
    assert all(each.value == 0 and each.p in (1, None) for each in other.differences.values())
    assert other.differences["loss"] == Difference(0.0) and other.differences["accuracy"].low < 0
    assert (other.mcnemar.only_first, other.mcnemar.only_this, other.mcnemar.p) == (0, 0, 1)
    files.write_comparison(found, tmp_path)
    assert "may be chance" not in (tmp_path / files.PAGE).read_text()


def test_evaluations_that_were_made_are_compared(runs, scores, tmp_path: Path) -> None:
    files.write(scores["classify"], tmp_path / "one")
    better = [dict(record, predicted=record["expected"], probability=0.9) for record in scores["classify"].records]
    files.write(scores["classify"], tmp_path / "two")
    with (tmp_path / "two" / files.PREDICTIONS).open("w") as file:
        file.writelines(files.as_lines(better))
    found = compare([str(tmp_path / "one"), str(tmp_path / "two")], [], show_progress=False)
    wrong = sum(record["predicted"] != record["expected"] for record in scores["classify"].records)
    difference, test = found.runs[1].differences["accuracy"], found.runs[1].mcnemar
    assert difference.value == pytest.approx(wrong / len(better)) and difference.low > 0 and difference.p < 0.05
    assert (test.only_first, test.only_this) == (0, wrong) and test.p == pytest.approx(2 * 0.5**wrong)
    with pytest.raises(UserError, match="not scored on the same rows"):
        (tmp_path / "two" / files.PREDICTIONS).write_text("".join(files.as_lines([dict(better[0], row=999)])))
        compare([str(tmp_path / "one"), str(tmp_path / "two")], [], show_progress=False)


def test_the_command(runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["eval", str(runs["classify"]), "--json", "--no-gap", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metrics"] == json.loads((out / files.RESULT).read_text())["metrics"] and printed["gap"] is None
    page = (out / files.PAGE).read_text()
    assert "confusion" not in page and "What is taken for what" in page and "http" not in page.partition("<main>")[2]
    assert main(["eval", str(runs["tag"])]) == 0
    assert "LOC" in capsys.readouterr().out
    assert (runs["tag"] / "evaluations" / "validation" / files.PREDICTIONS).is_file()
    assert main(["eval", str(runs["tag"]), "data.path=none.jsonl"]) == 2
    assert main(["eval", "--compare", str(runs["tag"])]) == 2


@pytest.mark.parametrize("name", RUNS)
def test_best_metric_may_be_what_an_evaluation_gives(runs, name: str) -> None:
    known = metrics_of(load_config(runs[name] / "config.yaml").stage)
    assert set(known) >= {f"eval/{each}" for each in logged(runs[name])}
    if name != "sft":
        assert {each.removeprefix("eval/") for each in known} == set(logged(runs[name]))


@pytest.mark.parametrize("name", ["classify", "tag"])
def test_the_run_itself_measured_the_same_gap(runs, scores, name: str) -> None:
    gap = read_gap(runs[name])
    assert gap is not None and gap.examples == scores[name].gap.examples
    assert gap.train == pytest.approx(scores[name].gap.train, abs=1e-5)
    found = {each: value for each, _, _, _, value in gap.rows}
    assert found == pytest.approx(scores[name].gap.difference, abs=1e-5)
    assert "Generalisation gap" in (runs[name] / "report.html").read_text()
    assert read_gap(runs["sft"]) is None


@pytest.mark.slow
def test_two_processes_give_the_same(runs, scores, tmp_path: Path) -> None:
    for name in ("tag", "sft"):
        out = tmp_path / name
        command = [
            sys.executable,
            "-m",
            "tunecli",
            "eval",
            str(runs[name]),
            "launch.num_processes=2",
            "--out",
            str(out),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        result, records = files.read(out)
        values = {each: metric["value"] for each, metric in result["metrics"].items()}
        assert values == pytest.approx(
            {each: metric.value for each, metric in scores[name].metrics.items()}, abs=1e-5, rel=1e-5
        )
        known = scores[name].records
        assert [(r["row"], r.get("predicted")) for r in records] == [(r["row"], r.get("predicted")) for r in known]
    done = subprocess.run([*command[:-2], "data.path=none.jsonl"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("error:") == 1
