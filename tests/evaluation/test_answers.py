"""Questions cut out of tokenized examples, and how answers to them are judged."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import batching

from tunecli.config.data import DataConfig
from tunecli.config.errors import UserError
from tunecli.config.evaluation import EvaluationConfig
from tunecli.config.model import Attention, ModelConfig
from tunecli.config.stage import Task
from tunecli.data.mixture import build
from tunecli.data.reading import SourceTarget
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokens import Encoding
from tunecli.engine.distributed import make_accelerator
from tunecli.evaluation import texts
from tunecli.evaluation.answers import answer_all, check_choices, prompt_of, question, right_choices, text_of
from tunecli.evaluation.evaluator import Abandoned, Evaluator
from tunecli.models.generate import stop_ids
from tunecli.models.load import load_model, load_tokenizer
from tunecli.models.self_test import choose_policy
from tunecli.models.seq2seq_policy import shifted

CPU = torch.device("cpu")
MODEL = ModelConfig(path="builtin:tiny_llama")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MODEL)


@pytest.fixture(scope="module")
def policy():
    lm = load_model(MODEL, dtype=torch.float32, device=torch.device("cpu"))
    return choose_policy(lm, Attention.auto).policy.eval()


@pytest.fixture
def examples(tokenizer, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TUNECLI_CACHE", str(tmp_path))
    train, _ = build(DataConfig(path="builtin:smoke"), tokenizer, Encoding(), show_progress=False)
    return train


def evaluator(examples, tokenizer, *, rank: int = 0, **fields) -> Evaluator:
    config = EvaluationConfig(**fields)
    accelerator = make_accelerator(cpu=True, mixed_precision="no")
    return Evaluator(config, tokenizer, examples, [[5, 6]] * len(config.prompts), batching(rows=4), accelerator)


@pytest.mark.parametrize(("name", "opening", "closing"), [("tiny_llama", "", ""), ("tiny_t5", "", "</s>")])
def test_a_prompt_is_shown_without_what_stands_around_every_text(name: str, opening: str, closing: str) -> None:
    encoder = TextEncoder(load_tokenizer(ModelConfig(path=f"builtin:{name}")))
    ids = encoder.tokenizer("a tiny text")["input_ids"]
    assert encoder.tokenizer.decode(ids) == f"{opening}a tiny text{closing}"
    assert prompt_of(ids, encoder) == "a tiny text"
    turn = encoder.tokenizer("<|im_start|>user", add_special_tokens=False)["input_ids"]
    assert prompt_of(turn, encoder) == encoder.tokenizer.decode(turn)


def test_a_question_is_what_inference_sees_and_its_answer_the_last_one(examples, tokenizer) -> None:
    for i in range(len(examples)):
        found = question(examples, i)
        ids, trained = examples[i].input_ids, examples[i].trained
        assert found.prompt + found.answer == ids[: len(found.prompt) + len(found.answer)].tolist()
        assert trained[len(found.prompt) : len(found.prompt) + len(found.answer)].all()
        assert not trained[len(found.prompt) + len(found.answer) :].any()
        assert not trained[len(found.prompt) - 1]
        assert tokenizer.decode(found.prompt).endswith("assistant\n")


def test_answers_are_those_of_the_stock_model(examples, policy, tokenizer) -> None:
    questions = [question(examples, i) for i in range(4)]
    found = answer_all(policy, tokenizer, questions, 6)
    for each, answer in zip(questions, found, strict=True):
        ids = torch.tensor([each.prompt])
        stops = stop_ids(policy.lm, tokenizer.eos_token_id)
        made = policy.lm.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=stops)
        assert answer == text_of(made[0, ids.shape[1] :].tolist(), tokenizer)


def test_the_most_likely_choice_is_that_of_the_stock_model(examples, policy, tokenizer) -> None:
    questions = [question(examples, i) for i in range(8)]
    right = [text_of(each.answer, tokenizer) for each in questions]
    for each, answer in zip(questions, right, strict=True):
        choices = ["another answer", answer, "No."]
        scores = []
        for choice in choices:
            end = each.answer[-1:]
            ids = each.answer if choice == answer else tokenizer(choice, add_special_tokens=False)["input_ids"] + end
            with torch.no_grad():
                logprobs = policy.lm(torch.tensor([each.prompt + ids])).logits[0].log_softmax(-1)
            places = torch.arange(len(each.prompt) - 1, len(each.prompt) + len(ids) - 1)
            scores.append(logprobs[places, torch.tensor(ids)].sum().item())
        expected = scores.index(max(scores)) == 1
        assert right_choices(policy, tokenizer, [[each]], choices, batching(rows=2)) == [expected]


def test_an_answer_that_is_no_choice_is_wrong(examples, policy, tokenizer) -> None:
    assert right_choices(policy, tokenizer, [[question(examples, 0)]], ["yes", "no"], batching()) == [False]


def test_a_trained_model_gets_everything_right(examples, policy, tokenizer) -> None:
    """The same examples as their own model: answers are taken from what it says."""
    questions = [question(examples, i) for i in range(3)]
    said = answer_all(policy, tokenizer, questions, 8)
    expected = [text_of(question.answer, tokenizer) for question in questions]
    asked = {"exact_match": 3, "rouge": 2, "bleu": 3, "chrf": 1, "max_new_tokens": 8}
    found = evaluator(examples, tokenizer, **asked)(policy, lambda done: True)
    assert found.right == {"exact_match": [a == right for a, right in zip(said, expected, strict=True)]}
    assert [sample["answer"] for sample in found.samples] == said
    assert [sample["expected"] for sample in found.samples] == expected
    scores = [texts.rouge(said[:2], expected[:2]), texts.bleu(said, expected), texts.chrf(said[:1], expected[:1])]
    assert found.metrics == {name: value for each in scores for name, value in each.items()}


def test_choices_that_answer_nothing_are_refused(examples, tokenizer) -> None:
    right = text_of(question(examples, 0).answer, tokenizer)
    check_choices(examples, tokenizer, ["no", right])
    with pytest.raises(UserError, match=r"evaluation\.choices: none of yes, no is the answer(.|\n)*answers are"):
        check_choices(examples, tokenizer, ["yes", "no"])


def test_prompts_are_answered_without_validation_data(policy, tokenizer) -> None:
    found = evaluator(None, tokenizer, prompts=["a", "b"], max_new_tokens=3)(policy, lambda done: True)
    assert found.right == found.metrics == {} and [sample["prompt"] for sample in found.samples] == ["a", "b"]


def test_an_evaluation_can_be_abandoned(examples, policy, tokenizer) -> None:
    with pytest.raises(Abandoned):
        evaluator(examples, tokenizer, choices=["a", "b"])(policy, lambda done: done == 0)


def test_the_most_likely_choice_of_an_encoder_decoder_is_that_of_the_stock_model(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TUNECLI_CACHE", str(tmp_path))
    model = ModelConfig(path="builtin:tiny_t5")
    lm, tokenizer = load_model(model, dtype=torch.float32, device=CPU, task=Task.seq2seq_lm), load_tokenizer(model)
    policy = choose_policy(lm, Attention.auto, Task.seq2seq_lm).policy.eval()
    encoding = Encoding(task=Task.seq2seq_lm, max_target_length=64)
    rows, _ = build(DataConfig(path="builtin:smoke_seq2seq"), tokenizer, encoding, show_progress=False)
    batches = replace(batching(rows=2, packed=False), read=SourceTarget(shift=partial(shifted, lm)))
    chosen = []
    for i in range(6):
        asked = question(rows, i)
        right = text_of(asked.answer, tokenizer)
        choices = [right[::-1], right]
        scores = []
        for choice in choices:
            labels = torch.tensor([tokenizer(choice)["input_ids"]])
            with torch.no_grad():
                loss = lm(input_ids=torch.tensor([asked.prompt]), labels=labels).loss
            scores.append(-loss.item() * labels.numel())
        chosen.append(scores.index(max(scores)) == 1)
        assert right_choices(policy, tokenizer, [[asked]], choices, batches) == [chosen[-1]]
    assert len(set(chosen)) == 2
