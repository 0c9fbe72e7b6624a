"""The `stage` group: what is optimised."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class Turns(Enum):
    all = "all"
    last = "last"


class Task(Enum):
    """What a model is asked for; transformers has a class for each."""

    causal_lm = "causal_lm"
    seq2seq_lm = "seq2seq_lm"
    masked_lm = "masked_lm"
    sequence_classification = "sequence_classification"
    token_classification = "token_classification"

    @property
    def has_labels(self) -> bool:
        """Whether the model has a head of its own for the labels of the data."""
        return self in (Task.sequence_classification, Task.token_classification)


class Rows(Enum):
    """Rows of stages that learn from what people or rules think of an answer: no task of transformers' tells them."""

    judged = "judged"
    """pairs of a preferred and a rejected answer, or answers with scores"""
    answers = "answers"
    """pairs, or answers with or without scores"""
    pairs = "pairs"
    feedback = "feedback"
    """answers that are liked or not, or pairs"""
    prompts = "prompts"


class Objective(Enum):
    """What continued pretraining predicts."""

    causal_lm = "causal_lm"
    masked_lm = "masked_lm"
    span_corruption = "span_corruption"
    prefix_lm = "prefix_lm"


class LanguageModel(Enum):
    causal_lm = "causal_lm"
    masked_lm = "masked_lm"


class PolicyModel(Enum):
    """What a model that writes answers is."""

    causal_lm = "causal_lm"
    seq2seq_lm = "seq2seq_lm"


class PreferenceLoss(Enum):
    dpo = "dpo"
    ipo = "ipo"
    cdpo = "cdpo"
    robust = "robust"
    hinge = "hinge"
    orpo = "orpo"
    simpo = "simpo"
    kto = "kto"
    exo = "exo"


class ReferenceTime(Enum):
    """When the reference is asked."""

    cached = "cached"
    live = "live"


class ProblemType(Enum):
    single_label = "single_label"
    multi_label = "multi_label"
    regression = "regression"


class Subwords(Enum):
    first = "first"
    all = "all"


@dataclass(kw_only=True, slots=True)
class StageConfig:
    name: str = MISSING

    @property
    def task(self) -> Task:
        return Task.causal_lm

    @property
    def reads(self) -> Task | Rows:
        """The task whose rows it learns from, or what these rows hold."""
        return self.task


@dataclass(kw_only=True, slots=True)
class SFTConfig(StageConfig):
    """Supervised fine-tuning: next-token cross-entropy on the answers."""

    name: str = "sft"
    train_on_prompt: bool = False
    """Learn every token: the prompt's too, not only the assistant's."""
    turns: Turns = Turns.all
    """Learn all answers of a conversation, or only the last one."""


@dataclass(kw_only=True, slots=True)
class PretrainConfig(StageConfig):
    """Continued pretraining: learn plain documents, every token of them."""

    name: str = "pretrain"
    objective: Objective = Objective.causal_lm
    """Each token from those before it, or masked ones from those around them (encoders such as BERT). Of
    encoder-decoders such as T5: spans that are taken out, or the rest of a text from its beginning (`prefix_lm`)."""
    mask_probability: float = 0.15
    """With `objective: masked_lm` and `span_corruption`: share of the tokens that are predicted."""
    mean_span_length: float = 3.0
    """With `objective: span_corruption`: tokens of a span, on average."""

    @property
    def task(self) -> Task:
        if self.objective in (Objective.span_corruption, Objective.prefix_lm):
            return Task.seq2seq_lm
        return Task(self.objective.value)

    @property
    def reads(self) -> Task:
        """Plain documents, of which masked language models learn too."""
        return Task.masked_lm if self.task is Task.seq2seq_lm else self.task

    @property
    def train_on_prompt(self) -> bool:
        """Rows of any format are documents here: every token of them is learnt."""
        return True


