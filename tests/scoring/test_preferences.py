"""`tune eval` and `tune predict` of a model that learnt preferences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training import trained_run

from tests.scoring.test_scoring import logged
from tunecli.config.errors import UserError
from tunecli.scoring import predicting, score
from tunecli.scoring.page import write_page

SHORT = ("train.max_steps=3", "train.eval_every=3", "train.save_every=3", "evaluation.max_new_tokens=6")
RUNS = {"dpo": ("smoke_dpo",), "kto": ("smoke_kto",), "simpo": ("smoke_dpo", "stage.loss=simpo", "peft=full")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: trained_run(folder / name, *words, *SHORT) for name, words in RUNS.items()}


@pytest.mark.parametrize("name", RUNS)
def test_the_numbers_are_those_that_training_logged(runs, name: str, tmp_path: Path) -> None:
    scores = score(str(runs[name]))
    write_page(scores, tmp_path / "page.html")
    assert "rewards/" in (tmp_path / "page.html").read_text()
    found = {name: metric.value for name, metric in scores.metrics.items()}
    known = logged(runs[name])
    assert known and set(found) == set(known)
    assert found == pytest.approx(known, abs=1e-4, rel=1e-5)
    expected = {"chosen", "rejected"} if name != "kto" else {"predicted"}
    assert all(expected <= set(record) for record in scores.records)


def test_what_was_before_full_fine_tuning_is_gone(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "full", "smoke_dpo", "peft=full", "train.learning_rate=1e-3", *SHORT)
    with pytest.raises(UserError, match="not in the result"):
        score(str(run))


def test_it_answers_as_a_language_model_does(runs, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("How was it?", "And the end?")))
    found = list(predicting.predict(predicting.plan(str(runs["dpo"]), str(rows))))
    assert len(found) == 2 and all(isinstance(record["predicted"], str) for record in found)
