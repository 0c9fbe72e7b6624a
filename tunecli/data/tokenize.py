"""From an example to token ids and the tokens that are trained.

A conversation is rendered by the tokenizer's own template and tokenised as a whole. Which tokens are the assistant's
comes from the template's `{% generation %}` marks, or else from comparing prefixes: the prompt that the model sees at
inference must be a prefix of the whole, as text and as token ids, and so must the conversation up to the answer.
Where that fails (templates that rewrite earlier turns, generation prompts that the answer does not repeat, a token
across the border) the row becomes one example per answer, each with its prompt rendered as at inference.

Reasoning is learnt as it is generated. Where the template leaves the reasoning of a trained answer out (DeepSeek R1's
does, because earlier turns are shown without it), the target is: the generation prompt, then the answer as the row
writes it, with its reasoning in `<think>` tags, of which the opening one is left out where the generation prompt ends
with it, then the end of turn that the template writes. `data.thinking=drop` takes reasoning out before all this.

Each kind of example is a generator: it yields the texts that it needs the ids of, and goes on when those of all
examples have been tokenised together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from tunecli.config.data import Thinking
from tunecli.config.stage import Rows, Task
from tunecli.data import conversation
from tunecli.data.documents import documents
from tunecli.data.examples import (
    Columns,
    Example,
    Feedback,
    Labelled,
    Messages,
    Pair,
    Prompt,
    PromptCompletion,
    Scored,
    Tagged,
    Text,
    Unusable,
    Written,
)
from tunecli.data.judged import Side, encoder_text, fitting_prompt, judged
from tunecli.data.labelled import labelled, tagged
from tunecli.data.source_target import plain_pair, plain_question, source_ids, source_target
from tunecli.data.templates import ChatTemplate
from tunecli.data.text_encoder import Request, TextEncoder
from tunecli.data.tokens import Encoding, Span, Tokens, fit, window
from tunecli.data.verbalizing import Verbalizer
from tunecli.data.virtual import filled, surrounded, surrounded_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoding", "Tokens", "tokenize", "tokenize_many"]

PROBE = "TUNECLI-ANSWER"

Steps = Generator[list[Request], None, list[Tokens]]


def tokenize(example: Example, tokenizer: PreTrainedTokenizerBase, options: Encoding) -> list[Tokens]:
    """One item, or one per answer where the template's turns cannot be told apart in the whole conversation, or
    several windows (`overlong: split`).

    Raises Unusable if nothing in the example can be trained, TooLong if that is for its length.
    """
    (result,) = tokenize_many([example], tokenizer, options)
    if isinstance(result, Unusable):
        raise result
    return result


def tokenize_many(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, options: Encoding
) -> list[list[Tokens] | Unusable]:
    """What `tokenize` gives or raises for each example: several times as fast for hundreds of them together."""
    job = _Job(tokenizer, options)
    results: list[list[Tokens] | Unusable] = [[] for _ in examples]
    running = {i: _encode(example, job) for i, example in enumerate(examples)}
    while running:
        wanted: list[Request] = []
        for i, steps in list(running.items()):
            try:
                wanted += _checked(next(steps))
                continue
            except StopIteration as done:
                results[i] = done.value
            except Unusable as error:
                results[i] = error.with_traceback(None)
            del running[i]
        job.encoder.prime(wanted)
    return results


class _Job:
    """What the examples of one call share."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Encoding) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.encoder = TextEncoder(tokenizer)

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, self.options.chat_template_kwargs)

    @cached_property
    def verbalizer(self) -> Verbalizer:
        return Verbalizer(self.encoder, self.options)


def _checked(requests: list[Request]) -> list[Request]:
    try:
        for text, _ in requests:
            text.encode()
    except UnicodeEncodeError as error:
        raise Unusable(
            f"half of a surrogate pair ({ascii(error.object[error.start])}) is no character",
            "write the character itself, or both halves, or remove the row",
        ) from None
    return requests


