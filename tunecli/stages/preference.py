"""Learning which of two answers is preferred without a reward model (Rafailov et al., 2023, and what followed it; the
losses and their papers are in `tunecli.ops.preference`).

The unit of the loss is a row: a pair, or an answer with feedback. Of KTO a pair is two answers, whose mean counts; a
probability p makes the chosen one p times a liked and 1 - p times a disliked answer, and the other the reverse.

KTO's reference point is the divergence of the policy from the reference. It is estimated over the whole global batch
before each step, in eval mode, so it is the same however the batch is cut up; the paper and TRL take each device's
micro-batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn

from tunecli.config.errors import UserError
from tunecli.config.stage import PolicyModel, PreferenceConfig, PreferenceLoss, ReferenceTime
from tunecli.data.batching import Examples, collate
from tunecli.data.mismatched import mismatched
from tunecli.engine.batch import Batch
from tunecli.engine.stage import Evaluation, LossOutput, means
from tunecli.evaluation.predictions import predict
from tunecli.ops import preference
from tunecli.ops.choices import candidate_scores
from tunecli.stages.reference_scores import ReferenceScores
from tunecli.stages.setting import Setting
from tunecli.stages.supervised import Supervised, by_source

BETA = {PreferenceLoss.simpo: 2.0}
USUAL_BETA = 0.1
GAMMA = 1.0
LABEL_SMOOTHING = {PreferenceLoss.exo: 0.001}
USUAL_LABEL_SMOOTHING = 0.1
SMOOTHED = (PreferenceLoss.cdpo, PreferenceLoss.robust, PreferenceLoss.exo)
PER_TOKEN = (PreferenceLoss.ipo, PreferenceLoss.orpo, PreferenceLoss.simpo)
"""Losses of means over tokens, not of sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What is known of the answers of some rows."""

    logprobs: Tensor
    """[answers] sums over the tokens"""
    tokens: Tensor
    """[answers]"""
    reference: Tensor | None
    """[answers] as `logprobs`, of the reference; None: the loss has none"""
    rows: Tensor
    """[answers] int64: the row that each belongs to, in order"""
    chosen: Tensor
    """[rows] int64: the answer that is preferred, or the only one"""
    margins: Tensor
    """[rows]"""
    probabilities: Tensor
    """[rows] that the chosen answer is the better one"""
    liked: Tensor
    """[rows] 1 or 0 for the only answer; nan for pairs"""

    @property
    def rejected(self) -> Tensor:
        """[pairs] int64"""
        last = torch.bincount(self.rows, minlength=len(self.chosen)).cumsum(0) - 1
        return last[self.is_pair]

    @property
    def is_pair(self) -> Tensor:
        """[rows] bool"""
        return self.liked.isnan()

    def ratios(self, *, per_token: bool) -> Tensor:
        """[answers] log-probabilities less those of the reference."""
        sums = self.logprobs if self.reference is None else self.logprobs - self.reference
        return sums / self.tokens.clamp(min=1) if per_token else sums


@dataclass(frozen=True, slots=True)
class Judged:
    losses: Tensor
    """[rows]"""
    rewards: Tensor
    """[answers] what the loss takes for the worth of each, without a gradient"""


def judge(config: PreferenceConfig, answers: Answers, kl: float) -> Judged:
    """`kl`: with KTO, of the policy from the reference."""
    beta = beta_of(config)
    ratios = answers.ratios(per_token=config.loss in PER_TOKEN)
    rewards = beta * ratios.detach()
    if config.loss is PreferenceLoss.kto:
        return Judged(_kto(config, answers, ratios, kl), rewards)
    chosen, rejected = ratios[answers.chosen], ratios[answers.rejected]
    if config.loss is PreferenceLoss.orpo:
        return Judged(preference.orpo(chosen, rejected, answers.probabilities, beta=beta), rewards)
    options: dict[str, float | Tensor] = {}
    if config.loss is PreferenceLoss.simpo:
        options = {"gamma": gamma_of(config)}
    if config.loss in SMOOTHED:
        options = {"label_smoothing": label_smoothing_of(config)}
    if config.loss is PreferenceLoss.dpo:
        options = {"margins": config.margin_weight * answers.margins}
    losses = PAIR_LOSSES[config.loss](chosen - rejected, answers.probabilities, beta=beta, **options)
    return Judged(losses, rewards)


PAIR_LOSSES: dict[PreferenceLoss, Callable[..., Tensor]] = {
    PreferenceLoss.dpo: preference.dpo,
    PreferenceLoss.cdpo: preference.cdpo,
    PreferenceLoss.robust: preference.robust,
    PreferenceLoss.ipo: preference.ipo,
    PreferenceLoss.hinge: preference.hinge,
    PreferenceLoss.exo: preference.exo,
    PreferenceLoss.simpo: preference.simpo,
}


def _kto(config: PreferenceConfig, answers: Answers, ratios: Tensor, kl: float) -> Tensor:
    liked = torch.where(answers.is_pair, 1 - answers.probabilities, answers.liked)[answers.rows]
    liked = liked.index_put((answers.chosen[answers.is_pair],), answers.probabilities[answers.is_pair])
    losses = preference.kto(
        ratios,
        liked,
        kl,
        beta=beta_of(config),
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
    )
    sums = losses.new_zeros(len(answers.chosen)).index_add(0, answers.rows, losses)
    return sums / torch.bincount(answers.rows, minlength=len(sums))


def beta_of(config: PreferenceConfig) -> float:
    return BETA.get(config.loss, USUAL_BETA) if config.beta is None else config.beta


def gamma_of(config: PreferenceConfig) -> float:
    return GAMMA if config.gamma is None else config.gamma


def label_smoothing_of(config: PreferenceConfig) -> float:
    usual = LABEL_SMOOTHING.get(config.loss, USUAL_LABEL_SMOOTHING)
    return usual if config.label_smoothing is None else config.label_smoothing


Part = tuple[Tensor, Tensor]
"""a sum, and the number that it is of"""


def metrics(config: PreferenceConfig, answers: Answers, judged: Judged, weights: Tensor) -> dict[str, Part]:
    """By their usual names. Of answers with feedback those that are liked are the chosen ones. Margins and accuracies
    are of pairs of which one answer is the better one; two of the same worth, as all are before the first step, are
    half right.

    Args:
        weights: [rows] 0 for rows that only fill up.
    """
    pairs, side = weights[answers.is_pair], _side(answers)
    liked = answers.liked.nan_to_num(1.0)
    chosen, chosen_weights = answers.chosen, weights * liked
    disliked = answers.chosen[~answers.is_pair]
    rejected = torch.cat([answers.rejected, disliked])
    rejected_weights = torch.cat([pairs, (weights * (1 - liked))[~answers.is_pair]])
    margins = _margins(answers, judged)
    logprobs = answers.logprobs.detach()
    return {
        "rewards/chosen": _part(judged.rewards[chosen], chosen_weights),
        "rewards/rejected": _part(judged.rewards[rejected], rejected_weights),
        "rewards/margins": _part(margins, pairs * side.abs()),
        "rewards/accuracies": _part(_right(margins), pairs * side.abs()),
        "logps/chosen": _part(logprobs[chosen], chosen_weights),
        "logps/rejected": _part(logprobs[rejected], rejected_weights),
    }


def _side(answers: Answers) -> Tensor:
    """[pairs] 1 where the chosen answer is the better one, by its probability; -1 where it is not; 0: neither is."""
    return (answers.probabilities[answers.is_pair] - 0.5).sign()


def _margins(answers: Answers, judged: Judged) -> Tensor:
    """[pairs] by how much the reward of the better answer leads."""
    chosen, rejected = judged.rewards[answers.chosen[answers.is_pair]], judged.rewards[answers.rejected]
    return _side(answers) * (chosen - rejected)


def _right(margins: Tensor) -> Tensor:
    return (margins > 0).float() + 0.5 * (margins == 0).float()


def _part(values: Tensor, weights: Tensor) -> Part:
    return (values * weights).sum(), weights.sum()


def preference_stage(setting: Setting) -> Supervised:
    """
    Raises:
        UserError: the loss compares with a reference, and there is none, as with a model that is only scored.
    """
    config = setting.config
    assert isinstance(config, PreferenceConfig)
    preferences = Preferences(setting=setting, config=config, reference=_reference(setting, config))
    setting.note(_described(config, preferences.reference))
    stage = setting.supervised(preferences.loss, preferences.measured)
    return replace(stage, prepared=preferences.prepared)


def _reference(setting: Setting, config: PreferenceConfig) -> ReferenceScores | None:
    if not config.has_reference:
        return None
    if setting.reference is None:
        raise UserError(
            f"loss={config.loss.value} compares with the model before training, which is not in the result",
            where="stage",
            fix="metrics.jsonl has what was measured in training; stage=sft measures the model itself on texts",
        )
    return ReferenceScores(
        reference=setting.reference,
        outputs=logprobs_of,
        batching=setting.batching,
        accelerator=setting.accelerator,
        train=setting.train if _is_cached(setting, config) else None,
        validation=setting.validation,
        run_dir=setting.run_dir,
        note=setting.note,
    )


def _described(config: PreferenceConfig, reference: ReferenceScores | None) -> str:
    """Derived values, for the user."""
    options = f"{config.loss.value}, beta {beta_of(config):g}"
    if config.loss is PreferenceLoss.simpo:
        options += f", gamma {gamma_of(config):g}"
    if config.loss in SMOOTHED:
        options += f", label_smoothing {label_smoothing_of(config):g}"
    if reference is None or reference.reference is None:
        return f"{options}; no reference"
    copied = "the first values of what is trained" if reference.reference.copies else "what is trained, switched off"
    return f"{options}; reference: {copied}, asked {'in each step' if reference.train is None else 'once'}"


def _is_cached(setting: Setting, config: PreferenceConfig) -> bool:
    """As asked, or where that saves something: rows come up more than once."""
    if config.reference is not None or setting.train is None:
        return config.reference is ReferenceTime.cached
    return setting.num_examples > len(setting.train)


@dataclass(slots=True, kw_only=True)
class Preferences:
    """What the steps of one run share."""

    setting: Setting
    config: PreferenceConfig
    reference: ReferenceScores | None
    """None: the loss has none"""
    kl: float = field(default=0.0, init=False)
    """with KTO: of this step's policy"""

    def prepared(
        self, model: nn.Module, examples: Examples, indices: Sequence[int], batches: list[Batch]
    ) -> list[Batch]:
        """The micro-batches of a step with what is known of the reference; KTO's divergence is estimated."""
        reference, kto = self.reference, self.config.loss is PreferenceLoss.kto
        if kto:
            (self.kl,) = self.divergences(model, examples, [indices])
        if reference is None:
            return batches
        if reference.train is not None and reference.reference is not None and not kto:
            reference.ask_everything(model)
        return [self.reference.put_into(model, batch) for batch in batches]

    def loss(self, model: nn.Module, batch: Batch, names: list[str]) -> LossOutput:
        if self.reference is not None and batch.reference is None:
            batch = replace(batch, reference=self.reference.ask(model, batch))
        answers = answers_of(batch, logprobs_of(model, batch))
        judged = judge(self.config, answers, self.kl)
        output = by_source(judged.losses * batch.weights, batch, names)
        found = metrics(self.config, answers, judged, batch.weights)
        sums = {"kl": self.kl * batch.weights.sum()} if self.config.loss is PreferenceLoss.kto else {}
        return replace(output, metrics=sums, parts=output.parts | found)

    @torch.no_grad()
    def divergences(self, model: nn.Module, examples: Examples, groups: Sequence[Sequence[int]]) -> list[float]:
        """KTO's reference point for each group of examples."""
        assert self.reference is not None
        two_sides = self.config.language_model is PolicyModel.seq2seq_lm
        windows = [mismatched(examples, group, two_sides=two_sides) for group in groups]
        together = replace(
            windows[0],
            examples=[each for window in windows for each in window.examples],
            sources=[each for window in windows for each in window.sources],
            origins=[each for window in windows for each in window.origins],
            adapters=[each for window in windows for each in window.adapters],
        )
        if not together.examples:
            return [0.0] * len(groups)
        training = model.training
        model.eval()
        policy = predict(model, together, self.setting.batching, self.setting.accelerator, outputs=logprobs_of)
        model.train(training)
        reference = self.reference.of(model, together)
        ratios = [own - theirs for own, theirs in zip(policy, reference, strict=True)]
        edges = [0, *accumulate(len(window) for window in windows)]
        parts = [ratios[start:end] for start, end in zip(edges, edges[1:], strict=False)]
        return [preference.kto_kl(sum(map(np.sum, part)), sum(map(len, part))) for part in parts]

    def measured(self, model: nn.Module, proceed: Callable[[float], bool]) -> Evaluation:
        """The loss and the metrics of the validation rows, and answers to `evaluation.prompts`."""
        setting, found = self.setting, Evaluation()
        values: dict[str, float] = {}
        if setting.validation is not None:
            found = self._validated(model, setting.validation, proceed)
            values = found.metrics
        # Unwrapped, the model has lost accelerate's autocast, which adapters in fp32 on a bf16 base need.
        with setting.accelerator.autocast():
            said = setting.evaluator(setting.accelerator.unwrap_model(model), proceed)
        return replace(found, metrics={f"eval/{name}": value for name, value in values.items()}, samples=said.samples)

    def _validated(self, model: nn.Module, examples: Examples, proceed: Callable[[float], bool]) -> Evaluation:
        found = predict(model, examples, self.setting.batching, self.setting.accelerator, proceed, logprobs_of)
        reference = None if self.reference is None else self.reference.of_validation(model)
        size, number = self.setting.global_batch_size, len(examples)
        groups = [range(start, min(start + size, number)) for start in range(0, number, size)]
        kto = self.config.loss is PreferenceLoss.kto
        kls = self.divergences(model, examples, groups) if kto else [0.0] * len(groups)
        sums: Counter[str] = Counter()
        losses, rewards = np.zeros((number, 2)), []
        for group, kl in zip(groups, kls, strict=True):
            batch = collate(examples, group, self.setting.batching)
            logprobs = torch.from_numpy(np.concatenate([found[i] for i in group]))
            if reference is not None:
                known = torch.from_numpy(np.concatenate([reference[i] for i in group]))
                batch = replace(batch, reference=known)
            answers = answers_of(batch, logprobs)
            judged = judge(self.config, answers, kl)
            output = by_source(judged.losses, batch, examples.names)
            parts = output.parts | metrics(self.config, answers, judged, batch.weights)
            parts |= self._by_source(answers, judged, batch, examples.names)
            output = replace(output, parts=parts, metrics={"kl": kl * batch.weights.sum()} if kto else {})
            sums.update({name: value.item() for name, value in output.sums(batch.weights.sum()).items()})
            rewards += np.split(judged.rewards.numpy()[:, None], _edges(answers))
            losses[list(group), 0], losses[list(group), 1] = judged.losses.numpy(), 1
        return Evaluation(means(sums), predictions=rewards, losses=losses)

    def _by_source(self, answers: Answers, judged: Judged, batch: Batch, names: list[str]) -> dict[str, Part]:
        """The share of right pairs of each of several sources."""
        if len(names) == 1:
            return {}
        right, counts = _right(_margins(answers, judged)), _side(answers).abs()
        sources = batch.sources[answers.is_pair]
        return {
            f"rewards/accuracies/{name}": _part(right, counts * (sources == number))
            for number, name in enumerate(names)
        }


def _edges(answers: Answers) -> list[int]:
    """Where the answers of each row after the first begin."""
    return torch.bincount(answers.rows).cumsum(0)[:-1].tolist()


def logprobs_of(model: nn.Module, batch: Batch) -> Tensor:
    """[answers] fp32 log-probabilities, summed over the tokens of each."""
    assert batch.candidates is not None and batch.questions is not None
    return candidate_scores(model(batch), batch.candidates, len(batch.questions))


def answers_of(batch: Batch, logprobs: Tensor) -> Answers:
    assert batch.candidates is not None and batch.questions is not None and batch.right is not None
    assert batch.margins is not None and batch.probabilities is not None and batch.scores is not None
    return Answers(
        logprobs=logprobs,
        tokens=torch.bincount(batch.candidates, minlength=len(batch.questions)),
        reference=batch.reference,
        rows=batch.questions,
        chosen=batch.right,
        margins=batch.margins,
        probabilities=batch.probabilities,
        liked=batch.scores,
    )
