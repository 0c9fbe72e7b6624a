"""An encoder-decoder behind padded rows: losses and gradients are transformers' own with labels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from architectures import ENCODERS_AND_PAIRS, model_of
from tiny import VOCABULARY, batching
from torch.testing import assert_close
from tuners import disturbed

from tests.peft_methods.test_grid import SMALL
from tunecli.config.errors import UserError
from tunecli.config.model import Attention
from tunecli.config.peft import PEFT_SCHEMAS, LoraConfig
from tunecli.config.stage import Task
from tunecli.data.batching import collate, microbatches
from tunecli.data.encoded import Encoded
from tunecli.data.feed import Window
from tunecli.data.reading import SourceTarget
from tunecli.models.generate import generate
from tunecli.models.policy import Head
from tunecli.models.self_test import choose_policy
from tunecli.models.seq2seq_policy import Seq2SeqPolicy, shifted
from tunecli.peft_methods.by_row import route_rows
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.injection import activate, adapter_name
from tunecli.peft_methods.token_ids import token_ids

SOURCES, TARGETS = [9, 4, 12, 6, 3], [3, 7, 5, 2, 6]


def model(name: str):
    """`untied`: T5 1.1 and its kind, whose head has weights of its own and scales nothing."""
    if name != "untied":
        return model_of(name, "seq2seq")
    config = ENCODERS_AND_PAIRS["t5"]()
    config.tie_word_embeddings = False
    config.scale_decoder_outputs = False
    torch.manual_seed(0)
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)


def pairs(virtual: list[int] = ()) -> Window:
    generator = torch.Generator().manual_seed(1)
    window = Window(["texts"])
    for source, target in zip(SOURCES, TARGETS, strict=True):
        ids = torch.randint(4, VOCABULARY, (source + target,), generator=generator)
        ids = torch.cat([torch.tensor(virtual, dtype=torch.int64), ids])
        start = len(virtual) + source
        window.examples.append(Encoded(ids, torch.tensor([[start, len(ids)]]).numpy(), parts=(start,)))
        window.sources.append(0)
        window.origins.append("row")
        window.adapters.append(-1)
    return window


def batch_of(policy: Seq2SeqPolicy, found: Window, rows: int = len(SOURCES)):
    read = SourceTarget(shift=partial(shifted, policy.lm))
    return microbatches(found, range(len(SOURCES)), replace(batching(rows=rows, packed=False), read=read))


def policy_of(lm) -> Seq2SeqPolicy:
    policy = choose_policy(lm, Attention.auto, Task.seq2seq_lm).policy
    assert isinstance(policy, Seq2SeqPolicy)
    return policy


def stock(lm, found: Window, order: tuple[int, ...]) -> torch.Tensor:
    """Summed loss of the rows in a batch that is padded as transformers' own collators pad it."""
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    sources = [found.examples[i].input_ids[: found.examples[i].parts[0]] for i in order]
    labels = [found.examples[i].input_ids[found.examples[i].parts[0] :] for i in order]
    mask = pad([torch.ones_like(ids) for ids in sources])
    loss = lm(input_ids=pad(sources), attention_mask=mask, labels=pad(labels, padding_value=-100)).loss
    return loss * sum(map(len, labels))


def gradients(lm) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", ["full", "lora", "prefix_tuning", "prompt_tuning", "houlsby"])
@pytest.mark.parametrize("name", ["t5", "untied", "bart"])
def test_loss_and_gradients_are_transformers_own(name: str, method: str) -> None:
    methods = {} if method == "full" else {method: PEFT_SCHEMAS[method](**SMALL.get(method, {}))}
    virtual = [token for ids in token_ids(methods, None).values() for token in ids]
    found = pairs(virtual)
    ours, theirs = policy_of(model(name)), model(name)
    for lm in (ours.lm, theirs):
        inject(lm, methods, seed=0)
    (batch,) = batch_of(ours, found)
    loss = -ours(batch).sum()
    loss.backward()
    expected = stock(theirs, found, batch.rows)
    expected.backward()
    assert_close(loss.detach(), expected.detach(), atol=1e-4, rtol=1e-5)
    mine, own = gradients(ours.lm), gradients(theirs)
    assert mine.keys() == own.keys() and mine
    for each in mine:
        assert_close(mine[each], own[each], atol=2e-5, rtol=1e-4, msg=lambda text, each=each: f"{each}: {text}")
    assert max(gradient.abs().max() for gradient in mine.values()) > 1e-3