def _encode(example: Example, job: _Job) -> Steps:
    if job.options.rows is Rows.answers and isinstance(example, Messages | PromptCompletion | Text):
        example = Scored(example, math.nan)  # what it should be is not known
    if isinstance(example, Pair | Scored | Feedback):
        return (yield from judged(example, partial(_judged_text, job=job), job.options))
    if isinstance(example, Prompt):
        return (yield from _prompt(example, job))
    if job.options.task is Task.seq2seq_lm and isinstance(example, Messages | PromptCompletion):
        pair = example if isinstance(example, PromptCompletion) else plain_pair(_edited(example, job.options))
        return (yield from source_target(pair, job.encoder, job.options))
    if isinstance(example, Messages):
        items = yield from _conversation(job.template.prepared(_edited(example, job.options)), job)
    elif isinstance(example, PromptCompletion):
        items = yield from _prompt_completion(example, job)
    elif isinstance(example, Labelled) and job.options.templates:
        return (yield from job.verbalizer.tokens(example))
    elif isinstance(example, Labelled):
        return (yield from labelled(example, job.encoder, job.options))
    elif isinstance(example, Tagged):
        return (yield from tagged(example, job.encoder, job.options))
    elif isinstance(example, Text) and job.options.task in (Task.masked_lm, Task.seq2seq_lm):
        return (yield from documents(example, job.encoder, job.options))
    elif isinstance(example, Columns):
        return [_filled(example, job)]
    elif job.options.between:
        raise Unusable(
            "a text alone has no answer, which the template puts words or virtual tokens in front of",
            "\"peft.p_tuning.template='{v20} {prompt} {completion}'\", or another data.format",
        )
    else:
        items = yield from _text(example, job)
    added = len(job.options.before) + len(job.options.between)
    fitting = fit(items, job.options, added)
    return [surrounded(tokens, job.options, job.encoder.ends[0]) for tokens in fitting] if added else fitting


def _judged_text(text: Written | Text, job: _Job) -> Generator[list[Request], None, Side]:
    """A completion with its prompt, as a language model or a classifier reads it, not yet cut to its length."""
    options, tokenizer = job.options, job.tokenizer
    if options.task is Task.seq2seq_lm:
        if isinstance(text, Text):
            raise Unusable("a text without a prompt is no source and target", "data.columns.prompt=COLUMN")
        pair = text if isinstance(text, PromptCompletion) else plain_pair(_edited(text, options))
        (tokens,) = yield from source_target(pair, job.encoder, options)
        return Side(tokens, added=0, opening=None)
    if options.task is Task.sequence_classification and tokenizer.sep_token_id is not None:
        return (yield from encoder_text(_without_template(text, job), job.encoder, options))
    if isinstance(text, Messages) and not tokenizer.chat_template and job.encoder.ends[1]:
        plain = plain_pair(_edited(text, options))  # an encoder-decoder, which no template was made for
        text = PromptCompletion(f"{plain.prompt}\n", plain.completion)
    if isinstance(text, Messages):
        items = yield from _conversation(job.template.prepared(_edited(text, options)), job)
    else:
        items = yield from (_text(text, job) if isinstance(text, Text) else _prompt_completion(text, job))
    if len(items) > 1:
        raise Unusable(
            "the chat template renders earlier turns differently when later ones follow, and the completion has "
            f"{len(items)} answers",
            "leave one answer in the completion: those before it belong to the prompt",
        )
    ids, spans = items[0].input_ids, items[0].spans
    # Without what the template writes after the end of turn: no model that answers does.
    end = spans[-1][1] if isinstance(text, Messages) and spans else len(ids)
    return Side(Tokens(ids[:end], spans), len(options.before) + len(options.between), job.encoder.ends[0])


def _without_template(text: Written | Text, job: _Job) -> PromptCompletion | Text:
    """What an encoder reads as one text or as two: it has seen no chat template in its pretraining, so that question
    and answer become two plain texts; a longer conversation is rendered if there is a template."""
    if not isinstance(text, Messages):
        return text
    text = _edited(text, job.options)
    if [message["role"] for message in text.messages] == ["user", "assistant"] or not job.tokenizer.chat_template:
        return plain_pair(text)
    last = max(i for i, message in enumerate(text.messages) if message["role"] == "assistant")
    return PromptCompletion(*_answer_text(job.template.prepared(text), last, job.template))


def _prompt(example: Prompt, job: _Job) -> Steps:
    """One item without spans: what is generated from."""
    options, encoder = job.options, job.encoder
    if isinstance(example.text, str):
        text, special = example.text, True
    elif options.task is Task.seq2seq_lm:
        text, special = plain_question(example.text), True
    else:
        chat = _edited(Messages(example.text, tools=example.tools), options)
        text, special = job.template.render(job.template.prepared(chat), add_generation_prompt=True), False
    plain = options.task is Task.seq2seq_lm
    yield [(text, special and not plain)]
    columns = json.dumps(example.columns, ensure_ascii=False)
    if plain:
        return [Tokens(source_ids(text, encoder, options), [], columns=columns)]
    ids = surrounded_prompt(encoder.ids(text, add_special_tokens=special), options, encoder)
    return [fitting_prompt(ids, options, columns)]


