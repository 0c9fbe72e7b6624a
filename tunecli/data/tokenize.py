"""From an example to token ids and the tokens that are trained.

A conversation is rendered by the tokenizer's own template and tokenised as a whole. Which tokens are the assistant's
comes from the template's `{% generation %}` marks, or else from comparing prefixes: the prompt that the model sees at
inference must be a prefix of the whole, as text and as token ids, and so must the conversation up to the answer.
Where that fails (templates that rewrite earlier turns, generation prompts that the answer does not repeat, a token
across the border) the row becomes one example per answer, each with its prompt rendered as at inference.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunecli.config.errors import UserError
from tunecli.data.examples import Example, Messages, PromptCompletion, Text, Unusable
from tunecli.data.templates import Span, has_generation_spans, render, render_with_generation_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "TUNECLI-ANSWER"


@dataclass(frozen=True, slots=True)
class Tokens:
    input_ids: list[int]
    trained: list[bool]
    """Whether the token is a target of the loss. Never the first: nothing comes before it to predict it from."""
    truncated: bool = False


def tokenize(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    train_on_prompt: bool,
    where: str = "",
) -> list[Tokens]:
    """One item, or one per answer where the template's turns cannot be told apart in the whole conversation.

    Raises UserError at `where` (file and row) if nothing in the example can be trained.
    """
    try:
        encoded = _encode(example, tokenizer, train_on_prompt)
        return _cut(encoded, max_length)
    except Unusable as error:
        raise UserError(error.what, where=where, fix=error.fix) from error.__cause__


def _encode(example: Example, tokenizer: PreTrainedTokenizerBase, train_on_prompt: bool) -> list[Tokens]:
    if isinstance(example, Messages):
        if train_on_prompt:
            ids = _ids(tokenizer, [render(tokenizer, example.messages)])[0]
            return [_tokens(ids, [(0, len(ids))])]
        return _conversation(example, tokenizer)
    if isinstance(example, PromptCompletion):
        return [_prompt_completion(example, tokenizer, train_on_prompt)]
    return [_text(example, tokenizer)]


def _cut(examples: list[Tokens], max_length: int) -> list[Tokens]:
    """Cut each to `max_length`, and leave out those of several that lose all their trained tokens."""
    cut = [
        Tokens(tokens.input_ids[:max_length], tokens.trained[:max_length], truncated=True)
        if len(tokens.input_ids) > max_length
        else tokens
        for tokens in examples
    ]
    kept = [tokens for tokens in cut if any(tokens.trained)]
    if not kept:
        raise _nothing_trained(examples, max_length)
    if len(kept) < len(cut):
        kept[-1] = replace(kept[-1], truncated=True)
    return kept


def _nothing_trained(examples: list[Tokens], max_length: int) -> Unusable:
    needed = [tokens.trained.index(True) for tokens in examples if any(tokens.trained)]
    if needed:
        return Unusable(
            f"no token left to train on: the prompt alone fills data.max_length={max_length}",
            f"set data.max_length to more than {min(needed)}, shorten the prompt, or remove the row",
        )
    return Unusable("no token to train on: the answer is empty", "fill it in, or remove the row")


def _conversation(example: Messages, tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    messages = example.messages
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= example.context]
    if has_generation_spans(tokenizer) and not example.context:
        text, spans = render_with_generation_spans(tokenizer, messages)
        whole = _whole(tokenizer, text, _joined(spans))
    else:
        text = render(tokenizer, messages)
        whole = _whole(tokenizer, text, _spans_by_prefix(tokenizer, messages, answers, text))
    if whole is not None:
        return [whole]
    return [_single_answer(tokenizer, messages, i) for i in answers]


def _joined(spans: list[Span]) -> list[Span]:
    """Spans that touch as one: Phi-3's end-of-turn and end-of-text tokens are marked apart."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


def _spans_by_prefix(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], answers: list[int], text: str
) -> list[Span] | None:
    """Where the answers stand in the text of the whole; None if the text does not begin with what inference sees."""
    spans = []
    for i in answers:
        prompt = render(tokenizer, messages[:i], add_generation_prompt=True)
        answered = text if i == len(messages) - 1 else render(tokenizer, messages[: i + 1])
        if not (text.startswith(answered) and answered.startswith(prompt)):
            return None
        spans.append((len(prompt), len(answered)))
    return spans


def _whole(tokenizer: PreTrainedTokenizerBase, text: str, spans: list[Span] | None) -> Tokens | None:
    """The conversation as one example; None if the borders of the spans are not borders of tokens."""
    if spans is None:
        return None
    # White space after the end-of-turn token is the template's, and is never generated.
    spans = [(start, start + len(text[start:end].rstrip())) for start, end in spans]
    borders = sorted({border for span in spans for border in span})
    ids, positions = _positions(tokenizer, text, borders)
    if positions is None:
        return None
    return _tokens(ids, [(positions[start], positions[end]) for start, end in spans])


