"""Training stages: a module each, a row in `STAGES`, a schema in `config/stage.py`, a YAML and a recipe."""

from __future__ import annotations

from collections.abc import Callable

from tunecli.engine.stage import Stage
from tunecli.stages.classify import classify
from tunecli.stages.pretrain import pretrain
from tunecli.stages.reward import reward
from tunecli.stages.seq2seq import seq2seq
from tunecli.stages.setting import Setting
from tunecli.stages.sft import sft
from tunecli.stages.tag import tag
from tunecli.stages.verbalize import verbalize

STAGES: dict[str, Callable[[Setting], Stage]] = {
    "sft": sft,
    "pretrain": pretrain,
    "classify": classify,
    "tag": tag,
    "seq2seq": seq2seq,
    "verbalize": verbalize,
    "reward": reward,
}
