"""What a judge is asked."""

from __future__ import annotations

import pytest

from tunecli.config.errors import UserError
from tunecli.config.judge import LocalJudgeConfig, Mode
from tunecli.config.judge_files import constitution_of, template_of
from tunecli.config.paths import judging_names
from tunecli.data.examples import Messages, PromptCompletion, Text
from tunecli.judging.questions import Compared, answered, compare, conversation_of, drawn, filled, prompt_text

TEXTS = "preamble: a, ask: a, reason: a, verdict: a"
PAIR = Compared("Who are you?", "A {second} one", "A model.")


def judge(**values) -> LocalJudgeConfig:
    return LocalJudgeConfig(path="x", **values)


def test_texts_with_braces_are_asked_as_they_are():
    text = compare(PAIR, template_of(judge()), reasoned=False).text
    assert "Response 1:\nA {second} one" in text and "Response 2:\nA model." in text and "Who are you?" in text
    assert filled("{a} {b} {c}", {"a": "{b}", "b": "x"}) == "{b} x {c}"


def test_swapped_the_answers_change_places_and_nothing_else():
    template = template_of(judge(num_examples=2))
    question, swapped = (compare(pair, template, reasoned=False).text for pair in (PAIR, PAIR.swapped))
    assert question != swapped
    assert question.replace(PAIR.first, "@").replace(PAIR.second, PAIR.first).replace("@", PAIR.second) == swapped


def test_reasons_and_examples_come_when_asked_for():
    plain = compare(PAIR, template_of(judge()), reasoned=False)
    shown = compare(PAIR, template_of(judge(num_examples=1)), reasoned=False)
    reasoned = compare(PAIR, template_of(judge(num_examples=1)), reasoned=True)
    assert "basil" not in plain.text and "basil" in shown.text and "avoids the question" not in shown.text
    assert "avoids the question" in reasoned.text and reasoned.text.count("Better response:") == 2


@pytest.mark.parametrize("name", judging_names("templates"))
def test_every_shipped_template_can_be_used(name: str):
    mode = Mode.score if "score" in name else Mode.principles if name == "principles" else Mode.pairwise
    assert template_of(judge(template=name, mode=mode)).verdict


@pytest.mark.parametrize("name", judging_names("constitutions"))
def test_every_shipped_constitution_can_be_used(name: str):
    assert len(constitution_of(name)) > 3


def test_principles_are_drawn_by_seed_and_answers_whichever_stands_first():
    principles = constitution_of(None)
    pairs = [Compared("p", f"a{i}", f"b{i}") for i in range(40)]
    chosen = [drawn(principles, 2, pair, 0) for pair in pairs]
    assert chosen == [drawn(principles, 2, pair.swapped, 0) for pair in pairs]
    assert chosen != [drawn(principles, 2, pair, 1) for pair in pairs]
    assert {one.compare for each in chosen for one in each} == {one.compare for one in principles}
    assert all(len({one.compare for one in each}) == 2 for each in chosen)


def test_rows_become_prompts_and_answers():
    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    assert answered(PromptCompletion("p", "c")).answer == "c"
    assert answered(Text("t")).answer == "t"
    found = answered(Messages([{"role": "system", "content": "s"}, question, answer], context=2))
    assert (prompt_text(found.prompt), found.answer) == ("System: s\n\nUser: q", "a")
    assert prompt_text(conversation_of([question])) == "q"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("- a", "no mapping"),
        ("preamble: a", "has no text 'ask'"),
        ("{preamble: a, ask: a, reason: a, verdict: a, pair: '{first}'}", "has no {second}"),
        (f"{{{TEXTS}, pair: '{{first}} {{second}}', exmaples: []}}", "exmaples"),
        (f"{{{TEXTS}, pair: '{{first}} {{second}}', examples: [{{first: a}}]}}", "complete"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_template_that_lacks_something_is_refused(text: str, what: str, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        template_of(judge(template=str(path)))
    assert what in str(caught.value).replace("is not a mapping", "no mapping") and "mine.yaml" in str(caught.value)


def test_more_examples_than_there_are_is_refused():
    with pytest.raises(UserError, match="num_examples"):
        template_of(judge(num_examples=9))