def _filled(example: Columns, job: _Job) -> Tokens:
    if not job.options.template:
        raise Unusable("the columns say what to write only together with a template", "peft=p_tuning has one")
    found = filled(example, job.options, job.encoder)
    return Tokens(found.input_ids, [found.answer], found.truncated)


def _text(example: Text, job: _Job) -> Steps:
    yield [(example.text, True)]
    ids = job.encoder.ids(example.text, add_special_tokens=True)
    _end(ids, job.tokenizer)
    return [window(ids, [(0, len(ids))])]


def _prompt_completion(example: PromptCompletion, job: _Job) -> Steps:
    """Tokenised together where the ids then begin with the prompt's (SentencePiece would put a space before a
    completion on its own), apart where a token would cross the border, because at inference none does."""
    prompt, completion = example.prompt, example.completion
    yield [(prompt, True), (prompt + completion, True)]
    head = job.encoder.ids(prompt, add_special_tokens=True)
    ids = job.encoder.ids(prompt + completion, add_special_tokens=True)
    if ids[: len(head)] != head:
        ids = head + job.encoder.ids(completion)
    _end(ids, job.tokenizer)
    return [window(ids, [(0 if job.options.train_on_prompt else len(head), len(ids))])]


def _end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    eos = tokenizer.eos_token_id
    if eos is not None and ids[-1:] != [eos]:
        ids.append(eos)


def _edited(example: Messages, options: Encoding) -> Messages:
    """The conversation as the options want it."""
    if options.train_on_prompt and example.untrained:
        raise Unusable(
            f"message {example.untrained[0] + 1} is marked as not to be trained, but stage.train_on_prompt=true",
            "set stage.train_on_prompt=false, or take the mark out of the row",
        )
    example = conversation.with_system(example, options.system, options.system_prompt)
    return conversation.without_thinking(example) if options.thinking is Thinking.drop else example


def _conversation(example: Messages, job: _Job) -> Steps:
    if job.options.train_on_prompt:
        text = job.template.render(example)
        yield [(text, False)]
        ids = job.encoder.ids(text)
        return [window(ids, [(0, len(ids))])]
    answers = conversation.answers(example, job.options.turns)
    if not answers:
        raise Unusable("every answer is marked as not to be trained", "take the mark from one, or remove the row")
    text, spans = _whole_text(example, answers, job.template)
    if spans is not None:
        yield [(text, False)]
        tokens = _whole(text, spans, job.encoder)
        if tokens is not None:
            return [tokens]
    texts = [_answer_text(example, i, job.template) for i in answers]
    yield [(prompt + completion, False) for prompt, completion in texts]
    return [_single_answer(prompt, completion, job.encoder) for prompt, completion in texts]


def _whole_text(example: Messages, answers: list[int], template: ChatTemplate) -> tuple[str, list[Span] | None]:
    """The text of the conversation and the characters of the answers in it, without the white space after the
    end-of-turn token, which is the template's and is never generated. None if they cannot be told, or if a part of
    an answer is missing there."""
    all_answers = [i for i, message in enumerate(example.messages) if message["role"] == "assistant"]
    spans: list[Span] | None
    if template.marks_answers(example) and answers == all_answers:
        text, spans = template.render_with_marks(example)
        spans = _joined(spans)
    else:
        text = template.render(example)
        spans = _spans_by_prefix(example, answers, text, template)
    if spans is None or not _hold_all(text, spans, [example.messages[i] for i in answers]):
        return text, None
    return text, [(start, start + len(text[start:end].rstrip())) for start, end in spans]


