"""Reinforcement learning from rewards: PPO for language models (Ziegler et al., 2019, arXiv:1909.08593; Stiennon et
al., 2020, arXiv:2009.01325; Ouyang et al., 2022, arXiv:2203.02155), and with another baseline and no value head RLOO
(Ahmadian et al., 2024, arXiv:2402.14740) and GRPO (Shao et al., 2024, arXiv:2402.03300).

A rollout draws answers, scores them and weighs each of their tokens; then each optimizer step trains on some of them,
`num_ppo_epochs` times over. Details after Huang et al., 2024, "The N+ Implementation Details of RLHF with PPO"
(arXiv:2403.17031).

Followed:
- The reward of a token is the KL penalty of that token, k1 as in all of these papers (or k2, k3); that of the last
  one has the score added. KL coefficient fixed, or adaptive as in Ziegler et al.
- GAE with gamma 1 and lambda 0.95; value before each token of the answer, 0 behind the last one.
- Advantages whitened over the rollout; clipped policy and value losses, the latter times 0.5 times `vf_coef`;
  optional entropy bonus.
- Answers are drawn at the temperature that log-probabilities are taken at, without dropout throughout, so that the
  first ratios are 1. Log-probabilities of old and new policy come from the same forward in the same micro-batches.
- Scores may be whitened or normalised over the run, clipped, and lowered where no end-of-text token came. What comes
  after a stop token never exists here: nothing is cut off behind one.
- The score is read at the last token of the answer by the reward model's own tokenizer and template.
- With `value: model` the value function is a model of its own that starts as the reward model or another decoder
  (Stiennon et al., Ouyang et al.), with a head for one number; a head that is new says 0 of everything at first.
- Answers are shuffled anew in each epoch; the learning rate falls linearly or as `train.lr_scheduler` says; AdamW's
  epsilon is `train.adam_epsilon` (the paper's is 1e-5).

Not followed:
- By default the value function is a linear head on the policy's own last states, in fp32 and 0 at first; so it shares
  the policy's layers, as in Ziegler et al. Of a value model that starts from a run with adapters these and the head
  are trained, not all of it. It reads the tokens that the policy reads, prompt template included.
- Rewards are not whitened (scores are); scores have no bias from the references' answers taken off them (`whiten`
  does as much).
- No rejection of answers without an end: they are penalised. No loss on pretraining data (PPO-ptx of Ouyang et al.).
- Losses are means over the tokens of the global batch, not of micro-batches; for GRPO neither of each answer first.
- RLOO and GRPO are given the clipped loss over several epochs; with num_ppo_epochs=1 and one step per rollout the
  ratio is 1 and RLOO is the plain policy gradient of its paper. GRPO's paper has the KL in the loss: kl_in=loss,
  kl_estimator=k3. Of answers drawn from the policy, k2 has the gradient of the KL in the reward, k3 that of
  KL(reference || policy), k1 none.
- early_stop_kl: the steps that are not taken are spent on further rollouts, so that train.max_steps stays the number
  of optimizer steps and the schedule ends where it should.

A checkpoint in the middle of a rollout holds the rollout; so a run can be resumed after any step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunecli.config.stage import Advantage, KLController, KLPlace, PPOConfig, ScoreScaling
from tunecli.data.stop_tokens import stop_token_ids
from tunecli.data.text_encoder import TextEncoder
from tunecli.engine.batch import Batch
from tunecli.engine.distributed import sum_over_ranks
from tunecli.engine.stage import Evaluation, LossOutput
from tunecli.evaluation.answers import prompt_of
from tunecli.evaluation.evaluator import SHOWN, TOGETHER, Abandoned
from tunecli.models.dropout import without_dropout
from tunecli.models.generate import Sampling, stop_ids
from tunecli.models.policy import Detail
from tunecli.ops.advantages import (
    explained_variance,
    gae,
    grpo,
    masked_sums,
    moments,
    rloo,
    whitened,
)
from tunecli.ops.kl import ESTIMATORS, adapted, k1
from tunecli.ops.policy_losses import approximate_kl, clipped_policy_loss, clipped_value_loss
from tunecli.stages.rollout import Episodes, Roller, ask
from tunecli.stages.setting import Setting

EVALUATION_SEED = 1_000_003
"""Added to the run's: held-out prompts are answered with numbers of their own, the same in every evaluation."""
MOST_NATS = 700
"""Beyond this a perplexity is no number any more."""


