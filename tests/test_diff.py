"""What `tune diff` finds between two runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fake_run import HOSTILE, metrics_of, write_run

from tunecli.cli import main
from tunecli.config.errors import UserError
from tunecli.report.difference import compare, labels
from tunecli.report.run_files import read_run


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=2, r=64, floor=0.9)


def test_only_what_differs_is_listed(runs: tuple[Path, Path]):
    sections = {section.title: section for section in compare([read_run(run) for run in runs])}
    assert sections["configuration"].differing == {"peft.lora.r": [16, 64], "seed": [1, 2]}
    assert sections["configuration"].equal == 19
    assert sections["data"].differing.keys() == {"train.fingerprints", "validation.fingerprints"}
    assert (sections["versions"].differing, sections["versions"].equal) == ({}, 7)
    assert (sections["hardware"].differing, sections["hardware"].equal) == ({}, 5)
    results = sections["results"].differing
    for place, run in enumerate(runs):
        points = metrics_of(run)["eval/loss"]
        assert results["eval/loss (last)"][place] == points[-1][1]
        assert results["eval/loss (best)"][place] == min(value for _, value in points)
    assert "eval/exact_match (last)" not in results


def test_a_metric_that_ends_at_its_best_has_one_row(runs: tuple[Path, Path]):
    for width, run in zip((300, 310), runs, strict=True):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rising = [line | {"eval/exact_match": line["step"] / width} for line in lines]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rising))
    results = next(section.differing for section in compare(list(map(read_run, runs))) if section.title == "results")
    assert "eval/exact_match" in results and not [name for name in results if name.startswith("eval/exact_match (")]
    assert "eval/loss (best)" in results


def test_what_is_shown_as_zero_has_no_sign_and_hashes_are_short(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    for run, commit, more in zip(runs, "ab", (0, 4096), strict=True):
        text = (run / "environment.json").read_text().replace("0b2a4e5c7d", commit * 40)
        (run / "environment.json").write_text(text)
        metrics = (run / "metrics.jsonl").read_text().replace("1882000000", str(1882000000 + more))
        (run / "metrics.jsonl").write_text(metrics)
    assert main(["diff", *map(str, runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["git_commit", 10 * "a", 10 * "b"] in map(str.split, lines)
    assert ["memory_peak_bytes", "1.88", "GB", "1.88", "GB", "0"] in map(str.split, lines)
    assert not [line for line in lines if line.endswith(" ")]


def test_two_runs_of_the_same_kind_are_said_to_be_equal(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    twin = shutil.copytree(runs[0], runs[0].parent / "twin")
    assert main(["diff", str(runs[0]), str(twin)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines[:2] == ["A  a", "B  twin"]
    assert lines[2:] == [
        "configuration: all 21 the same",
        "data: all 16 the same",
        "versions: all 7 the same",
        "hardware: all 5 the same",
        "results: all 16 the same",
        "speed: all 3 the same",
    ]


def test_the_terminal_shows_differences_with_their_sign(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(runs[0].parent)
    main(["diff", "a", "b"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["peft.lora.r", "16", "64"] in rows
    assert ["eval/loss", "(last)", "1.313", "1.113", "−0.2"] in rows
    assert ["train.fingerprints", "11111111,", "11111111,", "11111111", "22222222,", "22222222,", "22222222"] in rows


def test_escapes_in_what_runs_hold_reach_no_terminal(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "")
    environment = runs[1] / "environment.json"
    environment.write_text(environment.read_text().replace("AMD EPYC", json.dumps(HOSTILE)[1:-1]))
    main(["diff", *map(str, runs)])
    out = capsys.readouterr().out
    assert "\x1b[31m" not in out and "\u202e" not in out
    assert '</script><script>alert("x")</script>\\x1b[31mred\\x1b[0m\\u202egnp' in out


def test_json_has_every_difference_and_the_number_of_equal_values(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    main(["diff", *map(str, runs), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == [str(run) for run in runs]
    assert found["configuration"] == {"peft.lora.r": [16, 64], "seed": [1, 2]}
    assert found["equal"]["versions"] == 7 and found["versions"] == {}


def test_a_value_that_one_run_does_not_have(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    (runs[1] / "environment.json").unlink()
    (runs[1] / "metrics.jsonl").unlink()
    assert main(["diff", *map(str, runs)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["torch", "2.13.0", "—"] in rows and ["eval/loss", "(last)", "1.313", "—"] in rows


def test_labels_are_the_shortest_that_tell_runs_apart(tmp_path: Path):
    paths = [tmp_path / name for name in ("x/1", "x/2", "y/1")]
    assert labels([read_run(write_run(path)) for path in paths]) == ["x/1", "x/2", "y/1"]
    assert labels([read_run(path) for path in paths[:2]]) == ["1", "2"]
    with pytest.raises(UserError, match="named twice"):
        labels([read_run(paths[0]), read_run(paths[0])])


def test_a_folder_that_is_no_run_is_a_mistake(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["diff", str(runs[0]), str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
