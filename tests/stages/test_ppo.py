"""Laws of PPO, RLOO and GRPO on tiny models."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, causal_lm
from torch.testing import assert_close
from tuners import disturbed

from tunecli.config.model import Attention
from tunecli.config.peft import BitFitConfig, Ia3Config, LoraConfig
from tunecli.config.stage import Advantage, KLController, KLEstimator, KLPlace, ScoreScaling
from tunecli.config.train import Optimizer, Scheduler, TrainConfig
from tunecli.engine.batch import Batch
from tunecli.launch import ACCELERATE_CONFIG
from tunecli.models.builtin import byte_tokenizer
from tunecli.models.policy import Detail
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.saving import save_adapters
from tunecli.stages.rollout import Episodes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from ppo_steps import Prompts, Ready, ready  # noqa: E402


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 2e-6) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert_close(one[name], other[name], atol=tolerance, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def first_losses(made: Ready) -> list[dict[str, float]]:
    """The metrics of each micro-batch of the first step, per token."""
    made.model.train()
    found = []
    for batch in next(made.stage.steps(made.model)):
        output = made.stage.loss(made.model, batch)
        weight = made.stage.weight(batch)
        found.append({name: (value / weight).item() for name, value in output.metrics.items()})
    return found


@pytest.fixture(scope="module")
def trained_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    lm = causal_lm()
    inject(lm, {"lora": LoraConfig(r=4)}, seed=1)
    save_adapters(disturbed(lm), ["lora"], folder, base="somewhere")
    return folder / "lora"


STARTS: dict[str, dict[str, Any]] = {
    "base": {"lora": LoraConfig(r=4)},
    "full": {},
    "trained on": {"lora": LoraConfig(r=4, init_from="one")},
    "on top": {"one": LoraConfig(init_from="one", freeze=True), "lora": LoraConfig(r=4)},
    "together": {"lora": LoraConfig(r=4), "ia3": Ia3Config(), "bitfit": BitFitConfig(add_missing=True)},
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rows", [3, None])
def test_at_step_0_the_policy_is_its_reference_and_the_first_ratios_are_1(
    tmp_path: Path, trained_adapter: Path, start: str, rows: int | None
) -> None:
    starts = {name: trained_adapter for name, method in STARTS[start].items() if method.init_from}
    made = ready(tmp_path, peft=STARTS[start], starts=starts, rows=rows, tokens=None if rows else 40)
    for metrics in first_losses(made):
        assert metrics["ratio"] == pytest.approx(1.0, abs=1e-6)
        assert metrics["policy/clipfrac"] == 0 and metrics["policy/approx_kl"] < 1e-10
        assert metrics["policy/entropy"] > 0
    assert made.stage.facts["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    batch = made.stage._roller(made.model).batches(made.stage.episodes, range(8))[0]
    found = made.policy(batch, Detail())
    assert (found.logprobs - batch.old_logprobs).exp().sub(1).abs().max() <= 1e-5


def test_the_first_ratios_are_1_in_bf16_too(tmp_path: Path) -> None:
    made = ready(tmp_path, peft="lora", mixed_precision="bf16", rows=2)
    assert all(metrics["ratio"] == pytest.approx(1.0, abs=0.02) for metrics in first_losses(made))


def test_the_reference_does_not_move(tmp_path: Path) -> None:
    for peft in ("lora", "full"):
        made = ready(tmp_path / peft, peft=peft)
        batch = None
        before = after = torch.zeros(0)
        for batch in next(made.stage.steps(made.model)):
            with made.stage.setting.reference.on():
                before = made.policy(batch)
            break
        made.train()
        assert isinstance(batch, Batch)
        with made.stage.setting.reference.on():
            after = made.policy(batch)
        assert torch.equal(before, after)
        assert (made.policy(batch) - after).abs().max() > 1e-3


CUTS = [{"rows": 1}, {"rows": 3}, {"rows": None, "tokens": 30}, {"attention": Attention.padded, "rows": 3}]
VARIANTS: dict[str, dict[str, Any]] = {
    "gae": {"peft": "lora", "entropy_coef": 0.01},
    "full": {"peft": "full", "kl_in": KLPlace.loss, "kl_estimator": KLEstimator.k3},
    "grpo": {"peft": "lora", "advantage": Advantage.grpo, "num_samples": 4, "score_scaling": ScoreScaling.running},
    "t5": {"peft": "t5"},
    "value model": {"peft": "lora and value model"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_micro_batches_and_padding_do_not_matter(tmp_path: Path, variant: str) -> None:
    expected = ready(tmp_path / "whole", **VARIANTS[variant]).train()
    for i, cut in enumerate(CUTS if variant == "gae" else CUTS[1:2]):
        assert_same(ready(tmp_path / str(i), **VARIANTS[variant] | cut).train(), expected)


def test_training_moves_what_is_trained_and_the_value_head(tmp_path: Path) -> None:
    made = ready(tmp_path, peft="lora")
    before = {name: p.detach().clone() for name, p in made.policy.named_parameters()}
    after = made.train()
    assert set(after) == {name for name in before if "lora" in name or "value_head" in name}
    assert not [name for name in after if "lora_B" in name and torch.equal(after[name], before[name])]
    assert after["value_head.weight"].any()


def test_a_value_model_learns_and_the_reference_has_nothing_to_do_with_it(tmp_path: Path) -> None:
    made = ready(tmp_path, peft="lora and value model")
    assert made.policy.value_head is None
    before = {name: p.detach().clone() for name, p in made.policy.named_parameters()}
    after = made.train()
    assert set(after) == {name for name in before if "lora" in name or name.startswith("value_model.")}
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    # Only rows of the embedding that came up move, so all that is trained does.
    assert {name for name in after if name.startswith("value_model.")} <= moved
    batch = made.stage._roller(made.model).batches(made.stage.episodes, range(8))[0]
    values = made.policy(batch, Detail()).values
    assert_close(values, made.policy.value_model(batch))
    with made.stage.setting.reference.on():
        assert torch.equal(made.policy(batch, Detail()).values, values)
        assert made.policy(batch, Detail(values=False)).values is None
    assert "val/explained_var" in made.stage.facts


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    cases = ["gae:lora", "rloo:full", "gae:t5", "gae:lora and value model"]
    config = tmp_path / "accelerate.yaml"
    config.write_text(ACCELERATE_CONFIG.format(num_processes=2))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += [str(HERE / "ppo_steps.py"), str(tmp_path), *cases]
    path = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for case in cases:
        advantage, _, peft = case.partition(":")
        samples = 1 if advantage == "gae" else 2
        alone = ready(
            tmp_path / case, peft=peft, advantage=Advantage(advantage), num_samples=samples, early_stop_kl=1.0
        )
        expected = alone.train()
        for rank in range(2):
            found = torch.load(tmp_path / f"{case}_{rank}.pt")
            assert found["num_processes"] == 2
            assert found["answers"] == alone.stage.episodes.answers
            assert_same(found["parameters"], expected)
            metrics = alone.stage.evaluate(alone.model, lambda done: True).metrics
            assert found["eval"] == pytest.approx(metrics, abs=1e-4)


@pytest.mark.parametrize("saved", [1, 3, 4, 5])
@pytest.mark.parametrize(
    ("advantage", "peft"),
    [(Advantage.gae, "lora"), (Advantage.rloo, "lora"), (Advantage.gae, "lora and value model")],
)
def test_resumed_is_never_interrupted(tmp_path: Path, saved: int, advantage: Advantage, peft: str) -> None:
    """Within a rollout of four steps, and between two."""
    options = {
        "peft": peft,
        "advantage": advantage,
        "num_samples": 2,
        "score_scaling": ScoreScaling.running,
        "kl_controller": KLController.adaptive,
        "kl_target": 0.1,
        "kl_horizon": 20,
    }
    expected = ready(tmp_path / "whole", **options).train()
    first = ready(tmp_path / "first", **options)
    weights = first.train(until=saved)
    state = json.loads(json.dumps(first.stage.state_dict()))
    second = ready(tmp_path / "second", **options)
    with torch.no_grad():
        for name, parameter in second.policy.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    second.stage.load_state_dict(state)
    found = second.train(done=saved)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_evaluation_moves_nothing_and_is_the_same_each_time(tmp_path: Path) -> None:
    def trained(name: str, **changes: Any) -> Ready:
        config = TrainConfig(**{"learning_rate": 1e-2, "best_metric": "eval/score"} | changes)
        return ready(tmp_path / name, peft="lora", config=config)

    never, always = trained("never"), trained("always", eval_every=1)
    one, other = never.train(), always.train()
    assert all(torch.equal(one[name], other[name]) for name in one)
    first = never.stage.evaluate(never.model, lambda done: True)
    assert never.stage.evaluate(never.model, lambda done: True) == first
    assert {"eval/score", "eval/kl", "eval/response_length", "eval/eos_share", "eval/perplexity"} <= set(
        first.metrics
    )
    assert set(first.samples[0]) == {"prompt", "answer", "score", "kl"}


def test_an_early_stop_spends_its_steps_on_new_rollouts(tmp_path: Path) -> None:
    made = ready(tmp_path / "never", early_stop_kl=1e9)
    made.train()
    assert made.stage.rollouts == 2  # of four steps each
    config = TrainConfig(optimizer=Optimizer.sgd, lr_scheduler=Scheduler.constant, learning_rate=0.5)
    made = ready(tmp_path / "at once", early_stop_kl=1e-12, config=config)
    made.train()
    # The first step of a rollout is taken by the policy that drew it.
    assert made.stage.rollouts == 3


def test_the_adaptive_controller_follows_the_kl(tmp_path: Path) -> None:
    adaptive = {"kl_controller": KLController.adaptive, "kl_horizon": 8, "kl_coef": 0.1}
    far = ready(tmp_path / "far", kl_target=1e6, **adaptive)
    far.train(until=1)
    assert far.stage.kl_coef == pytest.approx(0.08)
    assert far.stage.facts["objective/kl_coef"] == 0.1


def episodes() -> Episodes:
    found = Episodes(prompts=[[5]] * 4, asked=["?"] * 4, columns=[{}] * 4, origins=["x"] * 4, texts=[""] * 4)
    found.answers = [[4, 5, 3], [4], [6, 7], [8, 3]]
    found.ended = [True, False, False, True]
    found.scores = [1.0, -2.0, 5.0, 0.5]
    draw = torch.Generator().manual_seed(0)
    for name in ("logprobs", "reference", "values"):
        setattr(found, name, [torch.randn(len(each), generator=draw).tolist() for each in found.answers])
    return found


def slow_advantages(found: Episodes, coef: float, lam: float) -> list[list[float]]:
    rows = []
    for i, answer in enumerate(found.answers):
        rewards = [-coef * (p - q) for p, q in zip(found.logprobs[i], found.reference[i], strict=True)]
        rewards[-1] += min(max(found.scores[i], -3), 3) - (0 if found.ended[i] else 0.5)
        values = [*found.values[i], 0.0]
        deltas = [rewards[t] + values[t + 1] - values[t] for t in range(len(answer))]
        rows.append([sum(lam ** (s - t) * deltas[s] for s in range(t, len(answer))) for t in range(len(answer))])
    return rows


def test_rewards_and_advantages_are_their_definitions(tmp_path: Path) -> None:
    made = ready(tmp_path, kl_coef=0.3, lam=0.8, score_clip=3.0, missing_eos_penalty=0.5, whiten_advantages=False)
    found = episodes()
    facts = made.stage._judge(found)
    expected = slow_advantages(found, 0.3, 0.8)
    for i in range(4):
        assert found.advantages[i] == pytest.approx(expected[i], abs=1e-5)
        returns = [a + v for a, v in zip(expected[i], found.values[i], strict=True)]
        assert found.returns[i] == pytest.approx(returns, abs=1e-5)
    kl = [
        sum(p - q for p, q in zip(*pair, strict=True)) for pair in zip(found.logprobs, found.reference, strict=True)
    ]
    counted = [1.0, -2.5, 2.5, 0.5]
    assert facts["objective/rlhf_reward"] == pytest.approx(sum(counted) / 4 - 0.3 * sum(kl) / 4, abs=1e-6)
    made.stage.config.whiten_advantages = True
    made.stage._judge(found)
    flat = torch.tensor([each for row in found.advantages for each in row])
    assert flat.mean().item() == pytest.approx(0, abs=1e-6) and flat.std(correction=0).item() == pytest.approx(1)


def test_scores_are_whitened_in_a_rollout_or_over_the_run(tmp_path: Path) -> None:
    scores = torch.tensor([1.0, 2.0, 6.0]).double()
    made = ready(tmp_path, score_scaling=ScoreScaling.whiten)
    assert_close(made.stage._scaled(scores), (scores - 3) / scores.std(correction=0))
    made = ready(tmp_path, score_scaling=ScoreScaling.running, score_clip=0.5)
    made.stage._scaled(scores)
    later = torch.tensor([3.0, 100.0]).double()
    together = torch.cat([scores, later])
    expected = ((later - together.mean()) / together.std(correction=0)).clamp(-0.5, 0.5)
    assert_close(made.stage._scaled(later), expected)


ONE_TOKEN = {"max_new_tokens": 1, "prompts": Prompts([1]), "validation": False, "peft": "full", "rows": 64}
ARM = 40


def arm(prompts: list[Any], completions: list[str], columns: list[dict[str, Any]]) -> list[float]:
    return [float(said == letter(ARM)) for said in completions]


TOKENIZER = byte_tokenizer()


def letter(token: int) -> str:
    return TOKENIZER.decode([token])


def probabilities(made: Ready) -> torch.Tensor:
    """[vocabulary] of the policy's answers to the only prompt."""
    with torch.no_grad():
        return made.policy.lm(input_ids=made.prompts[0].input_ids[None]).logits[0, -1].softmax(-1)


