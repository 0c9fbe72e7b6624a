"""A model on this machine as judge."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tunecli.config.errors import UserError
from tunecli.config.judge import LocalJudgeConfig, Mode, Read
from tunecli.config.model import Attention, DType
from tunecli.judging.backend import Ask
from tunecli.judging.judge import open_judge
from tunecli.judging.local import Local
from tunecli.judging.questions import Answered, Compared, Question

PAIRS = [Compared(f"Question {i}?", f"Answer {i}.", f"Another, longer answer {i * i}.") for i in range(4)]


def config(tmp_path: Path, **values) -> LocalJudgeConfig:
    return LocalJudgeConfig(**{"path": "builtin:tiny_llama", "cache": str(tmp_path / "c.sqlite")} | values)


@torch.no_grad()
def test_probabilities_are_those_of_the_stock_model_alone(tmp_path: Path):
    local = Local(config(tmp_path))
    questions = [Question(f"Which {'really ' * i}?", "Better:", ("1", "2"), False) for i in range(3)]
    found = dict(local.answer([Ask(each, True, 0.0, 8, 0) for each in questions]))
    model = local._model
    model.policy.lm.set_attn_implementation("eager")
    for i, question in enumerate(questions):
        text = f"<|im_start|>user\n{question.text}<|im_end|>\n<|im_start|>assistant\nBetter: "
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        logits = model.policy.lm(ids[:, :-1]).logits[0, -1].log_softmax(-1)
        after = model.policy.lm(ids).logits[0, -1].log_softmax(-1)
        one, two = (model.tokenizer(each, add_special_tokens=False)["input_ids"][0] for each in "12")
        space = float(logits[ids[0, -1]])
        assert found[i].probabilities is not None and found[i].mass is not None
        assert math.log(found[i].probabilities[0] / found[i].probabilities[1]) == pytest.approx(
            float(after[one] - after[two]), abs=1e-5
        )
        assert found[i].mass == pytest.approx(
            math.exp(space) * (math.exp(float(after[one])) + math.exp(float(after[two]))), rel=1e-4
        )


@pytest.mark.parametrize("values", [{"mode": Mode.score}, {"num_examples": 2}], ids=str)
def test_padded_is_packed(values, tmp_path: Path):
    packed = open_judge(config(tmp_path / "a", **values), seed=0).compare(PAIRS)
    padded = open_judge(config(tmp_path / "b", attention=Attention.padded, batch_tokens=900, **values), seed=0)
    for one, other in zip(packed, padded.compare(PAIRS), strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-6)
        assert one.mass == pytest.approx(other.mass, rel=1e-4)


MODES = {
    "pairwise": {},
    "score": {"mode": Mode.score},
    "principles": {"mode": Mode.principles, "num_principles": 2},
    "reasons": {"chain_of_thought": True, "num_votes": 2, "max_new_tokens": 6},
}


@pytest.mark.parametrize("values", MODES.values(), ids=MODES)
def test_swapping_the_answers_gives_the_complement(values, tmp_path: Path):
    judge = open_judge(config(tmp_path, **values), seed=0)
    found = judge.compare(PAIRS)
    swapped = judge.compare([pair.swapped for pair in PAIRS])
    for one, other in zip(found, swapped, strict=True):
        assert one.probability is not None and other.probability is not None
        assert one.probability + other.probability == pytest.approx(1, abs=1e-12)
        if one.as_first is not None and other.as_second is not None:
            assert one.as_first + other.as_second == pytest.approx(1, abs=1e-12)
    assert len({one.probability for one in found}) == len(PAIRS)
    assert judge.counts.from_cache == judge.counts.answers // 2


@pytest.mark.parametrize("values", MODES.values(), ids=MODES)
def test_answers_from_the_cache_change_nothing_and_load_no_model(values, tmp_path: Path, monkeypatch):
    found = open_judge(config(tmp_path, **values), seed=0).compare(PAIRS)
    monkeypatch.setattr("tunecli.judging.local.load_model", lambda *_, **__: pytest.fail("loaded"))
    again = open_judge(config(tmp_path, **values), seed=0)
    assert again.compare(PAIRS) == found
    assert again.counts.from_cache == again.counts.answers and again.usage.answers == 0


def test_what_a_random_model_writes_is_no_vote_and_is_asked_again(tmp_path: Path):
    judge = open_judge(config(tmp_path, read=Read.votes, num_votes=2, max_new_tokens=3, retries=1), seed=0)
    found = judge.compare(PAIRS[:1])[0]
    assert found.probability is None and "no verdict" in found.problem
    assert judge.counts.unreadable == judge.counts.answers == 2 * 2 * 2
    assert judge.counts.failed == judge.counts.questions == 2


def test_seeds_draw_other_reasons(tmp_path: Path):
    values = MODES["reasons"]
    first, again, other = (
        open_judge(config(tmp_path / str(i), **values), seed=seed).compare(PAIRS[:1])[0].reasons
        for i, seed in enumerate((0, 0, 1))
    )
    assert first == again != other
    assert len(set(first)) == 4


def test_a_question_that_is_too_long_has_no_verdict_and_spoils_no_other(tmp_path: Path):
    judge = open_judge(config(tmp_path), seed=0)
    room = judge.backend._model.policy.lm.config.max_position_embeddings  # type: ignore[attr-defined]
    long = Compared("a" * (room + 1), "b", "c")
    found = judge.compare([PAIRS[0], long])
    assert found[1].probability is None and "tokens" in found[1].problem
    alone = open_judge(config(tmp_path / "other"), seed=0).compare(PAIRS[:1])[0]
    assert found[0].probability == pytest.approx(alone.probability, abs=1e-7)


def test_scores_are_between_the_lowest_and_the_highest(tmp_path: Path):
    judge = open_judge(config(tmp_path, mode=Mode.score), seed=0)
    (found,) = judge.score([Answered("q", "a")])
    assert found.value is not None and 1 < found.value < 10
    assert found.distribution is not None and sum(found.distribution) == pytest.approx(1)


def test_a_judge_that_compares_gives_no_scores(tmp_path: Path):
    with pytest.raises(UserError, match="judge.mode=score"):
        open_judge(config(tmp_path), seed=0).score([Answered("q", "a")])


def test_other_weights_are_another_judge(tmp_path: Path):
    one = Local(config(tmp_path)).identity
    assert one == Local(config(tmp_path)).identity
    assert one != Local(config(tmp_path, path="builtin:tiny_qwen3")).identity
    assert one != Local(config(tmp_path, dtype=DType.bfloat16)).identity
    json.dumps(one)


def test_verdicts_of_a_bf16_model_are_not_rounded_to_bf16(tmp_path: Path):
    exact = open_judge(config(tmp_path), seed=0).compare(PAIRS)
    half = open_judge(config(tmp_path, dtype=DType.bfloat16), seed=0).compare(PAIRS)
    shares = {one.as_first for one in half}
    assert len(shares) == len(PAIRS)
    for one, other in zip(exact, half, strict=True):
        assert one.as_first == pytest.approx(other.as_first, abs=5e-3)


@pytest.mark.parametrize(("path", "what"), [("builtin:tiny_bert", "masked_lm"), ("builtin:tiny_t5", "seq2seq_lm")])
def test_models_of_another_kind_are_refused(path: str, what: str, tmp_path: Path):
    with pytest.raises(UserError, match=what):
        open_judge(config(tmp_path, path=path), seed=0)
