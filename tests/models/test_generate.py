"""Answers to many prompts at once = answers to each alone by transformers' own generate."""

from __future__ import annotations

import pytest
import torch
from architectures import model_of
from tiny import VOCABULARY, causal_lm

import tunecli.models.generate as module
from tunecli.models.generate import Sampling, generate, sample, stop_ids
from tunecli.models.policy import use_packed_attention

PROMPTS = [
    torch.randint(4, VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (3, 9, 1, 6)
]


def answers(lm, prompts=PROMPTS, **options) -> list[list[int]]:
    settings = {"max_new_tokens": 7, "stop_ids": [3], "pad_token_id": 0} | options
    return generate(lm, prompts, **settings)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma3"])
@pytest.mark.parametrize("packed", [False, True])
def test_together_is_alone(name: str, packed: bool, monkeypatch) -> None:
    lm = causal_lm(name).eval()
    lm.generation_config.eos_token_id = None
    alone = [
        lm.generate(torch.tensor([prompt]), max_new_tokens=7, do_sample=False, eos_token_id=None)[0, len(prompt) :]
        for prompt in PROMPTS
    ]
    if packed:
        use_packed_attention(lm)
    for batch_tokens in (1, 20, 4096):
        monkeypatch.setattr(module, "BATCH_TOKENS", batch_tokens)
        assert answers(lm, stop_ids=[]) == [each.tolist() for each in alone]


def test_an_answer_ends_before_its_stop_token() -> None:
    lm = causal_lm().eval()
    (whole,) = answers(lm, PROMPTS[:1], stop_ids=[])
    stop = whole[3]
    assert answers(lm, PROMPTS[:1], stop_ids=[stop]) == [whole[: whole.index(stop)]]


def test_sampling_depends_on_the_seed_only_and_leaves_the_random_state() -> None:
    lm = causal_lm().train()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = answers(lm, temperature=1.0, seed=1)
    torch.rand(3)
    assert answers(lm, temperature=1.0, seed=1) == first != answers(lm, temperature=1.0, seed=2)
    torch.random.set_rng_state(state)
    answers(lm, temperature=1.0, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state) and lm.training


def test_stop_tokens_are_the_tokenizers_and_the_models() -> None:
    lm = causal_lm()
    lm.generation_config.eos_token_id = [7, 3]
    assert stop_ids(lm, 3) == [3, 7]
    lm.generation_config.eos_token_id = 7
    assert stop_ids(lm, None) == [7]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_models_own_settings_play_no_part(temperature: float) -> None:
    lm = causal_lm().eval()
    plain = answers(lm, temperature=temperature)
    lm.generation_config.update(repetition_penalty=5.0, top_k=1, top_p=0.1)
    assert answers(lm, temperature=temperature) == plain


def drawn(lm, prompts=PROMPTS, numbers=(0, 1, 2, 3), seed=5, **changes):
    sampling = Sampling(**({"max_new_tokens": 12, "stop_ids": (3, 7)} | changes))
    return sample(lm, prompts, sampling, pad_token_id=0, seed=seed, numbers=list(numbers))


@pytest.mark.parametrize(
    "lm", [causal_lm(), causal_lm("gpt2"), model_of("t5", "seq2seq")], ids=["llama", "gpt2", "t5"]
)
def test_a_drawn_answer_depends_on_its_prompt_number_and_seed_only(lm, monkeypatch) -> None:
    use_packed_attention(lm)
    together = drawn(lm)
    monkeypatch.setattr(module, "BATCH_TOKENS", 1)
    assert drawn(lm) == together
    assert [drawn(lm, [PROMPTS[i]], [i])[0] for i in range(4)] == together
    assert drawn(lm, PROMPTS[::-1], [3, 2, 1, 0])[::-1] == together
    assert drawn(lm, seed=6) != together != drawn(lm, numbers=(4, 5, 6, 7))


def test_drawn_answers_keep_what_ended_them() -> None:
    lm = causal_lm()
    answers = drawn(lm, PROMPTS * 8, range(32))
    assert any(answer.ended for answer in answers) and not all(answer.ended for answer in answers)
    for answer in answers:
        assert answer.ended == (answer.tokens[-1] in (3, 7))
        assert not {3, 7} & set(answer.tokens[:-1])
        assert answer.ended or len(answer.tokens) == 12
    assert all(len(answer.tokens) > 6 for answer in drawn(lm, PROMPTS * 8, range(32), min_new_tokens=6))


def test_tokens_are_drawn_as_often_as_the_model_says() -> None:
    lm = causal_lm().eval()
    answers = drawn(lm, PROMPTS[:1] * 4000, range(4000), max_new_tokens=1, stop_ids=(), temperature=0.7)
    counts = torch.bincount(torch.tensor([answer.tokens[0] for answer in answers]), minlength=VOCABULARY) / 4000
    with torch.no_grad():
        expected = (lm(torch.tensor(PROMPTS[:1])).logits[0, -1] / 0.7).softmax(-1)
    assert (counts - expected).abs().max() < 0.03
