"""Loss masks of conversations, against the template's own text and TRL's marked variants of it."""

from __future__ import annotations

from itertools import groupby

import pytest

from tunecli.data.examples import Messages, TooLong, Unusable
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokenize import Encoding, Tokens, tokenize


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    start = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return start + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


CONVERSATIONS = {
    "single": turns("What is the capital of France?", "Paris is the capital."),
    "multi": turns("Hello!", "Hello, world", "And the answer?", "forty-two", "More words.", "One.\nTwo."),
    "system": turns("Hello", "A word.", "More", "Words.", system="Answer in one word"),
    "chinese": turns("中国的首都是哪里？", "北京。", "谢谢", "不客气"),
    "emoji": turns("Wave 👋🏽", "👨‍👩‍👧‍👦 😀"),
    "emptyanswer": turns("Say nothing.", "", "Thanks", "Welcome"),
    "onlyempty": turns("Say nothing.", ""),
    "openend": turns("Hello", "Hello!", "And then?"),
    "spaces": turns("  padded  ", "\n  padded answer \n"),
    "codelike": turns("Show tags", "<b>bold</b> & {{ braces }} {% if %}"),
}
FAMILIES = ["smollm2", "llama3", "llama3_1", "qwen2_5", "qwen3", "gemma", "gemma3", "phi3", "gptoss"]
STABLE = ["llama3", "qwen2_5", "gemma", "gemma3"]
WITH_ORACLE = [*STABLE, "qwen3", "phi3"]
NO_SYSTEM = {"gemma"}


def cases(families: list[str]) -> list[tuple[str, str]]:
    return [(f, c) for f in families for c in CONVERSATIONS if not (f in NO_SYSTEM and c == "system")]


def encode(messages, tokenizer, **options) -> list[Tokens]:
    return tokenize(Messages(messages), tokenizer, Encoding(**{"max_length": 4096, **options}))


def runs(ids: list[int], mask: list[bool], tokenizer) -> list[str]:
    """The text of each run of trained tokens."""
    pairs = groupby(zip(ids, mask, strict=True), key=lambda pair: bool(pair[1]))
    return [tokenizer.decode([i for i, _ in run]) for trained, run in pairs if trained]


def answers(messages) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


@pytest.mark.parametrize(("name", "case"), cases(WITH_ORACLE))
def test_trained_text_is_what_trls_marks_say(family, name, case):
    messages, tokenizer, marked = CONVERSATIONS[case], family(name), family(name, f"{name}_training")
    expected = []
    for i in answers(messages):
        out = marked.apply_chat_template(messages[: i + 1], return_dict=True, return_assistant_tokens_mask=True)
        expected.append(runs(out["input_ids"], out["assistant_masks"], marked)[-1].strip())
    items = encode(messages, tokenizer)
    found = [text for item in items for text in runs(item.input_ids, item.trained, tokenizer)]
    # Leading white space: Qwen 2.5's marked variant counts the line break of the header as the assistant's.
    assert [text.strip() for text in found] == expected
    assert all(text == text.rstrip() for text in found)


@pytest.mark.parametrize(("name", "case"), [*cases(STABLE), ("phi3", "single"), ("qwen3", "emoji")])
def test_mask_is_trls_token_for_token_where_the_row_stays_whole(family, name, case):
    messages, tokenizer, marked = CONVERSATIONS[case], family(name), family(name, f"{name}_training")
    out = marked.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    (item,) = encode(messages, tokenizer)
    assert item.input_ids == out["input_ids"]
    pairs = zip(item.input_ids, item.trained, out["assistant_masks"], strict=True)
    assert all(tokenizer.decode([token]).isspace() for token, ours, theirs in pairs if ours != bool(theirs))


@pytest.mark.parametrize(("name", "case"), cases(FAMILIES))
def test_text_is_the_tokenizers_own(family, name, case):
    messages, tokenizer = CONVERSATIONS[case], family(name)
    items = encode(messages, tokenizer)
    if name == "gptoss":
        tokenizer.chat_template = tokenizer.chat_template.replace('strftime_now("%Y-%m-%d")', '"2024-07-26"')
    if len(items) == 1 and items[0].input_ids == tokenizer.apply_chat_template(messages, return_dict=False):
        return
    assert len(items) == len(answers(messages))
    for item, i in zip(items, answers(messages), strict=True):
        prompt = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
        assert item.input_ids[: len(prompt)] == prompt
        assert item.trained == [False] * len(prompt) + [True] * (len(item.input_ids) - len(prompt))
        assert tokenizer.decode(item.input_ids) == whole.rstrip()