@dataclass(kw_only=True, slots=True)
class HeadConfig(StageConfig):
    """A stage whose model gets a head of its own, which is trained beside every PEFT method."""

    labels: list[str] = field(default_factory=list)
    """All labels, in the order in which the model is to number them; empty: those of the training rows, sorted."""
    head_learning_rate: float | None = None
    """Of the head; empty: `train.learning_rate`."""


@dataclass(kw_only=True, slots=True)
class ClassifyConfig(HeadConfig):
    """Classification of a text or a pair of texts, or a number for it."""

    name: str = "classify"
    problem_type: ProblemType = ProblemType.single_label
    """One label for each text, any number of labels, or a number."""
    class_weights: dict[str, float] = field(default_factory=dict)
    """Label -> how much its examples count; 1 for those that are missing."""
    balanced: bool = False
    """Weigh each label by the inverse of how often it comes up in training, so that all count alike."""

    @property
    def task(self) -> Task:
        return Task.sequence_classification


@dataclass(kw_only=True, slots=True)
class TagConfig(HeadConfig):
    """A label for each word: entities, parts of speech."""

    name: str = "tag"
    label_subwords: Subwords = Subwords.first
    """Which tokens of a word are trained. Its tag is read off the first one in either case."""
    overlap: int = 64
    """Tokens that neighbouring windows of a longer text share (`data.overlong=split`)."""

    @property
    def task(self) -> Task:
        return Task.token_classification


@dataclass(kw_only=True, slots=True)
class Seq2SeqConfig(StageConfig):
    """Text to text with an encoder-decoder: cross-entropy on the target."""

    name: str = "seq2seq"
    max_target_length: int = 256
    """Longest target in tokens, its end-of-text token included; `data.max_length` is that of the source."""

    @property
    def task(self) -> Task:
        return Task.seq2seq_lm


@dataclass(kw_only=True, slots=True)
class VerbalizeConfig(StageConfig):
    """Classification without a new head: the model fills a gap in a sentence with a word for the label."""

    name: str = "verbalize"
    language_model: LanguageModel = LanguageModel.causal_lm
    """What the model is: causal (Llama, Qwen, GPT) or masked (BERT, RoBERTa)."""
    templates: list[str] = field(default_factory=lambda: ["{text} It was {mask}."])
    """Sentences with the texts of a row, `{text}` and `{text_pair}`, and a gap, `{mask}`. Several are several
    questions, whose answers are combined as `evaluation.combine` says."""
    verbalizer: dict[str, str] = field(default_factory=dict)
    """Label -> the word that stands for it; empty: the labels themselves."""

    @property
    def task(self) -> Task:
        return Task(self.language_model.value)

    @property
    def reads(self) -> Task:
        return Task.sequence_classification

    @property
    def labels(self) -> list[str]:
        """As in `HeadConfig`."""
        return list(self.verbalizer)


class Advantage(Enum):
    """What an answer is compared with."""

    gae = "gae"
    """what a trained value head expects of it"""
    rloo = "rloo"
    """the other answers to the same prompt"""
    grpo = "grpo"
    """all answers to the same prompt, in units of their deviation"""


class ValueFunction(Enum):
    """What says how much an answer is expected to be worth."""

    head = "head"
    """a linear head on the policy's own last states"""
    model = "model"
    """a model apart from the policy"""


class KLPlace(Enum):
    reward = "reward"
    """taken off the reward of each token"""
    loss = "loss"
    """added to the loss of each token"""


class KLEstimator(Enum):
    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class KLController(Enum):
    fixed = "fixed"
    adaptive = "adaptive"


class ScoreScaling(Enum):
    none = "none"
    whiten = "whiten"
    """mean 0 and deviation 1 in each rollout"""
    running = "running"
    """mean 0 and deviation 1 over all answers so far"""


