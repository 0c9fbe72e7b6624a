"""Laws of the one forward: packed = each sequence alone = padded, = transformers' own loss, checkpointed = not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import CONFIGS, PADDED_CONFIGS, RandomExamples, batching, causal_lm
from torch.testing import assert_close

from tunecli.config.errors import UserError
from tunecli.config.model import Attention
from tunecli.config.peft import LoraConfig
from tunecli.data.batching import collate
from tunecli.models.policy import Detail, Head, Policy, add_value_head
from tunecli.models.self_test import choose_policy
from tunecli.peft_methods.composition import inject

LENGTHS = [7, 2, 12, 5, 3]


def stock_logprobs(lm, examples) -> torch.Tensor:
    """Each sequence alone, through the model as transformers ships it."""
    lm.set_attn_implementation("eager")
    pieces = []
    with torch.no_grad():
        for example in examples:
            ids, trained = example.input_ids, example.trained
            logits = lm(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
            pieces.append(-F.cross_entropy(logits, ids[1:], reduction="none")[trained[1:]])
    return torch.cat(pieces)


def gradients(policy: Policy, batch) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    (-policy(batch).sum()).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [*CONFIGS, *PADDED_CONFIGS])
@pytest.mark.parametrize("attention", [Attention.auto, Attention.padded])
def test_a_batch_gives_what_each_sequence_gives_alone(name: str, attention: Attention) -> None:
    lm = causal_lm(name).eval()
    examples = RandomExamples(LENGTHS)
    expected = stock_logprobs(lm, examples)
    lm.set_attn_implementation("eager" if name in PADDED_CONFIGS else "sdpa")
    policy = choose_policy(lm, attention).policy
    batch = collate(examples, range(len(examples)), batching(packed=policy.packed))
    assert_close(policy(batch).detach(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_common_architectures_are_padding_free(name: str) -> None:
    verdict = choose_policy(causal_lm(name), Attention.auto)
    assert verdict.policy.packed, verdict.note
    assert verdict.policy.head is Head.chunked
    assert not verdict.note


@pytest.mark.parametrize("name", PADDED_CONFIGS)
def test_unknown_attention_is_found_out_and_padded(name: str) -> None:
    verdict = choose_policy(causal_lm(name), Attention.auto)
    assert not verdict.policy.packed
    assert "padded" in verdict.note
    with pytest.raises(UserError, match="model.attention"):
        choose_policy(causal_lm(name), Attention.packed)


def test_a_model_that_scales_its_logits_is_not_chunked() -> None:
    assert choose_policy(causal_lm("gemma2"), Attention.auto).policy.head is Head.logits


def test_the_self_test_notices_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that ignores the boundaries must not pass for padding-free."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def leaky(module, query, key, value, mask, cu_seq_lens_q=None, **kwargs):
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    from transformers import AttentionInterface

    from tunecli.models import attention

    AttentionInterface.register(attention.NAME, leaky)
    try:
        assert not choose_policy(causal_lm(), Attention.auto).policy.packed
    finally:
        AttentionInterface.register(attention.NAME, attention.packed_attention)


@pytest.mark.parametrize("peft", [{}, {"lora": LoraConfig(r=4)}], ids=["full", "lora"])
def test_loss_and_gradients_equal_transformers_own(peft: dict) -> None:
    """`-100` labels and a padded batch through the stock model, against our packed row."""
    examples = RandomExamples(LENGTHS)
    ours = choose_policy(causal_lm(), Attention.packed).policy
    inject(ours.lm, peft, seed=0)
    mine = gradients(ours, collate(examples, range(5), batching()))

    theirs = causal_lm()
    inject(theirs, peft, seed=0)
    width = max(LENGTHS)
    ids = torch.stack([F.pad(ids, (0, width - len(ids))) for ids in (each.input_ids for each in examples)])
    mask = torch.stack([F.pad(torch.ones(n, dtype=torch.long), (0, width - n)) for n in LENGTHS])
    targets = [torch.where(each.trained, each.input_ids, -100) for each in examples]
    labels = torch.stack([F.pad(label, (0, width - len(label)), value=-100) for label in targets])
    loss = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
    trained = (labels[:, 1:] != -100).sum()
    (loss * trained).backward()
    expected = {f"lm.{name}": p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert mine.keys() == expected.keys()
    for name, gradient in mine.items():
        assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    batch = collate(examples, range(5), batching())
    assert_close(-ours(batch).mean().detach(), loss.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", list(Head))
@pytest.mark.parametrize("peft", [{}, {"lora": LoraConfig(r=4)}], ids=["full", "lora"])
def test_checkpointed_gives_the_same_gradients(peft: dict, head: Head) -> None:
    policy = choose_policy(causal_lm(), Attention.packed).policy
    policy.head = head
    inject(policy.lm, peft, seed=0)
    policy.train()
    batch = collate(RandomExamples(LENGTHS), range(5), batching())
    plain = gradients(policy, batch)
    policy.lm.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    again = gradients(policy, batch)
    assert plain.keys() == again.keys()
    for name in plain:
        assert_close(again[name], plain[name], atol=1e-6, rtol=1e-5)


def test_filling_up_rows_changes_nothing() -> None:
    policy = choose_policy(causal_lm(), Attention.packed).policy
    inject(policy.lm, {"lora": LoraConfig(r=4)}, seed=0)
    batch = collate(RandomExamples(LENGTHS), range(5), batching())
    expected, plain = policy(batch).detach(), gradients(policy, batch)
    policy.multiple = 32
    assert_close(policy(batch).detach(), expected, atol=1e-5, rtol=0)
    filled = gradients(policy, batch)
    for name in plain:
        assert_close(filled[name], plain[name], atol=1e-5, rtol=1e-4)


def test_generation_after_packing_is_the_stock_models(tmp_path) -> None:
    """One model object serves packed training rows and ordinary cached generation with left padding."""
    lm = causal_lm().eval()
    ids = torch.randint(4, 90, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    wanted = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = lm.generate(ids, attention_mask=mask, **wanted)
    choose_policy(lm, Attention.packed)
    assert torch.equal(lm.generate(ids, attention_mask=mask, **wanted), expected)
    assert torch.equal(lm.generate(ids, attention_mask=mask, use_cache=False, **wanted), expected)


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_details_are_those_of_the_tempered_distribution(name: str, entropy_gradient: bool) -> None:
    """Of a chunked head and of one that needs the model's logits; frozen and trained."""
    lm = causal_lm(name).eval()
    lm.requires_grad_(False)
    lm.get_input_embeddings().weight.requires_grad_(True)
    policy = choose_policy(lm, Attention.auto).policy
    add_value_head(policy)
    torch.nn.init.normal_(policy.value_head.weight)
    examples = RandomExamples(LENGTHS)
    batch = collate(examples, range(len(examples)), batching(packed=policy.packed))
    found = policy(batch, Detail(temperature=0.7, entropy_gradient=entropy_gradient))
    plain = policy(batch, Detail())
    assert_close(plain.logprobs, policy(batch))
    logprobs, entropies, values = [], [], []
    for example in examples:
        output = lm(input_ids=example.input_ids[None], use_cache=False, output_hidden_states=True)
        kept = example.trained[1:].nonzero()[:, 0]
        each = (output.logits[0, kept].float() / 0.7).log_softmax(-1)
        logprobs.append(each[torch.arange(len(kept)), example.input_ids[kept + 1]])
        entropies.append(-(each.exp() * each).sum(-1))
        values.append(policy.value_head(output.hidden_states[-1][0, kept])[:, 0])
    assert_close(found.logprobs, torch.cat(logprobs), atol=2e-5, rtol=0)
    assert_close(found.entropies, torch.cat(entropies), atol=2e-5, rtol=0)
    assert_close(found.values, torch.cat(values), atol=2e-4, rtol=1e-4)
    weight = lm.get_input_embeddings().weight
    (one,) = torch.autograd.grad(found.logprobs.sum() + found.values.sum(), weight, retain_graph=True)
    (other,) = torch.autograd.grad(torch.cat(logprobs).sum() + torch.cat(values).sum(), weight, retain_graph=True)
    assert_close(one, other, atol=1e-3, rtol=1e-3)
    if entropy_gradient:
        (one,) = torch.autograd.grad(found.entropies.sum(), weight)
        (other,) = torch.autograd.grad(torch.cat(entropies).sum(), weight)
        assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_a_new_value_head_says_nothing_and_is_no_part_of_the_model() -> None:
    policy = choose_policy(causal_lm(), Attention.auto).policy
    add_value_head(policy)
    batch = collate(RandomExamples(LENGTHS), range(5), batching())
    assert not policy(batch, Detail()).values.any()
    assert not [name for name, _ in policy.lm.named_parameters() if "value" in name]
