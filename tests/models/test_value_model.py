"""A value model says of each text so far what plain transformers' classifier says of it alone."""

from __future__ import annotations

import pytest
import torch
from tiny import CONFIGS, PADDED_CONFIGS, RandomExamples, batching, scoring_lm
from torch.testing import assert_close

from tunecli.config.errors import UserError
from tunecli.config.model import Attention
from tunecli.data.batching import microbatches
from tunecli.models.self_test import choose_value_model

LENGTHS = [9, 5, 7, 4]


@torch.no_grad()
@pytest.mark.parametrize("attention", [Attention.auto, Attention.padded])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_neox", *PADDED_CONFIGS])
def test_a_value_is_what_the_classifier_says_of_the_text_so_far(name: str, attention: Attention) -> None:
    lm = scoring_lm(name).eval()
    examples = RandomExamples(LENGTHS)
    expected = {}
    for index in range(len(examples)):
        ids, ((start, end),) = examples[index].input_ids, examples[index].spans.tolist()
        expected[index] = torch.cat([lm(input_ids=ids[None, :place]).logits[0] for place in range(start, end)])
    model = choose_value_model(lm, attention)
    assert model.packed == (attention is Attention.auto and name in CONFIGS)
    (batch,) = microbatches(examples, range(len(examples)), batching(packed=model.packed))
    assert_close(model(batch), torch.cat([expected[row] for row in batch.rows]), atol=1e-5, rtol=1e-4)


def test_a_model_that_looks_ahead_has_no_values() -> None:
    lm = scoring_lm("llama")
    forward = lm.model.forward

    def sees_everything(*args: object, **kwargs: object) -> object:
        found = forward(*args, **kwargs)
        found.last_hidden_state = found.last_hidden_state + found.last_hidden_state.mean(1, keepdim=True)
        return found

    lm.model.forward = sees_everything
    with pytest.raises(UserError, match="other outputs"):
        choose_value_model(lm, Attention.auto)
