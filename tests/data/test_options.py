"""What the options of the `data` and `stage` groups do to examples: turns, system messages, thinking, length."""

from __future__ import annotations

import dataclasses
import json
import pickle
from itertools import pairwise

import pytest

from tests.data.test_masks import CONVERSATIONS, runs
from tunecli.config.data import DataConfig, Overlong, Side, SystemPolicy, Thinking
from tunecli.config.stage import ClassifyConfig, SFTConfig, TagConfig, Turns
from tunecli.data.examples import Messages, PromptCompletion, Text, TooLong, Unusable
from tunecli.data.tokenize import Encoding, Tokens, tokenize, tokenize_many

MULTI = CONVERSATIONS["multi"]
SYSTEM = {"role": "system", "content": "Be brief."}


def trained_texts(items: list[Tokens], tokenizer) -> list[str]:
    return [text for item in items for text in runs(item.input_ids, item.trained, tokenizer)]


def test_defaults_are_those_of_the_configuration_and_travel():
    encoding = Encoding()
    of_methods = {"before", "between", "template", "template_ids", "adapter_column", "adapters"}
    for field in dataclasses.fields(encoding):
        if field.name in of_methods:
            continue
        homes = (DataConfig(), SFTConfig(), ClassifyConfig(), TagConfig())
        if field.name in ("overlap", "max_target_length", "templates", "verbalizer", "rows"):
            continue  # of one stage alone
        home = next(home for home in homes if hasattr(home, field.name))
        value = getattr(home, field.name)
        assert (tuple(value) if isinstance(value, list) else value) == getattr(encoding, field.name)
    assert pickle.loads(pickle.dumps(encoding)) == encoding
    assert json.loads(json.dumps(encoding.plain))["overlong"] == "truncate"


@pytest.mark.parametrize("name", ["smollm2", "qwen3", "llama3", "deepseek_r1_distill"])
def test_many_are_each_alone(family, name):
    examples = [
        *(Messages(messages) for messages in CONVERSATIONS.values()),
        Messages([{"role": "user", "content": "\ud83d"}, MULTI[1]]),
        PromptCompletion("Answer: ", "hello"),
        Text("hello world"),
        Messages(MULTI, untrained=(1, 3, 5)),
    ]
    tokenizer = family(name)
    together = tokenize_many(examples, tokenizer, Encoding())
    assert sum(isinstance(result, Unusable) for result in together) == 2
    for example, result in zip(examples, together, strict=True):
        if isinstance(result, Unusable):
            with pytest.raises(Unusable, match=result.what.partition("(")[0]):
                tokenize(example, tokenizer, Encoding())
        else:
            assert tokenize(example, tokenizer, Encoding()) == result


def test_tokenizer_that_is_not_fast_gives_the_same(family, monkeypatch):
    examples = [*(Messages(messages) for messages in CONVERSATIONS.values()), PromptCompletion("Answer: ", "hello")]
    tokenizer = family("smollm2")
    fast = tokenize_many(examples, tokenizer, Encoding())
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert tokenize_many(examples, tokenizer, Encoding()) == fast


def test_truncation_and_padding_that_a_tokenizer_file_asks_for_are_off(family):
    tokenizer = family("smollm2")
    expected = tokenize(Messages(MULTI), tokenizer, Encoding())
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=500)
    assert tokenize(Messages(MULTI), tokenizer, Encoding()) == expected


@pytest.mark.parametrize(("name", "template"), [("smollm2", None), ("qwen3", None), ("qwen2_5", "qwen2_5_training")])
def test_only_the_last_turn_is_trained(family, name, template):
    tokenizer = family(name, template)
    for untrained, expected in (((), "One.\nTwo."), ((5,), "forty-two")):
        items = tokenize(Messages(MULTI, untrained=untrained), tokenizer, Encoding(turns=Turns.last))
        (text,) = trained_texts(items, tokenizer)
        assert text.removeprefix("<think>\n\n</think>\n\n") == f"{expected}<|im_end|>"


