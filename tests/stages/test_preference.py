"""Laws of the preference stage: how a batch is cut up, how the prompt is read and when the reference is asked do not
matter; the reference stays where it is; KTO's divergence is that of the global batch; what is preferred is learnt."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stages.preference_steps import ANSWER, GLOBAL_BATCH, PAIR, RandomAnswers, case, make_trainer, trained_by
from torch import Tensor
from torch.testing import assert_close
from training import trained_run
from tuners import disturbed

from tests.peft_methods.test_grid import SMALL
from tunecli.config.errors import UserError
from tunecli.config.peft import PEFT_SCHEMAS, LoraConfig, LoraInit, PTuningV2Config
from tunecli.config.stage import PreferenceConfig, PreferenceLoss, ReferenceTime
from tunecli.config.train import Scheduler, TrainConfig
from tunecli.data.encoded import Encoded
from tunecli.data.mismatched import mismatched
from tunecli.engine.loop import Trainer
from tunecli.engine.stage import means
from tunecli.launch import ACCELERATE_CONFIG
from tunecli.merge import merge
from tunecli.ops import preference as ops
from tunecli.stages.preference import preference_stage

L = PreferenceLoss
PER_TOKEN = (L.ipo, L.orpo, L.simpo)


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 2e-6) -> None:
    assert one.keys() == other.keys() and one
    for name in one:
        assert_close(one[name], other[name], atol=tolerance, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> dict[PreferenceLoss, dict[str, Tensor]]:
    """loss -> the parameters after all steps in one micro-batch each"""
    return {loss: trained_by(make_trainer(tmp_path_factory.mktemp("once"), stage=of(loss))) for loss in L}


def of(loss: PreferenceLoss, **values: object) -> PreferenceConfig:
    return PreferenceConfig(loss=loss, margin_weight=0.5 if loss is L.dpo else 0.0, **values)


CUTS = {
    "single rows": {"rows": 1},
    "some rows": {"rows": 3},
    "tokens": {"rows": None, "tokens": 40},
    "padded": {"packed": False, "rows": 3},
    "prompts twice": {"trees": False, "rows": 2},
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("loss", L)
def test_how_a_batch_is_cut_up_does_not_matter(tmp_path: Path, once, loss: PreferenceLoss, cut: str) -> None:
    same(trained_by(make_trainer(tmp_path, stage=of(loss), **CUTS[cut])), once[loss])


REFERENCES = {
    "off": {"lora": LoraConfig(r=4)},
    "full": {},
    "pissa": {"lora": LoraConfig(r=4, init_lora_weights=LoraInit.pissa)},
    "prefixes": {"p_tuning_v2": PTuningV2Config(num_virtual_tokens=3)},
}


@pytest.mark.parametrize("peft", REFERENCES)
@pytest.mark.parametrize("loss", [L.dpo, L.kto])
def test_cached_is_live(tmp_path: Path, loss: PreferenceLoss, peft: str) -> None:
    found = []
    for time in ReferenceTime:
        folder = tmp_path / time.value
        folder.mkdir()
        stage = of(loss, reference=time)
        found.append(trained_by(make_trainer(folder, stage=stage, peft=REFERENCES[peft], rows=3)))
        assert (folder / "reference" / "train.safetensors").exists() == (time is ReferenceTime.cached)
    same(*found)


def logprob(trainer: Trainer, example: Encoded) -> list[tuple[Tensor, int]]:
    """Of each answer, alone through the plain model, and its number of tokens."""
    policy, found = trainer.accelerator.unwrap_model(trainer.model), []
    borders = (0, *example.parts, len(example.input_ids))
    for side, (start, end) in enumerate(example.spans.tolist()):
        ids = example.input_ids[borders[side] : borders[side + 1]]
        log_softmax = policy.lm(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)
        start, end = start - borders[side], end - borders[side]
        places = torch.arange(start - 1, end - 1)
        found.append((log_softmax[places, ids[start:end]].sum(), end - start))
    return found


def ratios(trainer: Trainer, example: Encoded, *, per_token: bool, reference: bool = True) -> list[Tensor]:
    policy = trainer.accelerator.unwrap_model(trainer.model)
    own = logprob(trainer, example)
    for module in policy.lm.modules():
        if hasattr(module, "lora_A") and reference:
            module.enable_adapters(False)
    theirs = logprob(trainer, example)
    for module in policy.lm.modules():
        if hasattr(module, "lora_A") and reference:
            module.enable_adapters(True)
    sums = [mine - other if reference else mine for (mine, _), (other, _) in zip(own, theirs, strict=True)]
    return [each / count if per_token else each for each, (_, count) in zip(sums, own, strict=True)]


def direct(trainer: Trainer, stage: PreferenceConfig, example: Encoded, kl: float) -> Tensor:
    """The loss of one row, from each of its answers alone."""
    values = ratios(trainer, example, per_token=stage.loss in PER_TOKEN, reference=stage.has_reference)
    if stage.loss is L.kto:
        good = [example.numbers[1], 1 - example.numbers[1]] if len(values) == PAIR else [example.numbers[0]]
        weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
        return ops.kto(torch.stack(values), torch.tensor(good), kl, beta=0.1, **weights).mean()
    (margin, probability), (chosen, rejected) = example.numbers, values
    p, h = torch.tensor([probability]), (chosen - rejected)[None]
    if stage.loss is L.orpo:
        return ops.orpo(chosen[None], rejected[None], p, beta=0.1)[0]
    options = {
        L.dpo: {"margins": 0.5 * margin},
        L.cdpo: {"label_smoothing": 0.1},
        L.robust: {"label_smoothing": 0.1},
        L.exo: {"label_smoothing": 0.001},
        L.simpo: {"gamma": 1.0},
    }
    beta = 2.0 if stage.loss is L.simpo else 0.1
    return getattr(ops, stage.loss.value)(h, p, beta=beta, **options.get(stage.loss, {}))[0]


def divergence(trainer: Trainer, examples: RandomAnswers, indices: list[int]) -> float:
    window = mismatched(examples, indices, two_sides=False)
    found = [float(ratio) for example in window.examples for ratio in ratios(trainer, example, per_token=False)]
    return max(0.0, sum(found) / len(found))


@pytest.mark.parametrize("loss", L)
def test_the_loss_of_a_step_is_that_of_each_row_alone(tmp_path: Path, loss: PreferenceLoss) -> None:
    stage = of(loss)
    trainer = make_trainer(tmp_path, stage=stage, rows=2)
    disturbed(trainer.accelerator.unwrap_model(trainer.model).lm)
    trainer.model.eval()
    batches = next(trainer.stage.steps(trainer.model))
    examples = trainer.stage.feed.examples
    with torch.no_grad():
        found = sum(float(trainer.stage.loss(trainer.model, batch).total) for batch in batches)
        rows = [row for batch in batches for row in batch.rows]
        assert len(rows) == GLOBAL_BATCH
        order = trainer.stage.feed.__class__(examples, seed=3).take(GLOBAL_BATCH)[1]
        kl = divergence(trainer, examples, order) if loss is L.kto else 0.0
        expected = sum(float(direct(trainer, stage, examples[row], kl)) for row in rows)
    assert found == pytest.approx(expected, abs=2e-4)


def test_the_divergence_of_kto_is_that_of_the_global_batch(tmp_path: Path) -> None:
    values = []
    for cut in ({"rows": 1}, {"rows": 4}, {"rows": None, "tokens": 40}, {"packed": False, "rows": 2}):
        trainer = make_trainer(tmp_path, stage=of(L.kto), **cut)
        disturbed(trainer.accelerator.unwrap_model(trainer.model).lm, seed=5)
        batches = next(trainer.stage.steps(trainer.model))
        sums = [trainer.stage.loss(trainer.model, batch).sums(batch.weights.sum()) for batch in batches]
        total = {name: sum(float(each[name]) for each in sums) for name in sums[0]}
        values.append(means(total)["kl"])
    order = trainer.stage.feed.__class__(trainer.stage.feed.examples, seed=3).take(GLOBAL_BATCH)[1]
    with torch.no_grad():
        expected = divergence(trainer, trainer.stage.feed.examples, order)
    assert expected > 0.1, "a divergence that is cut off at 0 shows nothing"
    assert values == pytest.approx([expected] * len(values), abs=1e-4)


def test_answers_are_put_behind_the_prompts_of_others() -> None:
    examples = RandomAnswers(3, kinds=(PAIR, ANSWER))
    window = mismatched(examples, [0, 1, 2], two_sides=False)
    assert [len(each.spans) for each in window.examples] == [1, 2, 2]
    for own, example, other in zip((0, 1, 2), window.examples, (1, 2, 0), strict=True):
        prompt = examples[own].input_ids[: examples[own].spans[0, 0]]
        borders = (0, *example.parts, len(example.input_ids))
        for side, span in enumerate(example.spans):
            answer = slice(*examples[other].spans[side])
            assert torch.equal(example.input_ids[slice(*span)], examples[other].input_ids[answer])
            assert torch.equal(example.input_ids[borders[side] : span[0]], prompt)
    two = mismatched(RandomAnswers(2, two_sides=True), [0, 1], two_sides=True).examples[0]
    assert [len(two.parts), len(two.spans)] == [3, 2] and two.spans[:, 0].tolist() == [two.parts[0], two.parts[2]]
    assert not mismatched(examples, [0], two_sides=False).examples


@pytest.mark.parametrize("time", ReferenceTime)
def test_the_reference_does_not_move(tmp_path: Path, time: ReferenceTime) -> None:
    trainer = make_trainer(tmp_path, stage=of(L.dpo, reference=time), num_steps=8)

    def asked() -> list[float]:
        metrics = trainer.stage.evaluate(trainer.model, lambda done: True).metrics
        gap = metrics["eval/logps/chosen"] - 10 * metrics["eval/rewards/chosen"]  # less ratio / beta: the reference's
        return [metrics["eval/logps/chosen"], gap]

    before = asked()
    assert before[0] == pytest.approx(before[1], abs=1e-5), "log-probabilities are the reference's at step 0"
    trained_by(trainer)
    after = asked()
    assert abs(after[0] - before[0]) > 0.01
    assert after[1] == pytest.approx(before[1], abs=1e-4)


def test_what_was_asked_once_is_read_again_and_only_of_the_same_rows(tmp_path: Path) -> None:
    file = tmp_path / "reference" / "train.safetensors"
    trained_by(make_trainer(tmp_path))
    first, written = load_file(file), file.stat().st_mtime_ns
    trained_by(make_trainer(tmp_path))
    assert file.stat().st_mtime_ns == written
    trained_by(make_trainer(tmp_path, examples=RandomAnswers(seed=9)))
    assert not torch.equal(load_file(file)["logprobs"][:4], first["logprobs"][:4])


def test_a_copy_is_let_go_once_everything_is_known(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, peft={})
    assert trainer.stage.prepared.__self__.reference.reference is not None
    trained_by(trainer)
    assert trainer.stage.prepared.__self__.reference.reference is None
    assert trainer.stage.evaluate(trainer.model, lambda done: True).metrics


@pytest.mark.parametrize("loss", L)
def test_what_is_preferred_is_learnt(tmp_path: Path, loss: PreferenceLoss) -> None:
    config = TrainConfig(learning_rate=1e-2, lr_scheduler=Scheduler.constant)
    examples = RandomAnswers(8, kinds=(PAIR,) if loss is not L.kto else (PAIR, PAIR, ANSWER))
    stage = PreferenceConfig(loss=loss)
    trainer = make_trainer(tmp_path, stage=stage, examples=examples, config=config, num_steps=30)
    trained_by(trainer)
    output = [trainer.stage.loss(trainer.model, batch) for batch in next(_again(trainer))]
    sums = {name: sum(float(each.parts[name][0]) for each in output) for name in output[0].parts}
    units = {name: sum(float(each.parts[name][1]) for each in output) for name in output[0].parts}
    assert sums["rewards/accuracies"] == units["rewards/accuracies"] > 0
    assert sums["rewards/margins"] > 0


def _again(trainer: Trainer):
    """The steps from the first one on."""
    trainer.stage.seen = 0
    trainer.stage.feed.seen = 0
    return trainer.stage.steps(trainer.model)


def test_metrics_by_their_usual_names(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, examples=RandomAnswers(8, names=("a", "b")))
    (batch,) = next(trainer.stage.steps(trainer.model))
    names = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
    names |= {"logps/chosen", "logps/rejected"}
    assert set(trainer.stage.loss(trainer.model, batch).parts) == names | {"loss/a", "loss/b"}
    found = trainer.stage.evaluate(trainer.model, lambda done: True)
    assert set(found.metrics) == {f"eval/{name}" for name in names | {"loss"}}
    assert found.metrics["eval/rewards/accuracies"] == 0.5 and found.metrics["eval/loss"] == pytest.approx(np.log(2))
    assert found.losses is not None and found.losses.shape == (5, 2)
    assert [each.shape for each in found.predictions] == [(2, 1)] * 5


def test_answers_alone_have_no_margin(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, stage=of(L.kto), examples=RandomAnswers(8, kinds=(ANSWER,)))
    (batch,) = next(trainer.stage.steps(trainer.model))
    output = trainer.stage.loss(trainer.model, batch)
    found = means({name: float(value) for name, value in output.sums(batch.weights.sum()).items()})
    assert "rewards/margins" not in found and {"rewards/chosen", "rewards/rejected", "kl"} <= set(found)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
@pytest.mark.parametrize("loss", [L.dpo, L.simpo, L.kto])
def test_encoder_decoders(tmp_path: Path, architecture: str, loss: PreferenceLoss) -> None:
    found = [
        trained_by(make_trainer(tmp_path, stage=of(loss), architecture=architecture, rows=rows)) for rows in (1, 4)
    ]
    same(*found)


def test_a_model_that_is_only_scored_has_no_reference(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    setting = replace(trainer.stage.prepared.__self__.setting, reference=None)
    with pytest.raises(UserError, match="before training"):
        preference_stage(setting)
    assert preference_stage(replace(setting, config=of(L.orpo))).evaluate(trainer.model, lambda done: True).metrics


def step_0(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[0])


def words_of(method: str) -> list[str]:
    values = [f"{key}={value}" for key, value in SMALL.get(method, {}).items() if not isinstance(value, str)]
    values += ["tinit=1", "tfinal=1", "deltaT=1"] if method == "adalora" else []
    return [f"peft=[{method}]", *(f"peft.{method}.{value}" for value in values)]


@pytest.mark.parametrize("method", [*PEFT_SCHEMAS, "full"])
def test_a_run_begins_at_its_reference_and_leaves_it(tmp_path: Path, method: str) -> None:
    words = ["train.max_steps=4", "train.eval_every=4", "train.save_every=null", "train.global_batch_size=4"]
    run = trained_run(
        tmp_path / "run", "smoke_dpo", *words, *(words_of(method) if method != "full" else ["peft=full"])
    )
    first, *_, last = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert first["eval/rewards/chosen"] == pytest.approx(0, abs=1e-5) == first["eval/rewards/rejected"]
    assert first["eval/loss"] == pytest.approx(math.log(2), abs=1e-5)
    gone = last["eval/logps/chosen"] - 10 * last["eval/rewards/chosen"]  # less ratio / beta: the reference's
    assert gone == pytest.approx(first["eval/logps/chosen"], abs=1e-2)
    assert abs(last["eval/rewards/chosen"]) > 1e-4


def test_what_a_run_starts_from_is_its_reference(tmp_path: Path) -> None:
    """Trained on, frozen below a new adapter, or merged into the base."""
    one = trained_run(tmp_path / "one", "smoke_sft_lora", "train.max_steps=3", "train.save_every=null")
    merge([one], tmp_path / "whole")
    words = ["train.max_steps=1", "train.eval_every=1", "train.save_every=null"]
    start = f"peft.lora.init_from={one}"
    ways = {
        "trained on": [start],
        "below": ["+peft@peft.new=lora", start, "peft.lora.freeze=true"],
        "merged": [f"model.path={tmp_path / 'whole'}"],
    }
    found = {way: step_0(trained_run(tmp_path / way, "smoke_dpo", *words, *own)) for way, own in ways.items()}
    base = step_0(trained_run(tmp_path / "base", "smoke_dpo", *words))
    for values in found.values():
        assert values["eval/rewards/chosen"] == pytest.approx(0, abs=1e-5) == values["eval/rewards/rejected"]
        assert values["eval/logps/chosen"] == pytest.approx(found["merged"]["eval/logps/chosen"], abs=1e-2)
        assert abs(values["eval/logps/chosen"] - base["eval/logps/chosen"]) > 0.1


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, once) -> None:
    """One launch for all of them. Of the reference each rank asks about its own rows."""
    cases = ["dpo:live:1", "dpo:cached:2", "orpo::1", "kto:cached:1", "kto:live:2"]
    config = tmp_path / "accelerate.yaml"
    config.write_text(ACCELERATE_CONFIG.format(num_processes=2))
    here = Path(__file__).parent
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += [str(here / "preference_steps.py"), str(tmp_path), *cases]
    path = os.pathsep.join([str(here.parent), str(here.parents[1])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in cases:
        ranks = [torch.load(tmp_path / f"{name}_{rank}.pt") for rank in range(2)]
        stage, _ = case(name)
        folder = tmp_path / f"{name}_alone"
        folder.mkdir()
        for rank in ranks:
            same(rank["parameters"], trained_by(make_trainer(folder, stage=stage)))
        assert ranks[0]["eval"] == ranks[1]["eval"]
