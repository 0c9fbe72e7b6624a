"""`tune score` gives the scores of the model itself, whatever the rows look like; `tune eval` agrees with it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training import trained_run

import tunecli
from tunecli.cli import main
from tunecli.config.compose import compose_run
from tunecli.config.data_checks import OF_JUDGEMENTS
from tunecli.config.errors import UserError
from tunecli.evaluation.kinds import Kind
from tunecli.evaluation.measures import measures_of
from tunecli.ops.bootstrap import values
from tunecli.scoring import score
from tunecli.scoring.judging import Asked, score_rows

CHAT = [{"role": "user", "content": "How was it?"}, {"role": "assistant", "content": "Great fun"}]
OTHER = {"role": "assistant", "content": "Dull"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    words = ("train.max_steps=2", "train.save_every=null", "train.learning_rate=3e-2")
    return trained_run(tmp_path_factory.mktemp("runs") / "reward", "smoke_reward", *words)


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def expected(run: Path, text: str) -> float:
    model, tokenizer = tunecli.load(run)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).logits.item()


def rendered(run: Path, answer: str) -> str:
    _, tokenizer = tunecli.load(run)
    return tokenizer.apply_chat_template([CHAT[0], {"role": "assistant", "content": answer}], tokenize=False).rstrip()


def test_rows_of_every_kind_get_the_model_s_own_score(run: Path, tmp_path: Path) -> None:
    chats = [{"messages": CHAT}, {"messages": [CHAT[0], OTHER]}]
    found = score_rows(str(run), [f"data.path={written(tmp_path / 'chats.jsonl', chats)}"])
    scores = [record["score"] for record in found.records]
    assert scores == pytest.approx([expected(run, rendered(run, text)) for text in ("Great fun", "Dull")], abs=1e-4)
    apart = [{"prompt": CHAT[:1], "completion": [CHAT[1]]}, {"prompt": CHAT[:1], "completion": [OTHER], "score": 1}]
    found = score_rows(str(run), [f"data.path={written(tmp_path / 'apart.jsonl', apart[:1])}"])
    assert found.records[0]["score"] == pytest.approx(scores[0], abs=1e-5)
    known = score_rows(str(run), [f"data.path={written(tmp_path / 'known.jsonl', apart[1:])}"])
    assert known.records[0]["score"] == pytest.approx(scores[1], abs=1e-5) and known.summary["mse"] >= 0
    pairs = [{"prompt": CHAT[:1], "chosen": [CHAT[1]], "rejected": [OTHER]}]
    (pair,) = score_rows(str(run), [f"data.path={written(tmp_path / 'pairs.jsonl', pairs)}"]).records
    assert [pair["chosen"], pair["rejected"]] == pytest.approx(scores, abs=1e-5)
    assert pair["preferred"] == ("chosen" if scores[0] > scores[1] else "rejected")
    text = [{"prompt": "How was it?", "completion": " Great fun"}]
    raw = score_rows(str(run), [f"data.path={written(tmp_path / 'raw.jsonl', text)}"])
    assert raw.records[0]["score"] == pytest.approx(expected(run, "How was it? Great fun<|im_end|>"), abs=1e-4)


def test_a_typed_answer_scores_what_its_row_does(run: Path, monkeypatch, capsys) -> None:
    asked = Asked(str(run), [], raw=False)
    assert asked.score("How was it?", "Great fun") == pytest.approx(
        expected(run, rendered(run, "Great fun")), abs=1e-4
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("How was it?\nDull\n\n\n"))
    assert main(["score", str(run), "--interactive"]) == 0
    said = capsys.readouterr().out
    assert float(said.split("score: ")[1].split()[0]) == pytest.approx(expected(run, rendered(run, "Dull")), abs=1e-3)


def test_eval_and_score_count_the_same(run: Path, tmp_path: Path, capsys) -> None:
    scores, found = score(str(run)), score_rows(str(run))
    assert scores.kind is Kind.reward and scores.gap is not None
    for name in ("accuracy", "margin", "ece"):
        assert found.summary[name] == pytest.approx(scores.metrics[name].value, abs=1e-6)
        assert values(measures_of(scores.records, Kind.reward), len(scores.records))[name] == pytest.approx(
            scores.metrics[name].value, abs=1e-6
        )
    out = tmp_path / "scores.jsonl"
    assert main(["score", str(run), "--json", "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accuracy"] == pytest.approx(found.summary["accuracy"]) and "rows" not in told
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["row"] for line in lines] == [record["row"] for record in found.records]
    assert main(["eval", str(run), "--no-gap", "--out", str(tmp_path / "eval")]) == 0
    assert (tmp_path / "eval" / "report.html").exists()


def test_a_mixture_of_pairs_and_scores_is_trained_and_measured(tmp_path: Path) -> None:
    scored = [{"prompt": CHAT[:1], "completion": [CHAT[1]], "score": i / 8} for i in range(16)]
    for i, row in enumerate(scored):
        row["prompt"] = [CHAT[0]] if i % 2 else [{"role": "user", "content": f"How was film {i}?"}]
    path = written(tmp_path / "scored.jsonl", scored)
    words = ["data=mix", f"data.mix=[{{path: 'builtin:smoke_pairs', task: pairs}}, {{path: '{path}', task: scores}}]"]
    words += ["data.validation=0.25", "train.max_steps=2", "train.save_every=null"]
    found = trained_run(tmp_path / "run", "smoke_reward", *words)
    lines = [json.loads(line) for line in (found / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "eval/loss" in line)
    assert {"eval/accuracy/pairs", "eval/spearman/scores", "eval/loss/pairs", "eval/loss/scores"} <= last.keys()
    assert np.isfinite(last["eval/loss"])
    assert any("loss/pairs" in line and "accuracy" in line for line in lines)


@pytest.mark.parametrize(
    ("path", "words", "said"),
    [
        ("builtin:tiny_llama", ["data=smoke_pairs"], "no head that scores"),
        ("builtin:tiny_llama", ["data=smoke_pairs", "stage=sft"], "gives no scores"),
    ],
)
def test_what_gives_no_score_is_refused(path: str, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        score_rows(path, words)


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["stage.labels=[a]"], "stage.labels"),
        (["stage.center_rewards_coefficient=-1"], "stage.center_rewards_coefficient"),
        (["data.overlong=split"], "data.overlong"),
        (["data=smoke"], "data.format"),
        (["train.best_metric=eval/f1_macro"], "train.best_metric"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], where: str) -> None:
    from tunecli.config.checks import find_problems

    assert where in [problem.where for problem in find_problems(compose_run("smoke_reward", words).config)]


def test_no_other_stage_reads_judgements() -> None:
    from tunecli.config.data_checks import formats_for
    from tunecli.config.stage import Task

    assert not {*OF_JUDGEMENTS} & {name for task in Task for name in formats_for(task)}
