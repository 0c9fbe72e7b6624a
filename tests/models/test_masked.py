"""A masked language model behind packed rows or padding gives what transformers' own gives for each text alone."""

from __future__ import annotations

import pytest
import torch
import transformers as T
from architectures import ENCODER_SHAPE, ENCODERS_AND_PAIRS
from tiny import SPECIAL, RandomExamples, batching
from torch.testing import assert_close

from tunecli.config.errors import UserError
from tunecli.config.model import Attention
from tunecli.config.peft import LoraConfig
from tunecli.config.stage import Task
from tunecli.data.batching import collate, microbatches
from tunecli.models.masked import MaskedLM
from tunecli.models.self_test import choose_policy
from tunecli.ops.logprobs import token_logprobs
from tunecli.peft_methods.composition import inject

LENGTHS = [9, 5, 12, 3]
CONFIGS = {name: ENCODERS_AND_PAIRS[name] for name in ("bert", "roberta")} | {
    "albert": lambda: T.AlbertConfig(**ENCODER_SHAPE, embedding_size=32, inner_group_num=1),
    "electra": lambda: T.ElectraConfig(**ENCODER_SHAPE, embedding_size=32),
    "distilbert": lambda: T.DistilBertConfig(
        dim=64, hidden_dim=96, n_layers=2, n_heads=4, max_position_embeddings=64, dropout=0.0, attention_dropout=0.0,
        **SPECIAL,
    ),
    "deberta": lambda: T.DebertaV2Config(**ENCODER_SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": lambda: T.ModernBertConfig(
        **{name: value for name, value in ENCODER_SHAPE.items() if "dropout" not in name},
        cls_token_id=2, sep_token_id=3, local_attention=8, global_attn_every_n_layers=2,
    ),
}  # fmt: skip
PADDED = ("deberta",)
"""Attention of their own, which does not take our boundaries; the self-test finds that out."""


def masked_lm(name: str) -> T.PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config.initializer_range = 0.1
    return T.AutoModelForMaskedLM.from_config(config, dtype=torch.float32).eval()


def stock(lm: T.PreTrainedModel, examples: RandomExamples) -> torch.Tensor:
    """Each text alone through the stock model: each next token is asked for where the one before it stands."""
    pieces = []
    for example in examples:
        ids, trained = example.input_ids, example.trained
        pieces.append(token_logprobs(lm(input_ids=ids[None]).logits[0, :-1], ids[1:])[trained[1:]])
    return torch.cat(pieces)


def gradients(lm: T.PreTrainedModel, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    lm.zero_grad()
    (-logprobs.sum()).backward()
    return {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", [Attention.auto, Attention.padded])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_gives_what_each_text_gives_alone(name: str, attention: Attention) -> None:
    lm, examples = masked_lm(name), RandomExamples(LENGTHS)
    expected = stock(lm, examples)
    expected_gradients = gradients(lm, expected)
    policy = choose_policy(lm, attention, Task.masked_lm).policy
    assert isinstance(policy, MaskedLM)
    assert policy.packed is (attention is Attention.auto and name not in PADDED)
    logprobs = policy(collate(examples, range(len(LENGTHS)), batching(packed=policy.packed)))
    assert logprobs.dtype == torch.float32
    assert_close(logprobs, expected, atol=2e-5, rtol=1e-4)
    found = gradients(lm, logprobs)
    assert found.keys() == expected_gradients.keys()
    for each, gradient in found.items():
        assert_close(gradient, expected_gradients[each], atol=1e-4, rtol=1e-3)


def test_adapters_get_the_gradients_of_each_text_alone() -> None:
    lm, examples = masked_lm("bert"), RandomExamples(LENGTHS)
    policy = choose_policy(lm, Attention.packed, Task.masked_lm).policy
    inject(lm, {"lora": LoraConfig(r=4)}, seed=0)
    trained = {name for name, p in lm.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    found = gradients(lm, policy(collate(examples, range(4), batching())))
    lm.set_attn_implementation("eager")
    expected = gradients(lm, stock(lm, examples))
    for name in trained:
        assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3)


def test_rows_that_are_filled_up_change_nothing() -> None:
    examples = RandomExamples(LENGTHS)
    policy = choose_policy(masked_lm("roberta"), Attention.packed, Task.masked_lm).policy
    with torch.no_grad():
        for batch in microbatches(examples, range(4), batching(rows=2)):
            policy.multiple = 1
            before = policy(batch)
            policy.multiple = 32
            assert_close(policy(batch), before, atol=1e-5, rtol=1e-4)


def test_a_leak_across_the_boundary_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from tunecli.models import attention

    def leaky(module, query, key, value, mask, cu_seq_lens_q=None, **kwargs):
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, leaky)
    with pytest.raises(UserError, match="model.attention"):
        choose_policy(masked_lm("bert"), Attention.packed, Task.masked_lm)