BANDITS = {
    Advantage.gae: {"vf_coef": 0.5},
    Advantage.rloo: {"num_samples": 64, "whiten_advantages": False},
    Advantage.grpo: {"num_samples": 64, "whiten_advantages": False},
}


@pytest.mark.parametrize("advantage", list(Advantage))
def test_a_bandit_is_learnt(tmp_path: Path, advantage: Advantage) -> None:
    config = TrainConfig(lr_scheduler=Scheduler.constant, learning_rate=5e-3)
    made = ready(
        tmp_path,
        **ONE_TOKEN | BANDITS[advantage],
        config=config,
        steps=40,
        reward=arm,
        rollout_batch_size=64,
        advantage=advantage,
        kl_coef=0.0,
        global_batch_size=64,
    )
    before = probabilities(made)[ARM].item()
    made.train()
    assert before < 0.2 and probabilities(made)[ARM] > 0.9


@pytest.mark.parametrize("kl_in", list(KLPlace))
def test_the_optimum_is_the_reference_times_exp_of_the_reward(tmp_path: Path, kl_in: KLPlace) -> None:
    beta = 0.5
    letters = [letter(token) for token in range(VOCABULARY)]
    worth = {each: math.sin(token) for token, each in enumerate(letters)}

    def reward(prompts: list[Any], completions: list[str], columns: list[dict[str, Any]]) -> list[float]:
        return [worth.get(said, 0.0) for said in completions]

    made = ready(
        tmp_path,
        **ONE_TOKEN,
        config=TrainConfig(lr_scheduler=Scheduler.linear, learning_rate=2e-3),
        steps=50,
        reward=reward,
        advantage=Advantage.rloo,
        num_samples=256,
        rollout_batch_size=256,
        num_ppo_epochs=1,
        global_batch_size=256,
        kl_coef=beta,
        kl_in=kl_in,
        kl_estimator=KLEstimator.k1 if kl_in is KLPlace.reward else KLEstimator.k2,
        whiten_advantages=False,
    )
    start = probabilities(made)
    rewards = torch.tensor([worth[each] if token > 3 else 0.0 for token, each in enumerate(letters)])
    optimum = start * (rewards / beta).exp()
    optimum = optimum / optimum.sum()
    made.train()
    far, near = ((each - optimum).abs().sum().item() / 2 for each in (start, probabilities(made)))
    assert far > 0.3 and near < 0.1


def test_encoder_decoders_answer_too(tmp_path: Path) -> None:
    made = ready(tmp_path, peft="t5")
    for metrics in first_losses(made):
        assert metrics["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert made.stage.facts["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    assert made.stage.evaluate(made.model, lambda done: True).metrics["eval/perplexity"] > 1