@dataclass(kw_only=True, slots=True)
class PPOConfig(StageConfig):
    """Reinforcement learning: the model answers prompts, and answers that score well become likelier."""

    name: str = "ppo"
    language_model: PolicyModel = PolicyModel.causal_lm
    """What the policy is: a decoder (Llama, Qwen, GPT) or an encoder-decoder (T5, BART)."""
    advantage: Advantage = Advantage.gae
    rollout_batch_size: int = 64
    """Answers that are drawn and scored together, over all processes: a multiple of `train.global_batch_size`, which
    counts answers too."""
    num_samples: int = 1
    """Answers to each prompt."""
    num_ppo_epochs: int = 4
    """Passes over the answers of a rollout."""
    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 1.0
    """Of the policy in every respect: answers are drawn from it at this temperature, and so are KL and losses."""
    top_k: int = 0
    """Draw from so many of the most likely tokens only; 0: all. Losses know nothing of it."""
    top_p: float = 1.0
    """Draw from the fewest most likely tokens that have this much probability together."""
    stop_tokens: list[str] = field(default_factory=list)
    """Texts that end an answer, besides the end-of-text tokens; each is one token of the tokenizer."""
    kl_coef: float = 0.05
    """What a nat away from the reference costs."""
    kl_estimator: KLEstimator = KLEstimator.k1
    kl_in: KLPlace = KLPlace.reward
    kl_controller: KLController = KLController.fixed
    """`adaptive` moves kl_coef towards a KL of `kl_target` for each answer."""
    kl_target: float = 6.0
    kl_horizon: int = 10000
    """Answers in which the adaptive controller may change kl_coef by a fifth."""
    score_scaling: ScoreScaling = ScoreScaling.none
    score_clip: float | None = None
    """Scores beyond this, after scaling, are cut off."""
    missing_eos_penalty: float = 0.0
    """Taken off the score of an answer that no stop token ended."""
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool = True
    """Mean 0 and deviation 1 over all tokens of a rollout."""
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    vf_coef: float = 0.1
    entropy_coef: float = 0.0
    value: ValueFunction = ValueFunction.head
    """A head on the policy, or a model of its own with a head for one number, trained beside the policy."""
    value_path: str | None = None
    """With `value: model`: what it starts from, which must have the policy's vocabulary. A run directory (of
    `stage=reward`, say): what that run trained is trained on. A model folder, Hub id or builtin model: trained in
    full. Empty: `model.path`, in full."""
    value_learning_rate: float | None = None
    """Of the value head or model; empty: `train.learning_rate`."""
    early_stop_kl: float | None = None
    """Draw new answers as soon as a step was so far, in nats per token, from the policy that drew those at hand."""

    @property
    def task(self) -> Task:
        return Task(self.language_model.value)

    @property
    def reads(self) -> Rows:
        return Rows.prompts

    @property
    def has_reference(self) -> bool:
        return True

    @property
    def head_learning_rate(self) -> float | None:
        """As in `HeadConfig`."""
        return self.value_learning_rate


def steps_per_rollout(stage: PPOConfig, global_batch_size: int) -> int:
    return stage.num_ppo_epochs * stage.rollout_batch_size // global_batch_size


@dataclass(kw_only=True, slots=True)
class PreferenceConfig(StageConfig):
    """Learn which answer is preferred, straight from pairs of answers, or from answers that are liked or not."""

    name: str = "preference"
    loss: PreferenceLoss = PreferenceLoss.dpo
    """See docs/stages/preference.md; kto alone reads answers that are liked or not, and pairs too."""
    language_model: PolicyModel = PolicyModel.causal_lm
    """What the model is: causal (Llama, Qwen, GPT) or an encoder-decoder (T5, BART)."""
    max_target_length: int = 256
    """Of encoder-decoders: longest answer in tokens, its end-of-text token included."""
    beta: float | None = None
    """How far the policy is held to the reference, of orpo the weight of the odds ratio; null: 0.1, with simpo 2."""
    label_smoothing: float | None = None
    """With cdpo, robust and exo: share of the pairs that are thought to be the wrong way round; null: 0.1, with exo
    0.001."""
    gamma: float | None = None
    """With simpo: by how much the chosen answer is to win; null: 1."""
    margin_weight: float = 0.0
    """With dpo: the chosen answer is to win by this much of the pair's margin (ODPO)."""
    desirable_weight: float = 1.0
    """With kto: of answers that are liked."""
    undesirable_weight: float = 1.0
    """With kto: of those that are not."""
    reference: ReferenceTime | None = None
    """Ask the policy before its first step once for all rows, before training (cached), or in each step (live); null:
    cached where rows come up more than once. Not with orpo and simpo, which have no reference."""

    @property
    def task(self) -> Task:
        return Task(self.language_model.value)

    @property
    def reads(self) -> Task | Rows:
        return Rows.feedback if self.loss is PreferenceLoss.kto else Rows.pairs

    @property
    def has_reference(self) -> bool:
        return self.loss not in (PreferenceLoss.orpo, PreferenceLoss.simpo)