def _joined(spans: list[Span]) -> list[Span]:
    """Spans that touch as one: Phi-3's end-of-turn and end-of-text tokens are marked apart."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


def _hold_all(text: str, spans: list[Span], answers: list[dict[str, Any]]) -> bool:
    """Whether the trained text has the parts of the answers that templates may leave out."""
    parts = [part for message in answers for part in (conversation.reasoning(message), *_called(message)) if part]
    if not parts:
        return True
    trained = "\n".join(text[start:end] for start, end in spans)
    return all(part in trained for part in parts)


def _called(message: dict[str, Any]) -> list[str]:
    """Names of the functions that a message calls."""
    return [call.get("function", call).get("name", "") for call in message.get("tool_calls", ())]


def _spans_by_prefix(example: Messages, answers: list[int], text: str, template: ChatTemplate) -> list[Span] | None:
    """Where the answers stand in the text of the whole; None if the text does not begin with what inference sees."""
    spans = []
    for i in answers:
        prompt = template.render(example, i, add_generation_prompt=True)
        answered = text if i == len(example.messages) - 1 else template.render(example, i + 1)
        if not (text.startswith(answered) and answered.startswith(prompt)):
            return None
        spans.append((len(prompt), len(answered)))
    return spans


def _whole(text: str, spans: list[Span], encoder: TextEncoder) -> Tokens | None:
    """The conversation as one example; None if the borders of the spans are not borders of tokens."""
    ids = encoder.ids(text)
    before = encoder.tokens_before(text, ids, [border for span in spans for border in span])
    if before is None:
        return None
    return window(ids, [(before[start], before[end]) for start, end in spans])


def _single_answer(prompt: str, completion: str, encoder: TextEncoder) -> Tokens:
    """Tokenised together, or apart where a token would cross the border, because at inference none does."""
    ids = encoder.ids(prompt + completion)
    before = encoder.tokens_before(prompt + completion, ids, [len(prompt)])
    if before is not None:
        return window(ids, [(before[len(prompt)], len(ids))])
    head = encoder.ids(prompt)
    ids = head + encoder.ids(completion)
    return window(ids, [(len(head), len(ids))])


def _answer_text(example: Messages, i: int, template: ChatTemplate) -> tuple[str, str]:
    """The prompt for answer `i` as inference renders it, and what the model should generate after it, up to its
    end-of-turn token."""
    prompt = template.render(example, i, add_generation_prompt=True)
    completion = _completion(example, i, prompt, template)
    absent = next((name for name in _called(example.messages[i]) if name not in completion), None)
    if absent is not None:
        raise Unusable(
            f"the chat template does not write the call of {absent!r} in message {i + 1}, so it could not be learnt",
            "choose a template that knows tool calls with data.chat_template, or remove the row",
        )
    return prompt, completion


def _completion(example: Messages, i: int, prompt: str, template: ChatTemplate) -> str:
    answered = template.render(example, i + 1)
    thought = conversation.reasoning(example.messages[i])
    if answered.startswith(prompt) and thought in (completion := answered[len(prompt) :].rstrip()):
        return completion
    if thought:
        return _answer_with_reasoning(example, i, prompt, template)
    return _answer_behind_probe(example, i, answered, template)


def _around_probe(example: Messages, i: int, template: ChatTemplate) -> tuple[str, str] | None:
    """What the template writes before and after the content of answer `i`."""
    answer = {key: value for key, value in example.messages[i].items() if key not in conversation.REASONING_KEYS}
    probed = template.render(replace(example, messages=[*example.messages[:i], {**answer, "content": PROBE}]))
    head, found, tail = probed.partition(PROBE)
    return (head, tail.rstrip()) if found else None


def _answer_behind_probe(example: Messages, i: int, answered: str, template: ChatTemplate) -> str:
    """The answer's part of `answered`, where the generation prompt is not a prefix of it (DeepSeek R1, Nemotron).

    It begins where the template puts a known text in its place, and must hold the answer as it stands in the row.
    """
    content = example.messages[i].get("content") or ""
    around = _around_probe(example, i, template)
    if around is None or not answered.startswith(around[0]):
        raise _rewritten(i)
    completion = answered[len(around[0]) :].rstrip()
    if content.strip() not in completion:
        raise _rewritten(i)
    return completion


def _answer_with_reasoning(example: Messages, i: int, prompt: str, template: ChatTemplate) -> str:
    """The answer as the row writes it after what the generation prompt has written of it, and the end of turn."""
    message = example.messages[i]
    around = _around_probe(example, i, template)
    if around is None:
        raise _rewritten(i)
    opened = prompt.rstrip()
    if opened.endswith("</think>"):
        raise Unusable(
            f"message {i + 1} holds reasoning, but the generation prompt that comes before it closes its thinking",
            "set data.thinking=drop, or take enable_thinking out of data.chat_template_kwargs",
        )
    written = message.get("content") or ""
    if thought := conversation.reasoning_under_key(message):
        written = f"<think>\n{thought.strip()}\n</think>\n\n{written}"
    if opened.endswith("<think>") and written.lstrip().startswith("<think>"):
        written = written.lstrip().removeprefix("<think>").removeprefix(prompt[len(opened) :])
    return written + around[1]


def _rewritten(i: int) -> Unusable:
    return Unusable(
        f"the chat template does not render the answer in message {i + 1} as it stands, "
        "so what the model should generate after its prompt is not known",
        "take out what the template rewrites, or give a template with {% generation %} marks: "
        "data.chat_template=FILE.jinja",
    )
