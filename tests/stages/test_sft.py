"""Supervised fine-tuning: what is trained on, in which order, and where a resumed stage goes on."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import RandomExamples, batching, causal_lm
from torch.testing import assert_close

from tunecli.config.model import Attention
from tunecli.config.paths import option_names
from tunecli.config.stage import STAGE_SCHEMAS, SFTConfig
from tunecli.data.feed import Shuffled
from tunecli.engine.distributed import make_accelerator
from tunecli.engine.stage import Evaluation, LossOutput, means
from tunecli.models.self_test import choose_policy
from tunecli.stages import STAGES
from tunecli.stages.setting import Setting
from tunecli.stages.sft import sft
from tunecli.stages.supervised import Supervised

LENGTHS = [9, 4, 14, 6, 5, 3, 11, 8, 2, 7, 13]


def stage(num_examples: int = 28, validation: RandomExamples | None = None, global_batch_size: int = 4) -> Supervised:
    setting = Setting(
        config=SFTConfig(),
        feed=Shuffled(RandomExamples(LENGTHS), seed=3),
        validation=validation,
        evaluator=lambda policy, proceed: Evaluation(),
        batching=batching(rows=2),
        accelerator=make_accelerator(cpu=True, mixed_precision="no"),
        global_batch_size=global_batch_size,
        num_examples=num_examples,
    )
    return sft(setting)


def rows(microbatches) -> list[int]:
    return sorted(row for batch in microbatches for row in batch.rows)


def test_table_schemas_and_yaml_agree() -> None:
    assert set(STAGES) | {"label"} == set(STAGE_SCHEMAS) == set(option_names("stage"))


def test_an_epoch_sees_every_example_once_and_the_last_step_is_short() -> None:
    steps = list(stage(num_examples=11).steps(None))
    assert [len(rows(step)) for step in steps] == [4, 4, 3]
    assert sorted(row for step in steps for row in rows(step)) == list(range(11))


def test_a_restored_stage_goes_on_in_the_middle_of_an_epoch() -> None:
    whole = [rows(step) for step in stage().steps(None)]
    first = stage()
    steps = first.steps(None)
    begun = [rows(next(steps)) for _ in range(4)]
    second = stage()
    second.load_state_dict(first.state_dict())
    assert begun + [rows(step) for step in second.steps(None)] == whole


def test_validation_loss_is_the_mean_over_all_its_tokens_however_it_is_batched() -> None:
    policy = choose_policy(causal_lm(), Attention.packed).policy.eval()
    validation = RandomExamples([5, 9, 4, 3, 8], seed=1)
    with torch.no_grad():
        pieces = []
        for example in validation:
            ids, trained = example.input_ids, example.trained
            logprobs = policy.lm(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            pieces.append(logprobs[torch.arange(len(ids) - 1), ids[1:]][trained[1:]])
    expected = -torch.cat(pieces).mean()
    for size in (1, 2, 5):
        measured = stage(validation=validation, global_batch_size=size).evaluate(policy, lambda done: True).metrics
        assert_close(torch.tensor(measured["eval/loss"]), expected, atol=1e-5, rtol=0)
        assert measured["eval/perplexity"] == pytest.approx(math.exp(measured["eval/loss"]))


def test_without_validation_data_there_is_nothing_to_evaluate() -> None:
    assert stage().evaluate(torch.nn.Identity(), lambda done: True) == Evaluation()


def test_an_evaluation_that_may_not_proceed_is_abandoned() -> None:
    policy = choose_policy(causal_lm(), Attention.packed).policy.eval()
    asked: list[float] = []

    def first_only(done: float) -> bool:
        asked.append(done)
        return len(asked) == 1

    validation = RandomExamples([5, 9, 4, 3, 8], seed=1)
    assert stage(validation=validation, global_batch_size=2).evaluate(policy, first_only) == Evaluation()
    assert asked == [0.0, 0.4]


ZEROS = (torch.tensor(0.0), torch.tensor(0.0))


def test_losses_of_sources_add_up_to_the_whole() -> None:
    policy = choose_policy(causal_lm(), Attention.packed).policy
    mixed = stage()
    mixed.feed = Shuffled(RandomExamples(LENGTHS, names=["a", "b", "c"]), seed=3)
    (batch, *_) = next(mixed.steps(None))
    output = mixed.loss(policy, batch)
    totals, tokens = zip(*output.parts.values(), strict=True)
    assert list(output.parts) == ["loss/a", "loss/b", "loss/c"]
    assert_close(sum(totals), output.total.detach())
    assert sum(tokens) == mixed.weight(batch)
    logits = [policy.lm(input_ids=mixed.feed.examples[row].input_ids[None]).logits[0, :-1] for row in batch.rows]
    expected = dict.fromkeys("abc", 0.0)
    for row, each in zip(batch.rows, logits, strict=True):
        ids, trained = mixed.feed.examples[row].input_ids, mixed.feed.examples[row].trained
        logprobs = each.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
        expected["abc"[row % 3]] -= logprobs[trained[1:]].sum().item()
    for name, value in expected.items():
        assert_close(output.parts[f"loss/{name}"][0].item(), value, atol=1e-4, rtol=1e-4)


def test_means_leave_out_sources_without_tokens() -> None:
    output = LossOutput(torch.tensor(6.0), parts={"loss/a": (torch.tensor(6.0), torch.tensor(3.0)), "loss/b": ZEROS})
    sums = {name: float(value) for name, value in output.sums(torch.tensor(4.0)).items()}
    assert means(sums) == {"loss": 1.5, "loss/a": 2.0}