def test_which_families_are_split(family):
    split = {name for name in FAMILIES if len(encode(CONVERSATIONS["multi"], family(name))) > 1}
    assert split == {"qwen3", "phi3", "gptoss"}


@pytest.mark.parametrize("name", ["smollm2", "llama3", "qwen2_5", "gemma3"])
@pytest.mark.parametrize("case", [c for c in CONVERSATIONS if c != "spaces"])
def test_mask_covers_exactly_answers_and_their_end_token(family, name, case):
    messages, tokenizer = CONVERSATIONS[case], family(name)
    end = "<end_of_turn>" if name == "gemma3" else tokenizer.eos_token
    (item,) = encode(messages, tokenizer)
    expected = [messages[i]["content"] + end for i in answers(messages)]
    assert runs(item.input_ids, item.trained, tokenizer) == expected


def test_marks_are_used_and_lose_no_span_that_begins_with_white_space(family):
    """With trimmed offsets, transformers' own mask is empty here: its span begins at a line break."""
    messages = CONVERSATIONS["multi"]
    tokenizer = family("qwen2_5", "qwen2_5_training", trim_offsets=True)
    (item,) = encode(messages, tokenizer)
    expected = ["\n" + messages[i]["content"] + "<|im_end|>" for i in answers(messages)]
    assert runs(item.input_ids, item.trained, tokenizer) == expected


def test_marked_template_keeps_a_conversation_whole_that_the_plain_one_splits(family):
    tokenizer = family("phi3", "phi3_training")
    (item,) = encode(CONVERSATIONS["multi"], tokenizer)
    found = runs(item.input_ids, item.trained, tokenizer)
    assert found == ["Hello, world<|end|>", "forty-two<|end|>", "One.\nTwo.<|end|>\n<|endoftext|>"]


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "nemotron_3_nano"])
@pytest.mark.parametrize("case", ["single", "multi", "emoji", "emptyanswer", "codelike"])
def test_generation_prompt_that_no_answer_repeats(family, name, case):
    messages, tokenizer = CONVERSATIONS[case], family(name)
    items = encode(messages, tokenizer)
    assert len(items) == len(answers(messages))
    for item, i in zip(items, answers(messages), strict=True):
        prompt = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, tokenize=False)
        assert prompt.endswith("<think>\n")
        assert tokenizer.decode(item.input_ids) == prompt + messages[i]["content"] + tokenizer.eos_token
        assert runs(item.input_ids, item.trained, tokenizer) == [messages[i]["content"] + tokenizer.eos_token]


def test_answer_that_the_template_rewrites_is_refused(family):
    tokenizer = family("deepseek_r1_distill")
    tokenizer.chat_template = tokenizer.chat_template.replace("+ content +", "+ content|upper +")
    with pytest.raises(Unusable, match="answer in message 2") as caught:
        encode(turns("Hello", "Hi"), tokenizer)
    assert "generation" in caught.value.fix


@pytest.mark.parametrize("mark", ["", "<|im_start|>"])
def test_token_across_the_border_gives_the_tokens_of_inference(family, mark):
    tokenizer = family("smollm2")
    tokenizer.chat_template = (
        "{% for m in messages %}MARK{{ 'Question: ' if m.role == 'user' else 'Answer: ' }}{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}MARKAnswer: {% endif %}"
    ).replace("MARK", mark)
    messages = turns("hello", "hello world", "more", "words")
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    items = encode(messages, tokenizer)
    assert len(items) == 2
    for item, i in zip(items, (1, 3), strict=True):
        prompt = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, return_dict=False)
        assert whole[: len(prompt)] != prompt
        assert item.input_ids[: len(prompt)] == prompt
        assert runs(item.input_ids, item.trained, tokenizer) == [messages[i]["content"] + "<|im_end|>"]