class Labelling(Enum):
    """What is written. `preference`: pairs of answers, the better one first. `given_pairs`: the same of pairs that
    are there already. `best_of_n`: the best of several answers. `revise`: an answer that the model has criticised and
    rewritten by principles of a constitution."""

    preference = "preference"
    given_pairs = "given_pairs"
    best_of_n = "best_of_n"
    revise = "revise"


@dataclass(kw_only=True, slots=True)
class LabelConfig(StageConfig):
    """Answers of a model, judged: a data set to train on. Nothing is trained."""

    name: str = "label"
    mode: Labelling = Labelling.preference
    num_samples: int = 2
    """Answers to each prompt that are drawn."""
    num_pairs: int | None = None
    """With `mode: preference`: pairs of them that are compared, drawn by the seed; empty: all."""
    temperature: float = 1.0
    """Of the answers."""
    max_new_tokens: int = 128
    """Longest answer; with `mode: revise` longest critique too."""
    drop_ties: bool = False
    """Leave out pairs that the judge calls a tie (`judge.tie_margin`)."""
    num_revisions: int = 1
    """With `mode: revise`: how often the answer is criticised and rewritten, each time by another principle."""
    constitution: str | None = None
    """With `mode: revise`: the name of a shipped constitution, or a YAML file; empty: helpful_harmless."""
    prompts_together: int = 16
    """Prompts (or pairs) that are worked on together, and lost together by a kill. The answers that are drawn depend
    on it."""

    @property
    def reads(self) -> Task | Rows:
        return Rows.pairs if self.mode is Labelling.given_pairs else Rows.prompts


@dataclass(kw_only=True, slots=True)
class RewardConfig(HeadConfig):
    """A reward model: a score for a whole answer, learnt from pairs of a better and a worse one, or from scores."""

    name: str = "reward"
    margin: bool = True
    """Let the score of the better answer lead by the row's `margin`, where it has one."""
    center_rewards_coefficient: float = 0.0
    """Of pairs: how much the square of the sum of both scores counts, which draws scores to zero; 0.01, say."""

    @property
    def task(self) -> Task:
        return Task.sequence_classification

    @property
    def reads(self) -> Task | Rows:
        return Rows.judged

    @property
    def problem_type(self) -> ProblemType:
        """As in `ClassifyConfig`."""
        return ProblemType.regression


@dataclass(kw_only=True, slots=True)
class ScoreConfig(RewardConfig):
    """A model that is asked for scores alone (`tune score`), of rows that need not say what these should be."""

    @property
    def reads(self) -> Task | Rows:
        return Rows.answers

    @property
    def turns(self) -> Turns:
        """Of a conversation the last answer is scored."""
        return Turns.last


STAGE_SCHEMAS: dict[str, type[StageConfig]] = {
    "sft": SFTConfig,
    "pretrain": PretrainConfig,
    "classify": ClassifyConfig,
    "tag": TagConfig,
    "seq2seq": Seq2SeqConfig,
    "verbalize": VerbalizeConfig,
    "preference": PreferenceConfig,
    "ppo": PPOConfig,
    "label": LabelConfig,
    "reward": RewardConfig,
}
