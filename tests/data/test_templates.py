"""Rendering is the tokenizer's own, at training and at inference, for every template, with tools and variables; and
what is wrong with a template."""

from __future__ import annotations

import pytest
from jinja2 import TemplateError

from tests.data.conftest import FAMILIES, TEMPLATES
from tunecli.data.examples import Messages, PromptCompletion, Text, Unusable
from tunecli.data.lint import findings, template_problems
from tunecli.data.templates import ChatTemplate
from tunecli.data.tokenize import Encoding, tokenize

NAMES = sorted(file.stem for file in TEMPLATES.glob("*.jinja"))
SYSTEM = {"role": "system", "content": "Answer in one word."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <now> & here",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "a city"}},
                "required": ["city"],
            },
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}
MULTI = [
    {"role": "user", "content": "Hello, world!"},
    {"role": "assistant", "content": "Hello <b>&"},
    {"role": "user", "content": "What is the capital of Japan?"},
    {"role": "assistant", "content": "Tokyo.\n"},
]
WITH_CALL = [
    {"role": "user", "content": "How is the weather?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "sunny"},
    {"role": "assistant", "content": "Sunny."},
    *MULTI,
]
THINKING = [
    {**message, "reasoning_content": f"let me see {i}"} if i % 2 else message for i, message in enumerate(MULTI)
]
CONVERSATIONS = {
    "single": Messages(MULTI[:2]),
    "multi": Messages(MULTI),
    "system": Messages([SYSTEM, *MULTI]),
    "tools": Messages(MULTI, tools=TOOLS),
    "system and tools": Messages([SYSTEM, *MULTI], tools=TOOLS),
    "calls": Messages(WITH_CALL, tools=TOOLS),
    "empty content": Messages([{"content": "", **message} for message in WITH_CALL], tools=TOOLS),
    "reasoning": Messages(THINKING),
}
VARIABLES = [{}, {"enable_thinking": False, "date_string": "1 Jan 2020"}]


@pytest.fixture
def dated(family):
    """`dated(name)`: the family's tokenizer with the template `name`, in which the date is pinned."""

    def build(name: str):
        tokenizer = family(name.removesuffix("_training"), name)
        for call, date in (
            ('strftime_now("%d %b %Y")', "'26 Jul 2024'"),
            ('strftime_now("%Y-%m-%d")', "'2024-07-26'"),
        ):
            tokenizer.chat_template = tokenizer.chat_template.replace(call, date)
        return tokenizer

    return build


def own(tokenizer, example: Messages, end: int, tokens: bool = False, **options):
    return tokenizer.apply_chat_template(
        example.messages[:end], tools=example.tools, tokenize=tokens, return_dict=False, **options
    )


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_text_is_the_tokenizers_own_for_every_beginning_of_a_conversation(dated, name, case):
    tokenizer, example = dated(name), CONVERSATIONS[case]
    for variables in VARIABLES:
        template = ChatTemplate(tokenizer, variables)
        prepared = template.prepared(example)
        for end in range(1, len(example.messages) + 1):
            for prompt in (False, True):
                try:
                    expected = own(tokenizer, example, end, add_generation_prompt=prompt, **variables)
                except (TemplateError, TypeError):
                    with pytest.raises(Unusable, match="refuses"):
                        template.render(prepared, end, add_generation_prompt=prompt)
                else:
                    assert template.render(prepared, end, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_trained_prompts_are_those_of_inference_and_answers_are_learnt_whole(dated, name, case):
    """For each answer: the tokens before it, and what it says, also the reasoning that a template does not write."""
    tokenizer, example = dated(name), CONVERSATIONS[case]
    answers = [i for i, message in enumerate(example.messages) if message["role"] == "assistant"]
    try:
        items = tokenize(example, tokenizer, Encoding())
    except Unusable as error:
        if "does not write the call of 'weather'" in error.what:
            assert "Zürich" not in own(tokenizer, example, len(example.messages))
            return
        assert "refuses" in error.what
        with pytest.raises((TemplateError, TypeError)):
            own(tokenizer, example, len(example.messages))
        return
    spans = [(item.input_ids, *span) for item in items for span in item.spans]
    assert len(spans) == len(answers)
    for (ids, start, end), i in zip(spans, answers, strict=True):
        assert ids[:start] == own(tokenizer, example, i, tokens=True, add_generation_prompt=True)
        learnt = tokenizer.decode(ids[start:end])
        message = example.messages[i]
        assert message.get("content", "").strip() in learnt
        assert message.get("reasoning_content", "") in learnt
        assert all(message["content"] not in learnt for message in example.messages if message["role"] == "user")
        if "tool_calls" in message:
            assert "weather" in learnt and "Zürich" in learnt
        assert ids[end - 1] in tokenizer.added_tokens_decoder


def test_date_is_pinned_and_variables_are_passed(family):
    tokenizer = family("llama3_2")
    for variables, date in (({}, "26 Jul 2024"), ({"date_string": "1 Jan 2020"}, "1 Jan 2020")):
        (item,) = tokenize(Messages(MULTI), tokenizer, Encoding(chat_template_kwargs=variables))
        assert f"Today Date: {date}" in tokenizer.decode(item.input_ids)


def test_tokenizer_with_a_template_of_its_own_for_tools(family):
    tokenizer = family("smollm2")
    own_text = tokenizer.chat_template
    tokenizer.chat_template = {"default": own_text, "tool_use": "{{ tools[0].function.name }}" + own_text}
    template = ChatTemplate(tokenizer, {})
    for example in (Messages(MULTI), Messages(MULTI, tools=TOOLS)):
        assert template.render(template.prepared(example)) == own(tokenizer, example, len(MULTI))


def test_template_with_an_error_names_its_line(family):
    tokenizer = family("smollm2")
    tokenizer.chat_template = "{% for m in messages %}\n{{ m.content "
    with pytest.raises(Unusable, match="error in line 2"):
        tokenize(Messages(MULTI), tokenizer, Encoding())


def test_template_that_fails_as_any_program_may(family):
    tokenizer = family("smollm2")
    for template in ("{{ 1 // 0 }}", "{% generation %}{{ 1 // 0 }}{% endgeneration %}"):
        tokenizer.chat_template = template
        with pytest.raises(Unusable, match="refuses this conversation: .*division"):
            tokenize(Messages(MULTI), tokenizer, Encoding())


# ---- lint


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("gemma")])
def test_templates_of_the_makers_have_no_problems(family, name):
    assert template_problems(family(name), {}) == []


