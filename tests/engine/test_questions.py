"""The question of a rendered prompt, whatever family its template is of."""

from __future__ import annotations

import pytest

from tunecli.engine.questions import question_of

SYSTEM, ASKED = "You are a model\nthat helps.", "What is\n\nthis < that?"


@pytest.mark.parametrize(
    "prompt",
    [
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n",
        f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|><|start_header_id|>user"
        f"<|end_header_id|>\n\n{ASKED}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        f"<bos><start_of_turn>user\n{ASKED}<end_of_turn>\n<start_of_turn>model\n",
        f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n{ASKED}<|end|>\n<|assistant|>\n",
        f"<s>[INST] {ASKED} [/INST]",
        f"<|start|>user<|message|>{ASKED}<|end|><|start|>assistant",
        f"<｜begin▁of▁sentence｜>{SYSTEM}<｜User｜>{ASKED}<｜Assistant｜><think>\n",
        ASKED,
    ],
)
def test_the_question_alone(prompt: str):
    assert question_of(prompt) == ASKED


def test_what_holds_no_question_stays_as_it_is():
    for prompt in ("", "<|im_start|>assistant\n", "user\nhello"):
        assert question_of(prompt) == prompt