@pytest.mark.parametrize("options", [{}, {"trim_offsets": True}, {"rstrip": True}])
@pytest.mark.parametrize(("name", "case"), cases(["smollm2", "llama3", "gemma3", "phi3"]))
def test_the_quick_proof_of_borders_says_what_the_whole_prefix_says(family, monkeypatch, name, case, options):
    tokenizer, messages = family(name, **options), CONVERSATIONS[case]
    quick = encode(messages, tokenizer)
    monkeypatch.setattr(TextEncoder, "_after_added_token", lambda *_: None)
    assert quick == encode(messages, tokenizer)


def test_quick_proof_needs_no_second_look_at_the_whole_text(family, monkeypatch):
    texts = []

    def encode_and_note(encoder, new, *, add_special_tokens, encode=TextEncoder._encode):
        texts.extend(new)
        return encode(encoder, new, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(TextEncoder, "_encode", encode_and_note)
    tokenizer = family("smollm2")
    encode(CONVERSATIONS["multi"], tokenizer)
    assert texts == [tokenizer.apply_chat_template(CONVERSATIONS["multi"], tokenize=False), "assistant\n"]


def test_date_is_the_same_on_every_day(family):
    for name, date in (("llama3_1", "26 Jul 2024"), ("llama3_2", "26 Jul 2024"), ("gptoss", "2024-07-26")):
        tokenizer = family(name)
        (item,) = encode(CONVERSATIONS["single"], tokenizer)
        assert date in tokenizer.decode(item.input_ids)


def test_given_answers_of_a_conversational_prompt_are_not_trained(family):
    messages = CONVERSATIONS["multi"]
    for name in ("smollm2", "qwen3"):
        tokenizer = family(name)
        (item,) = tokenize(Messages(messages, context=5), tokenizer, Encoding())
        (trained,) = runs(item.input_ids, item.trained, tokenizer)
        assert trained.endswith("One.\nTwo.<|im_end|>") and "forty" not in trained
    marked = family("qwen2_5", "qwen2_5_training")
    (item,) = tokenize(Messages(messages, context=5), marked, Encoding())
    assert runs(item.input_ids, item.trained, marked) == ["One.\nTwo.<|im_end|>"]


def test_train_on_prompt_trains_all_but_the_first_token(family):
    tokenizer = family("qwen3")
    (item,) = encode(CONVERSATIONS["multi"], tokenizer, train_on_prompt=True)
    assert item.input_ids == tokenizer.apply_chat_template(CONVERSATIONS["multi"], return_dict=False)
    assert item.trained == [False] + [True] * (len(item.input_ids) - 1)


def test_template_that_refuses_the_roles_says_so(family):
    with pytest.raises(Unusable, match="System role not supported"):
        encode(CONVERSATIONS["system"], family("gemma"))


def test_tokenizer_without_template_names_the_fix(plain_tokenizer):
    with pytest.raises(Unusable, match="no chat template") as caught:
        encode(CONVERSATIONS["single"], plain_tokenizer)
    assert "data.chat_template=chatml" in caught.value.fix


def test_cut_to_max_length_keeps_the_start(family):
    tokenizer = family("smollm2")
    (whole,) = encode(CONVERSATIONS["multi"], tokenizer)
    first = whole.trained.index(True)
    (cut,) = encode(CONVERSATIONS["multi"], tokenizer, max_length=first + 2)
    assert (cut.input_ids, cut.trained) == (whole.input_ids[: first + 2], whole.trained[: first + 2])
    assert cut.truncated and not whole.truncated
    with pytest.raises(TooLong) as caught:
        encode(CONVERSATIONS["multi"], tokenizer, max_length=first)
    assert f"data.max_length to more than {first}," in caught.value.fix


def test_answers_of_a_split_row_beyond_max_length_are_left_out(family):
    tokenizer = family("qwen3")
    items = encode(CONVERSATIONS["multi"], tokenizer)
    prompt_of_second = items[1].trained.index(True)
    assert len(items[0].input_ids) < prompt_of_second
    (kept,) = encode(CONVERSATIONS["multi"], tokenizer, max_length=prompt_of_second)
    assert (kept.input_ids, kept.truncated) == (items[0].input_ids, True)
