"""What the preference stage refuses: options that the chosen loss does not read, and values out of range."""

from __future__ import annotations

import pytest

from tunecli.config.checks import find_problems, metrics_of
from tunecli.config.compose import compose_run
from tunecli.config.errors import Problem
from tunecli.config.preference_checks import READ_BY
from tunecli.config.stage import PreferenceConfig, PreferenceLoss

VALUES = {
    "label_smoothing": "0.2",
    "gamma": "0.5",
    "margin_weight": "1",
    "desirable_weight": "2",
    "undesirable_weight": "2",
    "reference": "live",
}
"""option -> a value other than its default"""


def problems_of(*words: str, recipe: str = "smoke_dpo") -> list[Problem]:
    return find_problems(compose_run(recipe, list(words)).config)


@pytest.mark.parametrize("loss", PreferenceLoss)
@pytest.mark.parametrize("option", VALUES)
def test_an_option_is_refused_where_the_loss_does_not_read_it(loss: PreferenceLoss, option: str) -> None:
    found = problems_of(f"stage.loss={loss.value}", f"stage.{option}={VALUES[option]}")
    if loss in READ_BY[option]:
        assert found == []
    else:
        (problem,) = found
        assert problem.where == f"stage.{option}" and f"loss={loss.value}" in problem.what


def test_every_option_of_single_losses_is_known() -> None:
    assert set(VALUES) == set(READ_BY)


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["stage.beta=0"], "stage.beta", "is 0"),
        (["stage.margin_weight=-1"], "stage.margin_weight", "is -1"),
        (["stage.loss=cdpo", "stage.label_smoothing=0.5"], "stage.label_smoothing", "is 0.5"),
        (["stage.loss=exo", "stage.label_smoothing=0"], "stage.label_smoothing", "never certain"),
        (["stage.loss=kto", "train.global_batch_size=1"], "train.global_batch_size", "other prompts"),
        (["stage.max_target_length=9"], "stage.max_target_length", "encoder-decoders"),
        (["evaluation.exact_match=5"], "evaluation.exact_match", "right answer"),
        (["evaluation.choices=[a,b]"], "evaluation.choices", "right answer"),
        (["train.best_metric=eval/accuracy"], "train.best_metric", "no metric"),
        (["data=smoke_feedback"], "data.format", "cannot learn from"),
        (["data=smoke"], "data.format", "cannot learn from"),
        (["data.overlong=split"], "data.overlong", "as a whole"),
    ],
)
def test_a_mistake_is_the_only_problem(words: list[str], where: str, what: str) -> None:
    (problem,) = problems_of(*words)
    assert problem.where == where and what in problem.what and problem.fix


def test_a_stream_has_no_cache() -> None:
    words = ["data.streaming=true", "data.validation=null", "train.eval_every=null"]
    assert problems_of(*words) == []
    (problem,) = problems_of(*words, "stage.reference=cached")
    assert problem.where == "stage.reference"


def test_kto_takes_pairs_too() -> None:
    assert problems_of("stage.loss=kto") == [] == problems_of(recipe="smoke_kto")


def test_its_metrics_can_choose_the_best_model() -> None:
    assert "eval/rewards/accuracies" in metrics_of(PreferenceConfig())
    assert problems_of("train.keep_best=true", "train.best_metric=eval/rewards/accuracies") == []
