"""What a run keeps of what its base could do: asked in the same way before and after, and compared row by row."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from training import trained_run

from tunecli import retain
from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run, load_config
from tunecli.config.errors import ConfigError, UserError
from tunecli.config.run import RunConfig
from tunecli.evaluation.uncertainty import Difference
from tunecli.report.retained import FILE, Change, as_lines, read_retained
from tunecli.scoring import score
from tunecli.scoring.comparison import compare

TEXTS = "stage=pretrain data=smoke_text"
CHATS = "data=smoke evaluation.exact_match=4 evaluation.max_new_tokens=4"


def config_with(*entries: str, recipe: str = "smoke_sft_lora") -> RunConfig:
    config = compose_run(recipe, ["launch=cpu"]).config
    config.evaluation.retain = list(entries)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["train.max_steps=4", "train.learning_rate=5e-3", "train.eval_every=null"]
    trained_run(folder, "smoke_sft_lora", *words, f"evaluation.retain=['{TEXTS}','{CHATS}']")
    assert retain.main(folder) == 0
    return folder


def test_both_are_scored_as_tune_eval_scores_them(run: Path) -> None:
    texts, chats = read_retained(run)
    base = load_config(run / "config.yaml").model.path
    for name, path in (("base", base), ("tuned", str(run))):
        found = score(path, TEXTS.split(), gap=False).metrics
        known = {change.metric: getattr(change, name) for change in texts.changes}
        assert known == pytest.approx({metric: found[metric].value for metric in known}, rel=1e-6)
    assert texts.first.metric == "perplexity" and texts.first.verdict == "too few to tell"
    assert chats.first.metric == "exact_match" and chats.asked == CHATS
    tuned = {each.metric: each.tuned for each in chats.changes}
    assert tuned["loss"] == pytest.approx(score(str(run), CHATS.split(), gap=False).metrics["loss"].value, rel=1e-6)


def bordered(*values: float | None) -> list[float]:
    return [math.nan if value is None else value for value in values]


def test_differences_are_those_of_a_comparison(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the comparison is written
    base = load_config(run / "config.yaml").model.path
    (_, tuned) = compare([base, str(run)], TEXTS.split(), show_progress=False).runs
    known = {name: bordered(each.value, each.low, each.high) for name, each in tuned.differences.items()}
    found = {each.metric: bordered(each.difference, each.low, each.high) for each in read_retained(run)[0].changes}
    assert found.keys() == known.keys()
    for name in known:
        assert found[name] == pytest.approx(known[name], rel=1e-4, nan_ok=True)


def test_they_are_said_and_in_the_report(run: Path) -> None:
    lines = list(as_lines(read_retained(run)))
    assert "smoke_text, 2 examples: perplexity" in lines[1] and lines[2].endswith(", too few to tell")
    assert lines[1].strip() in (run / "log.txt").read_text()
    page = (run / "report.html").read_text()
    assert "What the base could do" in page and "tune eval RUN stage=pretrain data=smoke_text" in page


def test_with_nothing_learnt_nothing_is_lost(run: Path, tmp_path: Path) -> None:
    """LoRA starts as the base."""
    folder = tmp_path / "run"
    trained_run(folder, "smoke_sft_lora", "train.max_steps=1", "train.learning_rate=1e-30", "train.eval_every=null")
    config = load_config(folder / "config.yaml")
    (_, tuned) = retain.measure(config, folder, TEXTS).runs
    assert all(each == Difference(0.0) for each in tuned.differences.values())


def test_templates_of_a_verbalizer_and_quantised_bases_are_asked_as_trained(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["train.max_steps=1", "train.eval_every=null", "model.quantization=nf4"]
    trained_run(folder, "smoke_verbalize", *words, "evaluation.retain=['data=smoke_labels']")
    assert retain.main(folder) == 0
    (entry,) = json.loads((folder / FILE).read_text())
    assert {run["name"] for run in entry["runs"]} == {"base", "tuned"}
    assert read_retained(folder)[0].first.metric == "accuracy"


@pytest.mark.parametrize(
    ("recipe", "entry", "what"),
    [
        ("smoke_sft_lora", "data=smoke_tex", "no option 'smoke_tex'"),
        ("smoke_sft_lora", "stage=classify data=smoke_labels", "was trained as sft"),
        ("smoke_sft_lora", "data.path=nothing.jsonl", "nothing.jsonl"),
        ("smoke_sft_lora", "data=smoke 'x", "No closing quotation"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_training(recipe: str, entry: str, what: str) -> None:
    place = re.escape(f"evaluation.retain entry 2 ({entry}): ")
    with pytest.raises(UserError, match=f"{place}.*{what}.*\n  fix: ."):
        retain.check(config_with(TEXTS, entry, recipe=recipe))


def test_all_that_cannot_be_asked_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        retain.check(config_with("data=smoke_tex", TEXTS, "data=smoke train.learning_rate=1", "data.path=none.jsonl"))
    places = [problem.where.partition(" (")[0] for problem in caught.value.problems]
    assert places == [f"evaluation.retain entry {number}" for number in (1, 3, 4)]
    assert not any("command line" in problem.what for problem in caught.value.problems)


@pytest.mark.parametrize("recipe", ["smoke_classify", "smoke_tag"])
def test_a_base_without_a_head_cannot_be_asked_and_what_can_is_said(recipe: str) -> None:
    with pytest.raises(ConfigError) as caught:
        retain.check(config_with("data=smoke_labels", "stage=pretrain data=smoke_text", recipe=recipe))
    (problem,) = caught.value.problems
    assert problem.where == "evaluation.retain" and "new head" in problem.what
    assert "evaluation.retain=[]" in problem.fix
    assert ("stage=verbalize" in problem.fix) == (recipe == "smoke_classify")
    retain.check(config_with(recipe=recipe))


def test_what_can_be_asked_passes() -> None:
    retain.check(config_with(TEXTS, CHATS))


def test_without_training_there_is_nothing_to_compare() -> None:
    config = config_with(TEXTS)
    config.train.max_steps = 0
    assert [problem.where for problem in find_problems(config, new_run=True)] == ["evaluation.retain"]


@pytest.mark.parametrize(
    ("metric", "difference", "verdict"),
    [("perplexity", 1.0, "worse"), ("accuracy", 1.0, "better"), ("accuracy", -1.0, "worse"), ("mse", -1.0, "better")],
)
def test_verdicts(metric: str, difference: float, verdict: str) -> None:
    assert Change(metric, 0.0, 0.0, difference, difference - 0.5, difference + 0.5).verdict == verdict
    assert Change(metric, 0.0, 0.0, difference, difference - 2, difference + 2).verdict == "may be chance"
    assert Change(metric, 0.0, 0.0, 0.0, 0.0, 0.0).verdict == "the same"
    assert Change(metric, 0.0, 0.0, difference, None, None).verdict == "too few to tell"