@pytest.mark.parametrize(("name", "template"), [("smollm2", None), ("qwen3", None), ("qwen2_5", "qwen2_5_training")])
def test_answers_that_the_row_marks_are_context(family, name, template):
    tokenizer = family(name, template)
    items = tokenize(Messages(MULTI, untrained=(3,)), tokenizer, Encoding())
    found = [text.removeprefix("<think>\n\n</think>\n\n") for text in trained_texts(items, tokenizer)]
    assert found == ["Hello, world<|im_end|>", "One.\nTwo.<|im_end|>"]


def test_marks_and_training_on_the_prompt_exclude_one_another(family):
    with pytest.raises(Unusable, match="message 4 is marked as not to be trained, but stage.train_on_prompt=true"):
        tokenize(Messages(MULTI, untrained=(3,)), family("smollm2"), Encoding(train_on_prompt=True))
    with pytest.raises(Unusable, match="every answer is marked"):
        tokenize(Messages(MULTI, untrained=(1, 3, 5)), family("smollm2"), Encoding())


@pytest.mark.parametrize(
    ("policy", "with_none", "with_other"),
    [
        (SystemPolicy.keep, [], [{"role": "system", "content": "Other."}]),
        (SystemPolicy.add, [SYSTEM], [{"role": "system", "content": "Other."}]),
        (SystemPolicy.replace, [SYSTEM], [SYSTEM]),
        (SystemPolicy.drop, [], []),
    ],
)
def test_system_message(family, policy, with_none, with_other):
    tokenizer = family("llama3")
    options = Encoding(system=policy, system_prompt="Be brief.")
    other = [{"role": "system", "content": "Other."}]
    for start, expected in (([], with_none), (other, with_other)):
        given = Messages([*start, *MULTI], context=len(start) + 2, untrained=(len(start) + 3,))
        wanted = Messages([*expected, *MULTI], context=len(expected) + 2, untrained=(len(expected) + 3,))
        assert tokenize(given, tokenizer, options) == tokenize(wanted, tokenizer, Encoding())
        assert trained_texts(tokenize(given, tokenizer, options), tokenizer) == ["One.\nTwo.<|eot_id|>"]


# ---- thinking

THOUGHTS = {
    "tags": {"content": "<think>\nLet me see.\n</think>\n\nParis."},
    "no opening tag": {"content": "Let me see.\n</think>\n\nParis."},
    "key": {"content": "Paris.", "reasoning_content": "Let me see."},
    "other key": {"content": "Paris.", "thinking": "Let me see.\n"},
}


def thinking(kind: str) -> Messages:
    answer = {"role": "assistant", **THOUGHTS[kind]}
    return Messages([MULTI[0], answer, MULTI[2], answer])


@pytest.mark.parametrize("kind", THOUGHTS)
@pytest.mark.parametrize("name", ["smollm2", "qwen3", "deepseek_r1_distill", "nemotron_3_nano", "gptoss", "gemma3"])
def test_dropped_thinking_leaves_the_plain_answers(family, name, kind):
    tokenizer = family(name)
    plain = [
        {"role": "assistant", "content": "Paris."} if m["role"] == "assistant" else m for m in thinking(kind).messages
    ]
    dropped = tokenize(thinking(kind), tokenizer, Encoding(thinking=Thinking.drop))
    assert dropped == tokenize(Messages(plain), tokenizer, Encoding())


@pytest.mark.parametrize("kind", THOUGHTS)
@pytest.mark.parametrize("name", ["deepseek_r1_distill", "nemotron_3_nano"])
def test_reasoning_is_learnt_after_the_generation_prompt_that_opens_it(family, name, kind):
    """Also where the template drops it (DeepSeek); earlier turns stand in the prompt as the template shows them."""
    tokenizer, example = family(name), thinking(kind)
    items = tokenize(example, tokenizer, Encoding())
    for item, i in zip(items, (1, 3), strict=True):
        prompt = tokenizer.apply_chat_template(example.messages[:i], add_generation_prompt=True, tokenize=False)
        (text,) = trained_texts([item], tokenizer)
        assert prompt.endswith("<think>\n")
        assert tokenizer.decode(item.input_ids) == prompt + text
        thought, _, answer = text.partition("</think>")
        assert (thought.rstrip(), answer.strip()) == ("Let me see.", f"Paris.{tokenizer.eos_token}")


