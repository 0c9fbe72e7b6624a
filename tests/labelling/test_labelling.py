"""Labelling: what is written, and that it is the same however the work was cut up and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from stub_server import longer_wins, send, serving

from tunecli import labelling
from tunecli.cli import main
from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.errors import UserError
from tunecli.config.run import RunConfig, to_yaml
from tunecli.data.formats import choose_format
from tunecli.judging.cache import Cache
from tunecli.judging.openai import ServerError
from tunecli.labelling.store import Store

SMALL = ["data.max_samples=8", "stage.prompts_together=3", "stage.max_new_tokens=5"]
PAIRS = ["data=smoke_pairs", "stage.mode=given_pairs", "data.max_samples=8", "stage.prompts_together=2"]
KEY = "sk-0123456789abcdef"


def config(tmp_path: Path, *overrides: str, small: list[str] = SMALL) -> RunConfig:
    words = [*small, f"judge.cache={tmp_path}/cache.sqlite", *overrides]
    found = compose_run("smoke_label", [word for word in words if word]).config
    assert not find_problems(found)
    return replace(found, launch=replace(found.launch, num_processes=1))


def run(folder: Path, chosen: RunConfig) -> list[dict]:
    folder.mkdir(exist_ok=True, parents=True)
    assert labelling.main(chosen, folder) == 0
    return [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]


def test_pairs_of_answers_are_a_preference_set(tmp_path: Path):
    records = run(tmp_path / "run", config(tmp_path, "stage.num_samples=3"))
    places = [record["provenance"]["row"] for record in records]
    assert places == sorted(places) and len(records) > 8
    for record in records:
        assert 0.5 <= record["probability"] <= 1
        judgment = record["judgment"]
        assert (judgment["as_first"] + judgment["as_second"]) / 2 == pytest.approx(record["probability"])
        assert record["provenance"]["policy"]["path"] == record["provenance"]["judge"]["name"] == "builtin:tiny_llama"
        pair = choose_format("preference", {}, record, ("preference",))(record)
        assert pair.probability == record["probability"]
    found = json.loads((tmp_path / "run" / "statistics.json").read_text())
    assert found["rows"] == 8 and found["written"] == len(records)
    assert found["judge"]["answers"]["failed"] == 0


def test_pairs_that_are_there_are_judged(tmp_path: Path):
    records = run(tmp_path / "run", config(tmp_path, small=PAIRS))
    assert len(records) == 8
    assert {record["agrees"] for record in records} <= {True, False}
    found = json.loads((tmp_path / "run" / "statistics.json").read_text())
    assert found["agrees_with_given"] == pytest.approx(sum(record["agrees"] for record in records) / 8)


@pytest.mark.parametrize("mode", ["pairwise", "score"])
def test_the_best_of_several_answers_has_the_highest_score(mode: str, tmp_path: Path):
    records = run(tmp_path / "run", config(tmp_path, "stage.mode=best_of_n", f"judge.mode={mode}"))
    assert records
    for record in records:
        assert record["scores"][record["chosen_sample"]] == max(record["scores"])
        assert choose_format("auto", {}, record, ("messages",))(record).messages[-1]["role"] == "assistant"


def test_answers_are_revised_by_principles(tmp_path: Path):
    small = ["data.max_samples=3", "stage.prompts_together=2", "stage.max_new_tokens=5", "stage.mode=revise"]
    chosen = compose_run("smoke_label", [*small, "stage.num_revisions=2"]).config
    records = run(tmp_path / "run", replace(chosen, judge=None))
    assert len(records) == 3
    for record in records:
        assert len(record["critiques"]) == len(set(record["principles"])) == 2
        assert record["original"] and record["messages"][-1]["content"]
    assert json.loads((tmp_path / "run" / "statistics.json").read_text())["changed"] > 0


def test_other_seeds_draw_other_answers(tmp_path: Path):
    first, again, other = (
        run(tmp_path / name, config(tmp_path / name, f"seed={seed}"))
        for name, seed in {"a": 0, "b": 0, "c": 1}.items()
    )
    assert first == again
    assert [record["chosen"] for record in first] != [record["chosen"] for record in other]


class Killed(BaseException):
    pass


def die_at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, number: int) -> None:
    """At call `number` of a method, before it does anything."""
    method, calls = getattr(owner, name), []

    def counted(self, *args):
        calls.append(name)
        if len(calls) == number:
            raise Killed
        return method(self, *args)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("owner", [Store, Cache], ids=["unit", "judgments"])
@pytest.mark.parametrize("small", [SMALL, PAIRS], ids=["preference", "given_pairs"])
def test_a_run_that_was_killed_anywhere_ends_with_the_same_file(small, owner, number, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    run(whole, config(whole, small=small))
    chosen, folder = config(tmp_path, small=small), tmp_path / "run"
    with monkeypatch.context() as patched:
        die_at(patched, owner, "put", number)
        with pytest.raises(Killed):
            run(folder, chosen)
    assert not (folder / "labels.jsonl").exists()
    run(folder, chosen)
    assert (folder / "labels.jsonl").read_bytes() == (whole / "labels.jsonl").read_bytes()


@pytest.mark.parametrize("small", [SMALL, PAIRS], ids=["preference", "given_pairs"])
def test_two_processes_label_as_one(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(tmp_path / "one", config(tmp_path / "one", small=small))
    folder = tmp_path / "two"
    folder.mkdir()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        assert not (folder / "labels.jsonl").exists()
        monkeypatch.setenv("RANK", rank)
        assert labelling.main(config(folder, small=small), folder) == 0
    assert (folder / "labels.jsonl").read_bytes() == (tmp_path / "one" / "labels.jsonl").read_bytes()


def test_rows_with_the_same_prompt_are_in_one_unit(tmp_path: Path):
    row = {"prompt": "Say something.", "answer": "x"}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in [row, {"prompt": "Another."}, row, row]))
    words = [
        "data=file",
        f"data.path={file}",
        "data.validation=null",
        "stage.prompts_together=1",
        "stage.max_new_tokens=5",
    ]
    records = run(tmp_path / "run", config(tmp_path, small=words))
    assert [record["provenance"]["row"] for record in records] == [1, 2, 3, 4]
    assert len({record["chosen"] for record in records}) == 4


def test_a_run_goes_on_only_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        die_at(patched, Store, "put", 2)
        with pytest.raises(Killed):
            run(folder, config(tmp_path))
    with pytest.raises(UserError, match="another stage"):
        run(folder, config(tmp_path, "stage.temperature=0.5"))
    with pytest.raises(UserError, match="another judge, seed"):
        run(folder, config(tmp_path, "seed=1", "judge.num_examples=1"))


def test_ties_are_left_out_when_asked_for(tmp_path: Path):
    records = run(tmp_path / "run", config(tmp_path, "stage.drop_ties=true", "judge.tie_margin=0.4"))
    assert records == []
    left_out = (tmp_path / "run" / "left_out.jsonl").read_text()
    assert '"why": "a tie"' in left_out and '"row": 1' in left_out


def test_a_prompt_that_is_too_long_is_left_out_and_said(tmp_path: Path):
    run(tmp_path / "run", config(tmp_path, "data.max_length=60"))
    found = json.loads((tmp_path / "run" / "statistics.json").read_text())
    assert found["left_out"]["too long"] > 0 and found["written"] > 0


SERVER = ["judge=openai", "judge.model=m", "judge.api_key_env=MY_KEY"]


def test_a_server_that_fails_loses_nothing_and_no_file_has_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setattr("tunecli.judging.openai.random.uniform", lambda low, high: 0.01)
    whole, folder = tmp_path / "whole", tmp_path / "run"

    def fails_later(handler, body, number):
        if number < 7:
            longer_wins(handler, body, number)
        else:
            send(handler, {"error": {"message": f"quota of {KEY}"}}, 429)

    with serving(fails_later) as stub:
        words = [*SERVER, f"judge.base_url={stub.url}", "judge.max_retries=1"]
        with pytest.raises(ServerError) as caught:
            run(folder, config(tmp_path, *words))
        assert KEY not in str(caught.value)
        stub.answer = longer_wins
        before = len(stub.requests)
        run(folder, config(tmp_path, *words))
        rest = len(stub.requests) - before
        run(whole, config(whole, *words))
        assert rest == len(stub.requests) - before - rest - 7
    assert (folder / "labels.jsonl").read_bytes() == (whole / "labels.jsonl").read_bytes()
    (folder / "config.yaml").write_text(to_yaml(config(tmp_path, *words)))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 8 and all(KEY.encode() not in path.read_bytes() for path in written)


WRONG = {
    "judge=null": ["stage.mode=best_of_n"],
    "stage.num_samples": ["stage.num_samples=1"],
    "stage.temperature": ["stage.temperature=0"],
    "stage.num_pairs": ["stage.mode=best_of_n", "stage.num_pairs=1"],
    "stage.num_revisions": ["stage.mode=revise", "stage.num_revisions=99"],
    "train.learning_rate": ["train.learning_rate=1"],
    "evaluation.exact_match": ["evaluation.exact_match=3"],
    "peft": ["peft=lora"],
    "data.streaming": ["data.streaming=true"],
    "judge.num_votes": ["judge.num_votes=2"],
    "data.format": ["data=smoke_pairs"],
}


@pytest.mark.parametrize(("key", "overrides"), list(WRONG.items())[1:])
def test_what_would_do_nothing_is_refused(key: str, overrides: list[str]):
    problems = find_problems(compose_run("smoke_label", overrides).config)
    assert key in [problem.where for problem in problems]


def test_a_judge_where_nothing_is_judged_is_refused():
    problems = find_problems(compose_run("smoke_sft_lora", ["+judge=tiny_llama"]).config)
    assert [problem.where for problem in problems] == ["judge"]
    chosen = compose_run("smoke_label", []).config
    assert [problem.where for problem in find_problems(replace(chosen, judge=None))] == ["judge"]


def test_the_verb_is_for_recipes_that_label(capsys: pytest.CaptureFixture[str]):
    assert main(["label", "recipe=smoke_sft_lora"]) == 2
    assert "tune run recipe=smoke_sft_lora" in capsys.readouterr().err
    assert main(["label", "recipe=smoke_label", "mode=best_of_n", "--dry-run"]) == 0
    assert "mode: best_of_n" in capsys.readouterr().out
    assert main(["check", "recipe=smoke_label", "--no-data"]) == 0
    told = capsys.readouterr().out
    assert "preference, 4 prompts together" in told and "trains" not in told


@pytest.mark.slow
def test_processes_that_are_killed_outright_go_on_with_tune_resume(tmp_path: Path):
    folder, words = tmp_path / "run", ["data.max_samples=24", "stage.prompts_together=1", "stage.max_new_tokens=5"]
    tune = [sys.executable, "-m", "tunecli"]
    own = [*words, f"judge.cache={tmp_path}/cache.sqlite"]
    started = subprocess.Popen(
        [*tune, "label", "recipe=smoke_label", *own, f"output_dir={folder}", "launch.num_processes=2"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    while not (folder / "units.sqlite").exists() or not _done(folder):
        assert started.poll() is None
        time.sleep(0.05)
    _kill_all_of(folder)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert 0 < _done(folder) < 24 and not (folder / "labels.jsonl").exists()
    subprocess.run([*tune, "resume", folder], check=True, stdout=subprocess.DEVNULL)
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    whole = tmp_path / "whole"
    chosen = compose_run("smoke_label", [*words, f"judge.cache={tmp_path}/other.sqlite"]).config
    run(whole, replace(chosen, launch=replace(chosen.launch, num_processes=1)))
    assert (folder / "labels.jsonl").read_bytes() == (whole / "labels.jsonl").read_bytes()


def _done(folder: Path) -> int:
    import sqlite3

    try:
        with sqlite3.connect(folder / "units.sqlite", timeout=30) as connection:
            return int(connection.execute("SELECT count(*) FROM units").fetchone()[0])
    except sqlite3.OperationalError:  # the tables are not there yet
        return 0


def _kill_all_of(folder: Path) -> None:
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in (process.info["cmdline"] or []) and "tunecli.worker" in process.info["cmdline"]:
            os.kill(process.pid, signal.SIGKILL)
