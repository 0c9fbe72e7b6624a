"""Rewards keep order and number of the answers and give finite numbers; reward models read as they were trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training import trained_run
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from tunecli.config.errors import UserError
from tunecli.config.paths import option_names
from tunecli.config.reward import REWARD_SCHEMAS, CustomConfig, Reads, RewardModelConfig, Rule, RulesConfig
from tunecli.models.builtin import materialize
from tunecli.rewards import REWARDS, build_rewards
from tunecli.rewards.reward_model import build, check

PROMPTS: list[Any] = [[{"role": "user", "content": text}] for text in ("One?", "And two?", "What of three, then?")]
ANSWERS = ["Yes.", "A somewhat longer answer to it", "no"]
COLUMNS = [{"answer": "Yes."}, {"answer": 7}, {"answer": "no"}]


def test_table_schemas_and_yaml_agree() -> None:
    assert set(REWARDS) == set(REWARD_SCHEMAS) == set(option_names("reward"))


RULES = {
    "length": (RulesConfig(rule=Rule.length, length=4), ["Yes.", "ab", "12345678", "x" * 99], [1.0, 0.5, 0.0, 0.0]),
    "regex": (RulesConfig(rule=Rule.regex, pattern="^[0-9]+$"), ["12", "a12", ""], [1.0, 0.0, 0.0]),
    "exact": (RulesConfig(rule=Rule.exact_match, column="a"), [" 7\n", "8"], [1.0, 0.0]),
    "json": (RulesConfig(rule=Rule.json_valid), ['{"a": [1]}', "3", "{a: 1}", ""], [1.0, 1.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str) -> None:
    config, answers, expected = RULES[name]
    reward = REWARDS["rules"](name, config)
    assert reward(["?"] * len(answers), answers, [{"a": 7}] * len(answers)) == expected


def test_rewards_add_up_by_their_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def words(p, c, columns):\n    return [len(each.split()) for each in c]\n"
    )
    monkeypatch.chdir(tmp_path)
    rewards = build_rewards(
        {
            "words": CustomConfig(custom="my_rewards:words", weight=-2.0),
            "right": RulesConfig(rule=Rule.exact_match, column="answer", weight=3.0),
        }
    )
    found = rewards(PROMPTS, ANSWERS, COLUMNS)
    assert found.parts == {"words": [1.0, 6.0, 1.0], "right": [1.0, 0.0, 1.0]}
    assert found.total == [1.0, -12.0, 1.0]
    assert rewards([], [], []).total == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("[1]", "2 answers"),
        ("[1, float('nan')]", "nan"),
        ("1 / 0", "(?s)fails: ZeroDivisionError.*line 2"),
        ("None", "gives None"),
        ("['good', 'bad']", "gives .'good"),
    ],
)
def test_a_function_that_gives_something_else_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, said: str
) -> None:
    module = f"bad_{abs(hash(body))}"
    (tmp_path / f"{module}.py").write_text(f"def f(p, c, columns):\n    return {body}\n")
    monkeypatch.chdir(tmp_path)
    rewards = build_rewards({"mine": CustomConfig(custom=f"{module}:f")})
    with pytest.raises(UserError, match=said):
        rewards(PROMPTS[:2], ANSWERS[:2], COLUMNS[:2])
    with pytest.raises(UserError, match="has no 'g'"):
        build_rewards({"mine": CustomConfig(custom=f"{module}:g")})


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["train.max_steps=2", "train.eval_every=null", "data.validation=null"]
    return trained_run(tmp_path_factory.mktemp("reward") / "run", "smoke_reward", *words)


def test_a_reward_model_reads_the_conversation_through_its_template(reward_run: Path) -> None:
    reward = build("it", RewardModelConfig(path=str(reward_run)))
    assert not any(parameter.requires_grad for parameter in reward.classifier.parameters())
    scores = reward(PROMPTS, ANSWERS, COLUMNS)
    lm, tokenizer = reward.classifier.lm, reward.tokenizer
    for prompt, answer, score in zip(PROMPTS, ANSWERS, scores, strict=True):
        chat = [*prompt, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n")  # it is read up to its end of turn
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert score == pytest.approx(lm(input_ids=ids).logits.item(), abs=1e-5)
    assert reward(PROMPTS[::-1], ANSWERS[::-1], COLUMNS) == pytest.approx(scores[::-1], abs=1e-5)
    assert all(map(math.isfinite, reward(PROMPTS, ["", " ", "\n"], COLUMNS)))
    assert all(map(math.isfinite, reward(["Raw text,"] * 2, [" and more", ""], COLUMNS[:2])))


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of somebody else's with two labels."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = AutoTokenizer.from_pretrained(materialize("tiny_bert"))
    torch.manual_seed(0)
    labels = {0: "negative", 1: "positive"}
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        id2label=labels, label2id={name: number for number, name in labels.items()}, pad_token_id=0,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("reads", list(Reads))
def test_of_two_labels_the_score_is_the_log_odds_of_one(sentiment: Path, reads: Reads) -> None:
    reward = build("it", RewardModelConfig(path=str(sentiment), label="positive", reads=reads))
    scores = reward(PROMPTS, ANSWERS, COLUMNS)
    lm = AutoModelForSequenceClassification.from_pretrained(sentiment).eval()
    for prompt, answer, score in zip(PROMPTS, ANSWERS, scores, strict=True):
        texts = (answer,) if reads is Reads.completion else (prompt[0]["content"], answer)
        with torch.no_grad():
            logits = lm(**reward.tokenizer(*texts, return_tensors="pt", return_token_type_ids=True)).logits[0]
        assert score == pytest.approx((logits[1] - logits[0]).item(), abs=1e-5)


def test_what_a_reward_model_says_of_itself_is_checked_before_its_weights(sentiment: Path, reward_run: Path) -> None:
    with pytest.raises(UserError, match="2 labels, and none is named"):
        check("it", RewardModelConfig(path=str(sentiment)), chats=False)
    with pytest.raises(UserError, match="no label 'postive'.*\n.*did you mean positive"):
        check("it", RewardModelConfig(path=str(sentiment), label="postive"), chats=False)
    with pytest.raises(UserError, match="one logit"):
        check("it", RewardModelConfig(path=str(reward_run), label="positive"), chats=True)
    with pytest.raises(UserError, match="no classifier"):
        check("it", RewardModelConfig(path=str(materialize("tiny_llama"))), chats=True)
    check("it", RewardModelConfig(path=str(reward_run)), chats=True)


def test_an_answer_longer_than_the_classifier_reads_loses_its_start(tmp_path: Path) -> None:
    """A BERT has a vector for each of 512 places, and reward models read 1024 tokens unless told."""
    folder = materialize("tiny_bert")
    config = BertConfig.from_pretrained(folder, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    rewards = build_rewards({"long": RewardModelConfig(path=str(tmp_path), reads=Reads.completion)})
    long = "good film " * 600
    found = rewards(["", ""], [long, "start " + long], [{}, {}]).total
    assert found[0] == found[1]
