"""Classifiers and reward models as judges."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tunecli.config.errors import UserError
from tunecli.config.judge import RewardModelJudgeConfig
from tunecli.config.model import ModelConfig
from tunecli.config.stage import ProblemType, Task
from tunecli.judging.judge import open_judge
from tunecli.judging.questions import Answered, Compared
from tunecli.models.load import Head, load_model, load_tokenizer

TEXTS = ["A gem.", "A dull and endless film.", "It was fine, if you like that kind of thing.", "No."]


def saved(folder: Path, base: str, labels: list[str], problem: ProblemType) -> str:
    """A tiny model with a random head."""
    path = ModelConfig(path=f"builtin:{base}")
    head = Head(labels=labels, problem_type=problem, seed=0)
    model = load_model(
        path, dtype=torch.float32, device=torch.device("cpu"), task=Task.sequence_classification, head=head
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.split(".")[0] in ("score", "classifier"):
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    tokenizer = load_tokenizer(path)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def judge(tmp_path: Path, path: str, **values):
    return open_judge(RewardModelJudgeConfig(path=path, cache=str(tmp_path / "c.sqlite"), **values), seed=0)


@torch.no_grad()
def logits(path: str, text: str, special: bool) -> torch.Tensor:
    """Of the stock model, the text alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForSequenceClassification.from_pretrained(path)
    return model(torch.tensor([tokenizer(text, add_special_tokens=special)["input_ids"]])).logits[0]


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_llama"])
def test_the_score_of_a_classifier_is_the_log_odds_of_its_label(base: str, tmp_path: Path):
    path = saved(tmp_path / "model", base, ["bad", "mixed", "good"], ProblemType.single_label)
    found = judge(tmp_path, path, label="good").score([Answered("Review: ", text) for text in TEXTS])
    for text, each in zip(TEXTS, found, strict=True):
        shares = logits(path, f"Review: {text}", True).softmax(0)
        assert each.value == pytest.approx(math.log(shares[2] / (1 - shares[2])), abs=1e-4)


def test_a_reward_model_gives_its_number_and_answers_are_compared_by_the_difference(tmp_path: Path):
    path = saved(tmp_path / "model", "tiny_llama", ["score"], ProblemType.regression)
    own = judge(tmp_path, path)
    prompt = (("user", "How was it?"),)
    scores = [each.value for each in own.score([Answered(prompt, text) for text in TEXTS])]
    text = f"<|im_start|>user\nHow was it?<|im_end|>\n<|im_start|>assistant\n{TEXTS[0]}<|im_end|>"
    assert scores[0] == pytest.approx(float(logits(path, text, False)[0]), abs=1e-4)
    first = own.compare([Compared(prompt, TEXTS[0], TEXTS[1])])[0]
    swapped = own.compare([Compared(prompt, TEXTS[1], TEXTS[0])])[0]
    assert first.probability == pytest.approx(1 / (1 + math.exp(scores[1] - scores[0])))
    assert first.probability + swapped.probability == pytest.approx(1, abs=1e-12)
    assert first.as_first is None and own.counts.from_cache == 4


def test_scores_from_the_cache_are_the_same_to_the_last_bit(tmp_path: Path, monkeypatch):
    path = saved(tmp_path / "model", "tiny_bert", ["bad", "good"], ProblemType.single_label)
    items = [Answered("", text) for text in TEXTS]
    found = judge(tmp_path, path, label="good").score(items)
    monkeypatch.setattr("tunecli.judging.reward_model.load_base", lambda *_: pytest.fail("loaded"))
    assert judge(tmp_path, path, label="good").score(items) == found
    with pytest.raises(pytest.fail.Exception):
        judge(tmp_path, path, label="bad").score(items)


def test_a_text_that_is_too_long_loses_its_beginning(tmp_path: Path):
    path = saved(tmp_path / "model", "tiny_bert", ["bad", "good"], ProblemType.single_label)
    own = judge(tmp_path, path, label="good", max_length=20)
    long, other = own.score(
        [Answered("", "x" * 100 + "the same end of it"), Answered("", "y" * 50 + "the same end of it")]
    )
    assert long.value == pytest.approx(other.value, abs=1e-6)


def test_labels_that_are_not_said_or_not_there(tmp_path: Path):
    path = saved(tmp_path / "model", "tiny_bert", ["bad", "good"], ProblemType.single_label)
    with pytest.raises(UserError, match="knows bad, good"):
        judge(tmp_path, path)
    with pytest.raises(UserError, match="did you mean good"):
        judge(tmp_path, path, label="goood")
    with pytest.raises(UserError, match="no classifier of texts"):
        judge(tmp_path, "builtin:tiny_llama")
