"""The rows of the tables of tasks: which recipe is run with what, and what its result is asked afterwards.

Learning rates are those that `peft_table.py` chose on held-out reviews, where the method is in that table.
"""

from __future__ import annotations

from dataclasses import dataclass

DOMAINS = ("movies", "products", "tweets", "editorials")
SENTIMENT = "assets/data/sentiment"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    recipe: str
    overrides: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    """each behind `tune eval RUN`; none: what the run itself measured at its end"""
    between: str = ""
    """name of a row more: what is half way between the base and this run's result is asked the same"""
    seeded: bool = True
    """False: every seed gives the same"""


SHORT = ("train.max_steps=100", "train.global_batch_size=16", "train.eval_every=null", "train.save_every=null")
HEAD_RATE = ("stage.head_learning_rate=3e-3",)
"""As in `peft_table.py`, whose rates these are."""

POOLER = "peft.freeze.patterns=[pooler]"
"""BERT's layer between its first token and a head: MiniLM's was never trained."""


def _reviews(peft: str, rate: float, *more: str) -> TaskRow:
    return TaskRow(
        recipe="classify_minilm",
        overrides=(f"peft={peft}", f"train.learning_rate={rate}", *HEAD_RATE, *SHORT, *more),
    )


def _entities(peft: str, rate: float, *more: str) -> TaskRow:
    steps = ("train.max_steps=150", "train.eval_every=null", "train.save_every=null")
    return TaskRow(recipe="tag_minilm", overrides=(f"peft={peft}", f"train.learning_rate={rate}", *steps, *more))


TEMPLATE, BARE = "stage.templates=['{text} It was {mask}.']", "stage.templates=['{text} {mask}']"
ZERO = ("train.max_steps=0",)
FEW = ("data.shots=32", "train.max_steps=20", "train.global_batch_size=8", "train.eval_every=null")
ALL = ("train.max_steps=60", "train.global_batch_size=8", "train.eval_every=null")


def _words(template: str, *rows: str, seeded: bool = True) -> TaskRow:
    return TaskRow(recipe="verbalize_smollm2", overrides=(template, *rows, "train.save_every=null"), seeded=seeded)


HEAD = ("peft=[lora]", "train.learning_rate=1e-3", *SHORT[1:], "train.max_steps=200")
MIX = ",".join(f"{{path: {SENTIMENT}/{name}_train.jsonl, task: {name}}}" for name in DOMAINS)
TOGETHER = ("data=mix", f"data.mix=[{MIX}]", "data.mixing=equal", "data.validation=null", "data.max_length=128")


def _alone(domain: str) -> TaskRow:
    steps = ("train.max_steps=50",)  # as many rows of it as the run of all four sees
    return TaskRow(recipe="classify_minilm", overrides=(f"data=sentiment_{domain}", *HEAD, *steps))


def _of_domain(domain: str) -> str:
    return f"data=mix 'data.mix=[{{path: {SENTIMENT}/{domain}_validation.jsonl, task: {domain}}}]'"


CHATS = "assets/data/movie_reviews"
TUNED = (
    *("peft=full", "train.learning_rate=1e-4", "train.max_steps=20", "train.global_batch_size=8"),
    *("train.eval_every=null", "train.save_every=null", "evaluation.exact_match=100"),
)
OTHER_TEXTS = f"stage=pretrain data.path={SENTIMENT}/editorials_train.jsonl data.max_samples=100"
CAPITALS = "data.path=CAPITALS evaluation.choices=[] evaluation.exact_match=40 evaluation.max_new_tokens=12"
"""CAPITALS: a file that the script writes, questions for the capitals of 40 countries."""
RETAIN = f'evaluation.retain=["{OTHER_TEXTS}","{CAPITALS}"]'
REPLAY = (
    "data=mix",
    f"data.mix=[{{path: {CHATS}/train.jsonl, weight: 4}}, {{path: REPLAYED, weight: 1}}]",
    "data.mixing=weights",
    f"data.validation={CHATS}/validation.jsonl",
)
"""REPLAYED: 20 other capitals, of the script's too."""

PARTS: dict[str, dict[str, TaskRow]] = {
    "reviews": {
        "full": _reviews("full", 1.5e-4),
        "lora": _reviews("[lora]", 1.5e-3),
        "houlsby": _reviews("[houlsby]", 3e-3),
        "pfeiffer (after norm)": _reviews("[pfeiffer]", 1e-3, "peft.pfeiffer.placement=after_norm"),
        "bitfit": _reviews("[bitfit]", 4e-3),
        "p_tuning_v2": _reviews("[p_tuning_v2]", 5e-2),
        "prompt_tuning": _reviews("[prompt_tuning]", 9e-2),
        "bitfit, pooler": _reviews("[bitfit,freeze]", 4e-3, POOLER),
        "p_tuning_v2, pooler": _reviews("[p_tuning_v2,freeze]", 5e-2, POOLER),
        "prompt_tuning, pooler": _reviews("[prompt_tuning,freeze]", 9e-2, POOLER),
    },
    "entities": {
        "full": _entities("full", 5e-4),
        "lora": _entities("[lora]", 1.5e-3),
        "p_tuning_v2": _entities("[p_tuning_v2]", 1.5e-2),
    },
    "words": {
        "zero-shot, template": _words(TEMPLATE, *ZERO, seeded=False),
        "zero-shot, none": _words(BARE, *ZERO, seeded=False),
        "32 of each, template": _words(TEMPLATE, *FEW),
        "32 of each, none": _words(BARE, *FEW),
        "all rows, template": _words(TEMPLATE, *ALL),
        "all rows, none": _words(BARE, *ALL),
    },
    "domains": {
        **{domain: _alone(domain) for domain in DOMAINS},
        "all four": TaskRow(
            recipe="classify_minilm", overrides=(*TOGETHER, *HEAD), asked=tuple(map(_of_domain, DOMAINS))
        ),
    },
    "forgetting": {
        "full": TaskRow(
            recipe="quickstart",
            overrides=(*TUNED, RETAIN),
            between="full, half way back",
            asked=(OTHER_TEXTS, CAPITALS, f"data.path={CHATS}/validation.jsonl evaluation.exact_match=100"),
        ),
        "lora": TaskRow(recipe="quickstart", overrides=(*TUNED, "peft=[lora]", "train.learning_rate=3e-4", RETAIN)),
        "full, replay": TaskRow(recipe="quickstart", overrides=(*TUNED, *REPLAY, RETAIN)),
        "full, pull": TaskRow(recipe="quickstart", overrides=(*TUNED, "train.pull_to_start=3000", RETAIN)),
    },
}