@pytest.mark.parametrize("name", ["t5", "untied", "bart"])
def test_batches_and_checkpointing_change_nothing(name: str) -> None:
    found, policy = pairs(), policy_of(model(name))
    policy.train()
    results = []
    for rows, checkpointed in ((1, False), (2, False), (5, False), (2, True)):
        if checkpointed:
            policy.lm.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        policy.zero_grad()
        total = 0.0
        for batch in batch_of(policy, found, rows):
            loss = -policy(batch).sum()
            loss.backward()
            total += loss.item()
        results.append((total, gradients(policy.lm)))
    for total, found_gradients in results[1:]:
        assert total == pytest.approx(results[0][0], abs=1e-4)
        for each, gradient in found_gradients.items():
            assert_close(gradient, results[0][1][each], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "head"), [("t5", Head.logits), ("untied", Head.chunked), ("bart", Head.chunked)])
def test_the_head_is_cut_up_where_that_is_exact(name: str, head: Head) -> None:
    assert policy_of(model(name)).head is head


def test_a_bias_of_the_logits_is_found_out() -> None:
    lm = model("bart")
    lm.final_logits_bias[0, 5] = 0.5
    assert policy_of(lm).head is Head.logits


def test_a_model_that_minds_padding_is_refused() -> None:
    lm = model("bart")
    encoder = lm.get_encoder()
    own = encoder.forward
    encoder.forward = lambda *args, attention_mask=None, **kwargs: own(*args, **kwargs)
    with pytest.raises(UserError, match="in a batch than alone"):
        policy_of(lm)


def test_packed_rows_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.attention: encoder-decoders read padded rows"):
        choose_policy(model("t5"), Attention.packed, Task.seq2seq_lm)


def test_a_model_without_a_start_token_is_refused() -> None:
    lm = model("t5")
    lm.config.decoder_start_token_id = None
    with pytest.raises(UserError, match="which token its decoder starts with"):
        policy_of(lm)


def test_the_decoder_reads_what_the_model_itself_makes_of_labels() -> None:
    for name, start in (("t5", 0), ("bart", 2)):
        assert shifted(model(name), torch.tensor([7, 8, 3])).tolist() == [start, 7, 8]


def test_tokens_of_both_sides_are_counted() -> None:
    policy = policy_of(model("t5"))
    (batch,) = batch_of(policy, pairs())
    assert batch.num_tokens == sum(SOURCES) + sum(TARGETS)
    assert batch.input_ids.shape == (5, max(SOURCES)) and batch.decoder_input_ids.shape == (5, max(TARGETS))
    assert len(batch.kept) == sum(TARGETS)
    read = SourceTarget(shift=partial(shifted, policy.lm))
    filler = collate(pairs(), [0], replace(batching(packed=False), read=read), filler=True)
    assert filler.num_tokens == 0 and filler.weights.sum() == 0


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_answers_are_those_of_each_source_alone(name: str, beams: int) -> None:
    lm, found = model(name).eval(), pairs()
    sources = [example.input_ids[: example.parts[0]] for example in found.examples]
    wanted = {"max_new_tokens": 6, "num_beams": beams}
    made = generate(lm, [ids.tolist() for ids in sources], stop_ids=[3], pad_token_id=0, **wanted)
    for ids, answer in zip(sources, made, strict=True):
        own = lm.generate(ids[None], do_sample=False, eos_token_id=3, pad_token_id=0, **wanted)[0, 1:].tolist()
        assert answer == (own[: own.index(3)] if 3 in own else own)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_each_row_can_have_its_own_adapter(name: str) -> None:
    lm = model(name)
    policy, found = policy_of(lm), pairs()
    inject(lm, {"a": LoraConfig(r=2), "b": LoraConfig(r=3)}, seed=0)
    names = [adapter_name(each) for each in "ab"]
    route_rows(lm, names)
    disturbed(lm)
    found.adapters = [0, 1, 1, 0, 1]
    (batch,) = batch_of(policy, found)
    assert batch.adapters.tolist() == [found.adapters[row] for row in batch.rows]
    with torch.no_grad():
        together = policy(batch)
        alone = []
        for number in (0, 1):
            activate(lm, names[number : number + 1])
            alone.append(policy(replace(batch, adapters=None)))
    rows = batch.adapters.repeat_interleave(torch.tensor([TARGETS[row] for row in batch.rows]))
    assert_close(together, torch.where(rows == 0, *alone), atol=2e-5, rtol=1e-4)
    assert (alone[0] - alone[1]).abs().max() > 1e-2