def ppo(setting: Setting) -> PPO:
    assert isinstance(setting.config, PPOConfig)
    return PPO(setting, setting.config)


@dataclass(slots=True)
class PPO:
    setting: Setting
    config: PPOConfig
    rollouts: int = 0
    """that were drawn so far"""
    taken: int = 0
    """steps on the present one"""
    stopped: bool = False
    """the last of them went too far: draw the next rollout"""
    kl_coef: float = field(init=False)
    seen: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """number, sum and sum of squares of all scores so far"""
    episodes: Episodes = field(default_factory=Episodes)
    facts: dict[str, float] = field(default_factory=dict)
    """metrics of the present rollout"""
    _estimate: Callable[[Tensor, Tensor], Tensor] = field(init=False)
    _detail: Detail = field(init=False)
    _moved: Tensor = field(init=False)
    """[2] approximate KL of this rank's tokens in the present step, summed; and their number"""
    _to_come: int = field(default=0, init=False)
    """micro-batches of the present step"""
    _elsewhere: float = field(default=0.0, init=False)
    """seconds of evaluations"""

    def __post_init__(self) -> None:
        config = self.config
        self.kl_coef = config.kl_coef
        self._estimate = ESTIMATORS[config.kl_estimator.value]
        self._detail = Detail(temperature=config.temperature, entropy_gradient=config.entropy_coef > 0)
        self._moved = torch.zeros(2)

    # The Stage protocol.

    def steps(self, model: nn.Module) -> Iterator[list[Batch]]:
        without_dropout(model)
        while True:
            if self._used_up:
                self._draw(model)
            indices = self._plan()[self.taken]
            # Counted before the step: when the loop saves, the step that was yielded has been taken.
            self.taken += 1
            batches = self._roller(model).batches(self.episodes, indices)
            self._moved, self._to_come = torch.zeros(2), len(batches)
            started, self._elsewhere = time.perf_counter(), 0.0
            yield batches
            self.facts["time/update"] = time.perf_counter() - started - self._elsewhere

    def weight(self, batch: Batch) -> Tensor:
        return batch.weights.sum()

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        config, weights = self.config, batch.weights
        found = model(batch, self._detail)
        assert batch.old_logprobs is not None and batch.advantages is not None
        policy, ratios, clipped = clipped_policy_loss(
            found.logprobs, batch.old_logprobs, batch.advantages, config.clip_range
        )
        moved = approximate_kl(found.logprobs.detach(), batch.old_logprobs)
        measured = {"loss/policy": policy, "policy/clipfrac": clipped, "policy/approx_kl": moved, "ratio": ratios}
        measured["policy/entropy"] = found.entropies
        total = policy - config.entropy_coef * found.entropies
        if config.kl_in is KLPlace.loss:
            assert batch.reference_logprobs is not None
            measured["loss/kl"] = self._estimate(found.logprobs, batch.reference_logprobs)
            total = total + self.kl_coef * measured["loss/kl"]
        if found.values is not None:
            assert batch.old_values is not None and batch.returns is not None
            value, value_clipped = clipped_value_loss(
                found.values, batch.old_values, batch.returns, config.value_clip_range
            )
            measured |= {"loss/value": value, "val/clipfrac": value_clipped}
            total = total + config.vf_coef * value
        self._watch((moved * weights).sum(), weights.sum())
        one = torch.ones(())
        return LossOutput(
            (total * weights).sum(),
            {name: (each.detach() * weights).sum() for name, each in measured.items()},
            {name: (torch.tensor(value, dtype=torch.float64), one) for name, value in self.facts.items()},
        )

    def evaluate(self, model: nn.Module, proceed: Callable[[float], bool]) -> Evaluation:
        """Held-out prompts, answered with random numbers that are the same in every evaluation."""
        started = time.perf_counter()
        try:
            return self._evaluated(model, proceed)
        except Abandoned:
            return Evaluation()
        finally:
            self._elsewhere += time.perf_counter() - started

    def describe(self, batch: Batch) -> list[str]:
        return [self.episodes.origin(row) for row in batch.rows]

    def state_dict(self) -> dict[str, Any]:
        assert self.setting.feed is not None
        return {
            "rollouts": self.rollouts,
            "taken": self.taken,
            "stopped": self.stopped,
            "kl_coef": self.kl_coef,
            "seen": self.seen,
            "facts": self.facts,
            "episodes": None if self._used_up else self.episodes.state_dict(),
            "feed": self.setting.feed.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.setting.feed is not None
        self.rollouts, self.taken, self.stopped = state["rollouts"], state["taken"], state["stopped"]
        self.kl_coef, self.seen, self.facts = state["kl_coef"], state["seen"], state["facts"]
        self.episodes = Episodes(**(state["episodes"] or {}))
        self.setting.feed.load_state_dict(state["feed"])

    # Rollouts.

    @property
    def _used_up(self) -> bool:
        """Whether the present rollout has no step left, or there is none yet."""
        epoch = self.config.rollout_batch_size // self.setting.global_batch_size
        return self.rollouts == 0 or self.stopped or self.taken == self.config.num_ppo_epochs * epoch

    def _plan(self) -> list[list[int]]:
        """Indices of the answers of each step of the present rollout: all of them in every epoch, shuffled anew."""
        size, step = self.config.rollout_batch_size, self.setting.global_batch_size
        orders = [
            np.random.default_rng([self.setting.seed, self.rollouts, epoch]).permutation(size)
            for epoch in range(self.config.num_ppo_epochs)
        ]
        return [order[start : start + step].tolist() for order in orders for start in range(0, size, step)]

    def _draw(self, model: nn.Module) -> None:
        """The next rollout."""
        config, feed = self.config, self.setting.feed
        assert feed is not None
        first = self.rollouts * config.rollout_batch_size
        self.rollouts, self.taken, self.stopped = self.rollouts + 1, 0, False
        episodes = ask(*feed.take(config.rollout_batch_size // config.num_samples), config.num_samples)
        roller = self._roller(model)
        self.facts = roller.answer(model, episodes, seed=self.setting.seed, first=first)
        once = self._plan()[: config.rollout_batch_size // self.setting.global_batch_size]
        self.facts |= roller.weigh(model, episodes, once)
        self.facts |= _described(episodes) | {"objective/kl_coef": self.kl_coef}
        self.facts |= self._judge(episodes)
        self.episodes = episodes
        if config.kl_controller is KLController.adaptive:
            self.kl_coef = adapted(
                self.kl_coef,
                self.facts["objective/kl"],
                target=config.kl_target,
                horizon=config.kl_horizon,
                episodes=len(episodes),
            )

    def _judge(self, episodes: Episodes) -> dict[str, float]:
        """Fill advantages and returns in. Returns metrics."""
        config, mask = self.config, episodes.mask
        scores = self._scaled(torch.tensor(episodes.scores).double())
        scores -= config.missing_eos_penalty * (~torch.tensor(episodes.ended)).double()
        penalties = self.kl_coef * self._estimate(
            episodes.padded(episodes.logprobs), episodes.padded(episodes.reference)
        )
        facts = {"objective/rlhf_reward": (scores - penalties.sum(1)).mean().item()}
        if config.kl_in is KLPlace.loss:
            penalties = torch.zeros_like(penalties)
        if config.advantage is Advantage.gae:
            values = episodes.padded(episodes.values)
            rewards = -penalties
            rewards[torch.arange(len(episodes)), mask.sum(1) - 1] += scores
            advantages = gae(rewards, values, mask, config.gamma, config.lam)
            returns = advantages + values
            episodes.returns = episodes.unpadded(returns)
            facts["val/explained_var"] = explained_variance(values, returns, mask)
        else:
            compare = rloo if config.advantage is Advantage.rloo else grpo
            each = compare(scores - penalties.sum(1), config.num_samples)
            advantages = torch.where(mask, each[:, None], 0.0)
        if config.whiten_advantages:
            advantages = whitened(advantages, mask, masked_sums(advantages, mask))
        episodes.advantages = episodes.unpadded(advantages)
        return facts

    def _scaled(self, scores: Tensor) -> Tensor:
        """[answers] scores as they are to count."""
        everything = torch.ones(len(scores), dtype=torch.bool)
        if self.config.score_scaling is not ScoreScaling.none:
            sums = masked_sums(scores, everything)
            if self.config.score_scaling is ScoreScaling.running:
                sums = sums + torch.tensor(self.seen, dtype=torch.float64)
                self.seen = sums.tolist()
            scores = whitened(scores, everything, sums)
        limit = self.config.score_clip
        return scores if limit is None else scores.clamp(-limit, limit)

    def _watch(self, moved: Tensor, tokens: Tensor) -> None:
        """Count how far a micro-batch finds the policy from the one that drew it; after the last one of a step all
        ranks decide together whether that was too far."""
        if self.config.early_stop_kl is None:
            return
        self._moved = self._moved + torch.stack([moved, tokens]).cpu()
        self._to_come -= 1
        if self._to_come == 0:
            sums = dict(zip(("moved", "tokens"), self._moved.tolist(), strict=True))
            sums = sum_over_ranks(self.setting.accelerator, sums)
            self.stopped = sums["moved"] > self.config.early_stop_kl * sums["tokens"]

    def _roller(self, model: nn.Module, *, values: bool = True) -> Roller:
        setting, config = self.setting, self.config
        assert setting.reference is not None and setting.scorer is not None
        tokenizer = setting.evaluator.tokenizer
        lm = setting.accelerator.unwrap_model(model).lm
        return Roller(
            tokenizer=tokenizer,
            accelerator=setting.accelerator,
            batching=setting.batching,
            sampling=Sampling(
                max_new_tokens=config.max_new_tokens,
                min_new_tokens=config.min_new_tokens,
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                stop_ids=(*stop_ids(lm, tokenizer.eos_token_id), *stop_token_ids(config.stop_tokens, tokenizer)),
            ),
            reference=setting.reference,
            scorer=setting.scorer,
            detail=replace(self._detail, values=values),
        )

    # Evaluation.

    def _evaluated(self, model: nn.Module, proceed: Callable[[float], bool]) -> Evaluation:
        setting = self.setting
        if setting.validation is None:
            return Evaluation()
        number, roller = len(setting.validation), self._roller(model, values=False)
        size = TOGETHER * setting.accelerator.num_processes
        facts: dict[str, float] = {}
        samples: list[dict[str, str]] = []
        nats = tokens = 0.0
        for start in range(0, number, size):
            if not proceed(start / number):
                raise Abandoned
            indices = range(start, min(start + size, number))
            episodes = ask(setting.validation, indices, 1)
            roller.answer(model, episodes, seed=setting.seed + EVALUATION_SEED, first=start)
            roller.weigh(model, episodes, [range(len(episodes))])
            for name, value in _described(episodes).items():
                facts[name] = facts.get(name, 0.0) + value * len(episodes) / number
            nats -= sum(map(sum, episodes.reference))
            tokens += sum(map(len, episodes.reference))
            samples += self._shown(episodes)
        facts["perplexity"] = math.exp(min(nats / tokens, MOST_NATS))
        renamed = {name.removeprefix("objective/").replace("scores", "score"): each for name, each in facts.items()}
        return Evaluation({f"eval/{name}": each for name, each in renamed.items()}, samples=samples[:SHOWN])

    def _shown(self, episodes: Episodes) -> list[dict[str, str]]:
        encoder = TextEncoder(self.setting.evaluator.tokenizer)
        return [
            {
                "prompt": prompt_of(episodes.prompts[i], encoder),
                "answer": episodes.texts[i],
                "score": f"{episodes.scores[i]:.3f}",
                "kl": f"{_kl(episodes, i):.3f}",
            }
            for i in range(min(SHOWN, len(episodes)))
        ]


def _kl(episodes: Episodes, index: int) -> float:
    """Of a whole answer, in nats."""
    return k1(torch.tensor(episodes.logprobs[index]), torch.tensor(episodes.reference[index])).sum().item()


def _described(episodes: Episodes) -> dict[str, float]:
    """Means over all answers."""
    scores = torch.tensor(episodes.scores).double()
    mean, variance = moments(masked_sums(scores, torch.ones(len(scores), dtype=torch.bool)))
    parts = {f"objective/scores/{name}": sum(each) / len(each) for name, each in episodes.parts.items()}
    return {
        "objective/scores": mean,
        "objective/scores_std": variance**0.5,
        **(parts if len(parts) > 1 else {}),
        "objective/kl": sum(_kl(episodes, i) for i in range(len(episodes))) / len(episodes),
        "response_length": sum(map(len, episodes.answers)) / len(episodes),
        "eos_share": sum(episodes.ended) / len(episodes),
    }