def test_end_of_turn_that_generation_does_not_stop_at(family):
    tokenizer = family("gemma3")
    (problem,) = template_problems(tokenizer, {})
    assert "'<end_of_turn>', but generation stops at '<eos>'" in problem.what
    assert template_problems(tokenizer, {}, [tokenizer.convert_tokens_to_ids("<end_of_turn>")]) == []


def test_template_without_an_end_and_base_model_without_a_template(family, plain_tokenizer):
    tokenizer = family("smollm2")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (problem,) = template_problems(tokenizer, {})
    assert "never learns to stop" in problem.what and "eos_token" in problem.fix
    (problem,) = template_problems(plain_tokenizer, {})
    assert "no chat template" in problem.what and "data.chat_template=chatml" in problem.fix


QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
BLANK = {"role": "assistant", "content": " \n"}
TOOL = {"role": "tool", "content": "3"}


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (Messages([SYSTEM, QUESTION, ANSWER]), []),
        (Messages([QUESTION, {"role": "assistant", "tool_calls": [CALL]}, TOOL, TOOL, ANSWER]), []),
        (Messages([QUESTION, QUESTION, ANSWER]), ["roles out of order"]),
        (Messages([QUESTION, ANSWER, ANSWER]), ["roles out of order"]),
        (Messages([SYSTEM, ANSWER]), ["roles out of order"]),
        (Messages([QUESTION, BLANK, QUESTION, ANSWER]), ["empty answer"]),
        (Messages([{**QUESTION, "content": ""}, ANSWER]), ["empty question"]),
        (Messages([QUESTION, ANSWER, QUESTION]), ["ends with a question"]),
        (PromptCompletion("", " "), ["empty question", "empty answer"]),
        (PromptCompletion("q", "a"), []),
        (Text("t"), []),
    ],
)
def test_findings(example, expected):
    assert findings(example) == expected