@pytest.mark.parametrize("kind", ["tags", "key", "other key"])
@pytest.mark.parametrize("name", ["smollm2", "qwen3"])
def test_reasoning_is_learnt_with_its_tags_where_the_generation_prompt_has_none(family, name, kind):
    tokenizer = family(name)
    found = trained_texts(tokenize(thinking(kind), tokenizer, Encoding()), tokenizer)
    assert found == ["<think>\nLet me see.\n</think>\n\nParis.<|im_end|>"] * 2


def test_reasoning_after_a_generation_prompt_that_closes_it_is_refused(family):
    options = Encoding(chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(Unusable, match="message 2 holds reasoning, but the generation prompt .* closes") as caught:
        tokenize(thinking("tags"), family("qwen3"), options)
    assert "data.thinking=drop" in caught.value.fix
    tokenize(thinking("tags"), family("qwen3"), dataclasses.replace(options, thinking=Thinking.drop))


# ---- length

EXAMPLES = [Messages(MULTI), PromptCompletion("Answer: " * 9, "hello " * 30), Text("hello world " * 40)]


def whole_of(example, tokenizer) -> Tokens:
    (whole,) = tokenize(example, tokenizer, Encoding())
    return whole


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("max_length", [2, 3, 7, 20, 64])
def test_split_windows_train_every_token_once(family, example, max_length):
    tokenizer = family("smollm2")
    whole = whole_of(example, tokenizer)
    windows = tokenize(example, tokenizer, Encoding(max_length=max_length, overlong=Overlong.split))
    learnt = [token for w in windows for token, target in zip(w.input_ids, w.trained, strict=True) if target]
    assert learnt == [token for token, target in zip(whole.input_ids, whole.trained, strict=True) if target]
    assert all(2 <= len(window.input_ids) <= max_length and any(window.trained) for window in windows)
    assert not any(window.trained[0] or window.truncated for window in windows)


def test_split_windows_begin_with_the_last_token_of_the_one_before(family):
    tokenizer = family("smollm2")
    windows = tokenize(EXAMPLES[2], tokenizer, Encoding(max_length=7, overlong=Overlong.split))
    assert len(windows) > 5
    assert all(second.input_ids[0] == first.input_ids[-1] for first, second in pairwise(windows))


@pytest.mark.parametrize("example", EXAMPLES)
def test_left_truncation_keeps_the_end(family, example):
    tokenizer = family("smollm2")
    whole = whole_of(example, tokenizer)
    for size in (4, 20):
        (cut,) = tokenize(example, tokenizer, Encoding(max_length=size, truncation_side=Side.left))
        assert cut.input_ids == whole.input_ids[-size:]
        assert cut.trained == [False, *whole.trained[1 - size :]]
        assert cut.truncated
    with pytest.raises(TooLong, match="data.max_length=1"):
        tokenize(example, tokenizer, Encoding(max_length=1, truncation_side=Side.left))


def test_overlong_examples_are_dropped(family):
    tokenizer = family("smollm2")
    length = len(whole_of(EXAMPLES[0], tokenizer).input_ids)
    options = Encoding(max_length=length, overlong=Overlong.drop)
    assert tokenize(EXAMPLES[0], tokenizer, options) == [whole_of(EXAMPLES[0], tokenizer)]
    with pytest.raises(TooLong, match=f"{length} tokens are more than data.max_length={length - 1}"):
        tokenize(EXAMPLES[0], tokenizer, dataclasses.replace(options, max_length=length - 1))


@pytest.mark.parametrize("overlong", Overlong)
def test_lengths_that_fit_change_nothing(family, overlong):
    for name in ("smollm2", "qwen3"):
        expected = tokenize(EXAMPLES[0], family(name), Encoding())
        assert tokenize(EXAMPLES[0], family(name), Encoding(overlong=overlong)) == expected


def test_end_is_learnt_where_padding_is_the_end_token(family):
    tokenizer = family("smollm2")
    tokenizer.pad_token = tokenizer.eos_token
    whole = whole_of(EXAMPLES[0], tokenizer)
    ends = [i for i, token in enumerate(whole.input_ids) if token == tokenizer.eos_token_id]
    assert sum(whole.trained[i] for i in ends) == 3
