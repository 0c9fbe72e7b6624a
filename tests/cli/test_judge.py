"""`tune judge`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stub_server import longer_wins, serving

from tunecli.cli import main

PAIRS = [{"prompt": f"Question {i}?", "chosen": "x" * (i % 3 + 3), "rejected": "x" * (i % 2 + 1)} for i in range(12)]
KEY = "sk-0123456789abcdef"


@pytest.fixture
def rows(tmp_path: Path):
    def write(rows: list[dict], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["judge", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    return error


def test_a_judge_is_tried_on_pairs(rows, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    file = rows(PAIRS)
    out = tmp_path / "out" / "said.jsonl"
    with serving(longer_wins) as stub:
        words = [file, "judge=openai", "judge.model=m", f"judge.base_url={stub.url}", "judge.api_key_env=MY_KEY"]
        assert main(["judge", *words, "--out", str(out), f"judge.cache={tmp_path}/c.sqlite", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert main(["judge", *words, f"judge.cache={tmp_path}/c.sqlite"]) == 0
        shown = capsys.readouterr().out
        assert len(stub.requests) == 2 * found["rows"]
    assert found["metrics"]["accuracy"]["value"] == 1 and found["answers"]["failed"] == 0
    assert "right, both orders averaged" in shown and "from the cache" in shown
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["verdict"] for record in records] == ["chosen"] * found["rows"]
    assert records[0]["file"] == file and records[0]["row"] == 1
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written and all(KEY.encode() not in content for content in written)
    assert "exists already" in refused(capsys, *words, "--out", str(out))


def test_scores_are_compared_with_those_of_the_rows(rows, tmp_path: Path, capsys):
    file = rows([{"prompt": "p", "completion": "a" * i, "score": i} for i in range(1, 6)])
    words = [file, "judge=tiny_llama", "judge.mode=score", f"judge.cache={tmp_path}/c.sqlite", "--json"]
    assert main(["judge", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "texts" and {"score", "pearson", "spearman"} <= found["metrics"].keys()


def test_texts_of_any_format_are_scored(rows, tmp_path: Path, capsys):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for row in ({"text": "t"}, {"messages": turns}, {"prompt": "p", "completion": "c"}):
        words = [rows([row]), "judge=tiny_llama", "judge.mode=score", f"judge.cache={tmp_path}/c.sqlite"]
        assert main(["judge", *words]) == 0
        assert "mean score" in capsys.readouterr().out


def test_what_is_wrong_is_said_before_anything_is_loaded(rows, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    monkeypatch.setenv("BAD_KEY", "sk-two words")
    file, pairs = rows([{"text": "t"}]), rows(PAIRS[:1], "pairs.jsonl")
    server = ["judge=openai", "judge.model=m"]
    assert "no file" in refused(capsys, "judge=tiny_llama")
    assert "none is chosen" in refused(capsys, pairs)
    assert "did you mean tiny_llama" in refused(capsys, pairs, "judge=tinyllama")
    assert "judge.path=RUN" in refused(capsys, pairs, "judge=local")
    assert "does not exist" in refused(capsys, pairs, "judge=local", "judge.path=./nowhere")
    assert "judge.mode=score" in refused(capsys, file, "judge=tiny_llama")
    assert "did you mean sentiment" in refused(capsys, pairs, "judge=tiny_llama", "judge.template=sentimnt")
    assert "does nothing" in refused(capsys, pairs, "judge=tiny_llama", "judge.num_votes=2")
    assert "does nothing" in refused(capsys, pairs, "judge=tiny_llama", "judge.constitution=helpful_harmless")
    assert "the environment has no NO_KEY" in refused(capsys, pairs, *server, "judge.api_key_env=NO_KEY")
    assert "about training" in refused(capsys, pairs, "judge=tiny_llama", "data.max_length=3")
    for word in (f"judge.api_key_env={KEY}", f"judge.base_url=http://me:{KEY}@host/v1", "judge.api_key_env=BAD_KEY"):
        error = refused(capsys, pairs, *server, word)
        assert KEY not in error and "two words" not in error
    assert "judge.api_key_env" in refused(capsys, pairs, *server, f"judge.extra={{api_key: {KEY}}}")


def test_a_server_that_does_not_answer_is_status_1(rows, tmp_path: Path, capsys):
    words = ["judge=local_server", "judge.model=m", "judge.base_url=http://127.0.0.1:9/v1", "judge.max_retries=0"]
    assert main(["judge", rows(PAIRS[:1]), *words, f"judge.cache={tmp_path}/c.sqlite"]) == 1
    assert "gave no answer in 1 attempts" in capsys.readouterr().err
