from __future__ import annotations

import pytest

from tunecli.config.nearest import nearest

KEYS = [
    "model.path",
    "train.learning_rate",
    "train.lr_scheduler",
    "train.num_epochs",
    "peft.lora.r",
    "peft.lora",
    "data.subset",
]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("learning_rate", "train.learning_rate"),
        ("train.learnin_rate", "train.learning_rate"),
        ("lr", "train.learning_rate"),
        ("train.epochs", "train.num_epochs"),
        ("peft.lora.rank", "peft.lora.r"),
        ("modle.path", "model.path"),
    ],
)
def test_nearest(typed: str, meant: str):
    assert nearest(typed, KEYS) == [meant]


def test_nothing_is_near():
    assert nearest("hydra.verbose", KEYS) == []
