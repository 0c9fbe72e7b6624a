"""A text in a template is tokenized as the tokenizer itself would, and only the text is ever shortened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from tests.data.test_labelled import byte_level, sentencepiece, wordpiece
from tunecli.config.cloze import parse_cloze
from tunecli.config.compose import compose_run
from tunecli.config.data import Overlong, Side
from tunecli.config.errors import UserError
from tunecli.config.stage import Task
from tunecli.data.examples import Labelled, TooLong, Unusable
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokenize import tokenize
from tunecli.data.tokens import Encoding, Tokens
from tunecli.data.verbalizing import Verbalizer
from tunecli.models.builtin import byte_encoder_tokenizer, byte_tokenizer
from tunecli.preview import preview
from tunecli.preview.examples import Wanted

WORDS = {"p": "great", "n": "terrible"}
ENGLISH, CHINESE = "{text} It was {mask}.", "{text}评价：{mask}。"
TEXT, CHINESE_TEXT = "hello, hello world!", "中国的首都是北京"


def options(*templates: str, task: Task = Task.masked_lm, **fields: object) -> Encoding:
    given = {"verbalizer": WORDS, "labels": tuple(WORDS), "max_length": 200} | fields
    return Encoding(task=task, templates=templates, **given)


def one(tokenizer: PreTrainedTokenizerBase, example: Labelled, given: Encoding) -> Tokens:
    (item,) = tokenize(example, tokenizer, given)
    return item


def masked(make: Callable[[], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    tokenizer = make()
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=make is not wordpiece, special=True)})
    return tokenizer


@pytest.mark.parametrize("make", [wordpiece, byte_level, sentencepiece])
@pytest.mark.parametrize(
    ("template", "text"), [(ENGLISH, TEXT), (CHINESE, CHINESE_TEXT), ("{mask} news: {text}", TEXT)]
)
def test_the_sentence_is_what_the_tokenizer_makes_of_it_with_the_mask(make, template: str, text: str) -> None:
    tokenizer = masked(make)
    item = one(tokenizer, Labelled(text, None, ("p",)), options(template))
    ((start, end),) = item.spans
    with_mask = [*item.input_ids[:start], tokenizer.mask_token_id, *item.input_ids[end:]]
    assert with_mask == tokenizer(template.format(text=text, mask=tokenizer.mask_token))["input_ids"]


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize(("template", "text", "word"), [(ENGLISH, TEXT, "hello"), (CHINESE, CHINESE_TEXT, "好")])
def test_words_have_the_tokens_that_they_have_in_running_text(make, template: str, text: str, word: str) -> None:
    tokenizer = make()
    given = options(template, task=Task.causal_lm, verbalizer={"p": word, "n": "Paris"})
    item = one(tokenizer, Labelled(text, None, ("p",)), given)
    whole = template[: template.index("{mask}")].format(text=text) + word
    body = tokenizer(whole, add_special_tokens=False)["input_ids"]
    opening = TextEncoder(tokenizer).ends[0]
    assert item.input_ids == [*opening, *body]
    assert item.spans == [(item.spans[0][0], len(item.input_ids))]


def test_a_word_has_the_same_tokens_in_every_row() -> None:
    tokenizer = byte_level()
    given = options(ENGLISH, CHINESE, task=Task.causal_lm)
    words = set()
    for text in (TEXT, "Paris", "2 words ", "😀"):
        item = one(tokenizer, Labelled(text, None, ("n",)), given)
        words.add(tuple(tuple(item.input_ids[start:end]) for start, end in item.spans))
    assert len(words) == 1


def test_a_preview_shows_the_right_word_in_its_gap() -> None:
    config = compose_run("smoke_verbalize", []).config
    (example,) = preview(config, Wanted(1), show_progress=False).examples
    assert "".join(piece.text for piece in example.pieces if piece.trained) == " good good"
    assert example.labels == ("positive",)


def test_each_template_is_a_sequence_of_its_own() -> None:
    tokenizer = byte_encoder_tokenizer()
    alone = [one(tokenizer, Labelled(TEXT, None, ("p",)), options(text)) for text in (ENGLISH, CHINESE)]
    both = one(tokenizer, Labelled(TEXT, None, ("p",)), options(ENGLISH, CHINESE))
    assert both.input_ids == alone[0].input_ids + alone[1].input_ids
    shift = len(alone[0].input_ids)
    assert both.parts == (shift,) and both.labels == ("p",)
    assert both.spans == [alone[0].spans[0], tuple(border + shift for border in alone[1].spans[0])]


@pytest.mark.parametrize("task", [Task.causal_lm, Task.masked_lm])
@pytest.mark.parametrize("side", list(Side))
def test_only_the_text_is_shortened(task: Task, side: Side) -> None:
    tokenizer = byte_encoder_tokenizer() if task is Task.masked_lm else byte_tokenizer()
    text = "".join(chr(ord("a") + i % 26) for i in range(100))
    given = options(ENGLISH, task=task, truncation_side=side, max_length=60)
    for label, word in WORDS.items():
        item = one(tokenizer, Labelled(text, None, (label,)), given)
        whole = tokenizer.decode(item.input_ids, skip_special_tokens=True)
        kept, _, rest = whole.partition(" It was ")
        assert item.truncated and rest == word + "." * (task is Task.masked_lm)
        assert kept and (text.startswith(kept) if side is Side.right else text.endswith(kept))
        # However long its own word is, a row leaves room for the longest one.
        assert len(item.input_ids) - len(word) + len("terrible") == 60
    with pytest.raises(TooLong):
        one(tokenizer, Labelled(text, None, ("p",)), replace(given, overlong=Overlong.drop))
    with pytest.raises(TooLong):
        one(tokenizer, Labelled(text, None, ("p",)), replace(given, max_length=15))


def test_of_a_pair_the_longer_text_is_shortened() -> None:
    template = "{text}? {mask}, {text_pair}"
    item = one(byte_encoder_tokenizer(), Labelled("a" * 9, "b" * 90, ("p",)), options(template, max_length=60))
    whole = byte_encoder_tokenizer().decode(item.input_ids, skip_special_tokens=True)
    assert whole.startswith("a" * 9 + "? great, b") and whole.count("b") < 40


def test_virtual_tokens_stand_in_front_and_before_the_gap() -> None:
    tokenizer = byte_encoder_tokenizer()
    plain = one(tokenizer, Labelled(TEXT, None, ("p",)), options(ENGLISH))
    item = one(tokenizer, Labelled(TEXT, None, ("p",)), options(ENGLISH, before=(900, 901), between=(902,)))
    start, end = plain.spans[0]
    ids = plain.input_ids
    assert item.input_ids == [ids[0], 900, 901, *ids[1:start], 902, *ids[start:]]
    assert item.spans == [(start + 3, end + 3)]


def test_rows_that_do_not_fit_the_templates_are_named() -> None:
    tokenizer = byte_encoder_tokenizer()
    with pytest.raises(Unusable, match="no word for the label 'q'"):
        one(tokenizer, Labelled(TEXT, None, ("q",)), options(ENGLISH))
    with pytest.raises(Unusable, match="leaves the second text out"):
        one(tokenizer, Labelled(TEXT, TEXT, ("p",)), options(ENGLISH))
    with pytest.raises(Unusable, match="no text_pair"):
        one(tokenizer, Labelled(TEXT, None, ("p",)), options("{text} {text_pair} {mask}"))
    with pytest.raises(Unusable, match="holds the mask"):
        one(tokenizer, Labelled("a [MASK]", None, ("p",)), options(ENGLISH))


def test_words_that_cannot_be_told_apart_are_refused() -> None:
    tokenizer = masked(wordpiece)
    same = options(ENGLISH, verbalizer={"p": "Ж", "n": "Я"})  # neither is in the vocabulary
    with pytest.raises(UserError, match="same tokens"):
        Verbalizer(TextEncoder(tokenizer), same).check({"": ["p", "n"]})
    long = options(ENGLISH, verbalizer={}, labels=())
    with pytest.raises(UserError, match="may have 8"):
        Verbalizer(TextEncoder(byte_encoder_tokenizer()), long).check({"": ["yes", "a longer label"]})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{text} It was.", "exactly one {mask}"),
        ("{text} {mask} {mask}", "exactly one {mask}"),
        ("It was {mask}.", "no {text}"),
        ("{text} {text} {mask}", "{text} twice"),
        ("{text} {label} {mask}", "text, text_pair or mask"),
        ("{text {mask}", "no template"),
    ],
)
def test_a_template_that_is_wrong_says_what_is(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what.replace("{", r"\{")):
        parse_cloze(text)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (ENGLISH, True),
        (CHINESE, True),
        ("{text} {mask}", True),
        ("{text}: {mask} ?!", True),
        ("{mask}: {text}", False),
    ],
)
def test_only_punctuation_may_follow_the_gap_of_a_causal_model(text: str, ends: bool) -> None:
    assert parse_cloze(text).ends_with_gap is ends
    assert parse_cloze(text.replace("{text}", "{{{text}}}")).ends_with_gap is ends