def _positions(
    tokenizer: PreTrainedTokenizerBase, text: str, borders: list[int]
) -> tuple[list[int], dict[int, int] | None]:
    """The ids of `text`, and for each border the number of tokens before it.

    None instead of the numbers if, for some border, the ids of the text before it are not the first ids of the whole.
    """
    ids, ends = _ids_and_added_tokens(tokenizer, text)
    positions = {}
    for border in borders:
        position = _position_after_added_token(tokenizer, text, border, ids, ends)
        if position is None:
            prefix = _ids(tokenizer, [text[:border]])[0]
            if ids[: len(prefix)] != prefix:
                return ids, None
            position = len(prefix)
        positions[border] = position
    return ids, positions


def _position_after_added_token(
    tokenizer: PreTrainedTokenizerBase, text: str, border: int, ids: list[int], ends: list[tuple[int, int]]
) -> int | None:
    """The number of tokens before `border`, told from the text after the last added token before it; else None.

    No token crosses an added token (an end of turn, say), so only the few characters after it, mostly a header, need
    tokenising again. All the text before each border would take several times as long.
    """
    last = bisect_right(ends, border, key=lambda end: end[0]) - 1
    if last < 0:
        return None
    end, count = ends[last]
    rest = _ids(tokenizer, [text[end:border]])[0] if end < border else []
    return count + len(rest) if ids[count : count + len(rest)] == rest else None


def _ids_and_added_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of `text`, and for each added token in it where it ends: in characters, in tokens."""
    if not tokenizer.is_fast:
        return _ids(tokenizer, [text])[0], []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    added = tokenizer.added_tokens_decoder
    return ids, [(offsets[i][1], i + 1) for i, token in enumerate(ids) if token in added]


def _single_answer(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], i: int) -> Tokens:
    """The prompt for answer `i` as inference renders it, and the answer up to its end-of-turn token."""
    prompt = render(tokenizer, messages[:i], add_generation_prompt=True)
    answered = render(tokenizer, messages[: i + 1])
    if answered.startswith(prompt):
        completion = answered[len(prompt) :].rstrip()
    else:
        completion = _answer_behind_probe(tokenizer, messages, i, answered)
    start, ids = _join(tokenizer, prompt, completion, add_special_tokens=False)
    return _tokens(ids, [(start, len(ids))])


def _answer_behind_probe(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], i: int, answered: str
) -> str:
    """The answer's part of `answered`, where the generation prompt is not a prefix of it (DeepSeek R1, Nemotron).

    It begins where the template puts a known text in its place, and must hold the answer as it stands in the row.
    """
    content = messages[i].get("content") or ""
    probed = render(tokenizer, [*messages[:i], {**messages[i], "content": PROBE}])
    head, found, _ = probed.partition(PROBE)
    completion = answered[len(head) :].rstrip()
    if not found or not answered.startswith(head) or content.strip() not in completion:
        raise Unusable(
            f"the chat template does not render the answer in message {i + 1} as it stands, "
            "so what the model should generate after its prompt is not known",
            "take out what the template rewrites (reasoning in <think> tags, say), or give a template with "
            "{% generation %} marks: data.chat_template=FILE.jinja",
        )
    return completion


def _prompt_completion(
    example: PromptCompletion, tokenizer: PreTrainedTokenizerBase, train_on_prompt: bool
) -> Tokens:
    start, ids = _join(tokenizer, example.prompt, example.completion, add_special_tokens=True)
    _end(ids, tokenizer)
    return _tokens(ids, [(0 if train_on_prompt else start, len(ids))])


def _text(example: Text, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    ids = _ids(tokenizer, [example.text], add_special_tokens=True)[0]
    _end(ids, tokenizer)
    return _tokens(ids, [(0, len(ids))])


def _join(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, *, add_special_tokens: bool
) -> tuple[int, list[int]]:
    """The number of tokens of the prompt, and the ids of both.

    Tokenised together where the ids then begin with the prompt's (SentencePiece would put a space before a completion
    on its own), apart where a token would cross the border, because at inference none does.
    """
    together, head = _ids(tokenizer, [prompt + completion, prompt], add_special_tokens=add_special_tokens)
    if together[: len(head)] == head:
        return len(head), together
    return len(head), head + _ids(tokenizer, [completion])[0]


def _end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    eos = tokenizer.eos_token_id
    if eos is not None and ids[-1:] != [eos]:
        ids.append(eos)


def _ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, add_special_tokens: bool = False
) -> list[list[int]]:
    ids = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    if not add_special_tokens:
        return ids
    return [_without_added_end(tokenizer, text, row) for text, row in zip(texts, ids, strict=True)]


def _without_added_end(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """Without the end-of-text token that some tokenizers add by themselves, which must not stand after a prompt."""
    eos = tokenizer.eos_token
    added = eos is not None and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not text.endswith(eos)
    return ids[:-1] if added else ids


def _tokens(ids: list[int], spans: list[Span]) -> Tokens:
    trained: list[bool] = []
    for start, end in spans:
        trained += [False] * (start - len(trained)) + [True] * (end - start)
    trained += [False] * (len(ids) - len(trained))
    trained[:1] = [False] * len(trained[:1])
    return Tokens(ids, trained)
