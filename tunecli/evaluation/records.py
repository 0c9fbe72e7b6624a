"""Predictions as lines of predictions.jsonl: where a row stands, what the model read, what it said, how sure it was,
and, where that is known, what it should have said."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunecli.config.evaluation import EvaluationConfig
from tunecli.data.batching import Examples
from tunecli.data.encoded import Encoded
from tunecli.data.examples import Example, Labelled, Messages, Pair, PromptCompletion, Scored, Tagged, Text
from tunecli.data.labels import Labels
from tunecli.data.reading import PAIR
from tunecli.data.text_encoder import TextEncoder
from tunecli.evaluation import texts
from tunecli.evaluation.kinds import Kind
from tunecli.evaluation.metrics import softmax
from tunecli.evaluation.predictions import of_words, whole_texts

Record = dict[str, Any]
Contents = Callable[[str], Example | None]
"""From file and row to what the row holds; None where it can no longer be read."""
Words = Callable[[tuple[str, ...]], list[int]]
"""From the words of a text to the numbers of those that the model has a token for."""
DIGITS = 6
"""Of probabilities."""


def place(origin: str) -> Record:
    """`train.jsonl row 17` -> file and row."""
    file, _, row = origin.rpartition(" row ")
    return {"file": file, "row": int(row)} if row.isdecimal() else {"file": origin, "row": None}


def of_texts(
    logits: Sequence[np.ndarray],
    examples: Examples,
    labels: Labels,
    kind: Kind,
    contents: Contents,
    *,
    expected: bool = True,
    groups: Sequence[Sequence[int]] | None = None,
) -> list[Record]:
    """One for each text.

    Args:
        expected: the examples have labels of their own.
        groups: examples that are one question, to several adapters, with one answer; None: each is a question.
    """
    records = []
    for i in range(len(logits)) if groups is None else [group[0] for group in groups]:
        each = logits[i]
        source = examples.names[int(examples.sources[i])]
        own = labels.range_of(source)
        said = _said(each[0, own.start : own.stop], labels.of(source), kind)
        if expected:
            said = {"expected": _expected(examples[i], kind)} | said
        records.append(_start(examples, i, source, labels) | _text(contents(examples.origin(i))) | said)
    return records


def of_judged(
    scores: Sequence[np.ndarray],
    examples: Examples,
    contents: Contents,
    *,
    expected: bool = True,
) -> list[Record]:
    """One for each pair, with what each text is worth to the model, and for each text that stands for itself.

    Args:
        scores: [texts, 1] of each example.
        expected: scores that texts should have, where rows hold them, count.
    """
    records = []
    for i, each in enumerate(scores):
        numbers, origin = examples[i].numbers, examples.origin(i)
        record = _start(examples, i, examples.names[int(examples.sources[i])]) | _judged_texts(contents(origin))
        if len(numbers) == PAIR:
            record |= {"chosen": float(each[0, 0]), "rejected": float(each[1, 0])}
            record |= {"margin": numbers[0], "probability": numbers[1]}
        else:
            known = expected and math.isfinite(numbers[0])
            record |= ({"expected": numbers[0]} if known else {}) | {"predicted": float(each[0, 0])}
        records.append(record)
    return records


def lead(record: Record) -> float | None:
    """By how much the preferred text of a pair is ahead; None where neither is preferred, or there is one text."""
    if "chosen" not in record or record["probability"] == 0.5:
        return None
    difference = record["chosen"] - record["rejected"]
    return difference if record["probability"] > 0.5 else -difference


def of_tags(
    logits: Sequence[np.ndarray],
    examples: Examples,
    labels: Labels,
    contents: Contents,
    words: Words,
    *,
    expected: bool = True,
    from_the_left: bool = True,
) -> tuple[list[Record], list[list[int]]]:
    """One for each text, whose windows come together; and the examples that each is made of.

    Args:
        from_the_left: of a text that was cut, the first words were read; else the last.
    """
    records = []
    windows = whole_texts(examples, range(len(examples)))
    for window in windows:
        source = examples.names[int(examples.sources[window[0]])]
        own, names = labels.range_of(source), labels.of(source)
        probabilities = np.concatenate(
            [softmax(of_words(logits[i], examples[i])[:, own.start : own.stop]) for i in window]
        )
        content = contents(examples.origin(window[0]))
        given = [tag for i in window for tag in examples[i].labels]
        text = content.words if isinstance(content, Tagged) else None
        read = _read(text, len(probabilities), words, from_the_left)
        size = len(text) if text is not None else len(probabilities)
        predicted: list[str | None] = [None] * size
        sure: list[float | None] = [None] * size
        tags: list[str | None] = list(content.tags) if isinstance(content, Tagged) else [None] * size
        for at, row, tag in zip(read, probabilities, given, strict=True):
            predicted[at], sure[at], tags[at] = names[int(row.argmax())], _rounded(row.max()), tag
        said: Record = {"predicted": predicted, "probability": sure}
        if expected:
            said = {"expected": tags} | said
        start = _start(examples, window[0], source, labels)
        records.append(start | ({"words": list(text)} if text is not None else {}) | said)
    return records, windows


def of_answers(
    examples: Examples,
    groups: Sequence[Sequence[int]],
    right: dict[str, list[bool]],
    samples: Sequence[dict[str, str]],
    prompt_and_answer: Callable[[int], tuple[str, str]],
) -> list[Record]:
    """One for each question.

    Args:
        groups: the examples of each question.
        right: metric -> whether the first questions were answered rightly.
        samples: what was generated, for the first questions.
    """
    records = []
    for number, group in enumerate(groups):
        prompt, answer = prompt_and_answer(group[0])
        source = examples.names[int(examples.sources[group[0]])]
        record = _start(examples, group[0], source) | {"prompt": prompt, "expected": answer}
        records.append(record)
        if number < len(samples):
            record["predicted"] = samples[number]["answer"]
        for name, each in right.items():
            if number < len(each):
                record[name] = each[number]
    return records


def add_text_scores(records: Sequence[Record], config: EvaluationConfig) -> None:
    """ROUGE of each of the first answers, and what BLEU and chrF add up over answers (`counts`)."""
    answered = [record for record in records if "predicted" in record]

    def first(number: int) -> tuple[list[str], list[str]]:
        return [record["predicted"] for record in answered[:number]], [r["expected"] for r in answered[:number]]

    if number := config.rouge:
        for record, scores in zip(answered, texts.rouge_of_each(*first(number)), strict=False):
            record |= scores
    if number := config.bleu:
        for record, counts in zip(answered, texts.bleu_counts(*first(number), config.bleu_tokenize), strict=False):
            record.setdefault("counts", {})["bleu"] = counts
    if number := config.chrf:
        for record, counts in zip(answered, texts.chrf_counts(*first(number)), strict=False):
            record.setdefault("counts", {})["chrf"] = counts


def of_documents(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> list[Record]:
    """One for each document, or each window of one."""
    return [
        _start(examples, i, examples.names[int(examples.sources[i])])
        | {"text": tokenizer.decode(examples[i].input_ids, skip_special_tokens=True)}
        for i in range(len(examples))
    ]


def add_losses(records: Sequence[Record], losses: np.ndarray, windows: Sequence[Sequence[int]] | None = None) -> None:
    """`losses`: [examples, 2], see `tunecli.engine.stage.Evaluation`. `windows`: the examples of each record."""
    for number, record in enumerate(records):
        total, units = losses[list(windows[number])].sum(0) if windows is not None else losses[number]
        record |= {"loss": float(total), "units": float(units)}


def add_adapters(
    records: Sequence[Record],
    examples: Examples,
    names: Sequence[str],
    windows: Sequence[Sequence[int]] | None = None,
) -> None:
    """Which adapter each is of, where rows have one of their own; nothing where several answer together.

    Args:
        names: of the adapters, as `examples.adapters` counts them.
        windows: the examples of each record.
    """
    for number, record in enumerate(records):
        own = {int(examples.adapters[i]) for i in (windows[number] if windows is not None else [number])}
        if len(own) == 1 and min(own) >= 0:
            record["adapter"] = names[min(own)]


def _start(examples: Examples, i: int, source: str, labels: Labels | None = None) -> Record:
    """With its task, where the rows or the model have several."""
    several = len(examples.names) > 1 or (labels is not None and len(labels.by_task) > 1)
    return place(examples.origin(i)) | ({"task": source} if several else {})


def _text(content: Example | None) -> Record:
    if not isinstance(content, Labelled):
        return {}
    return {"text": content.text} | ({"text_pair": content.pair} if content.pair is not None else {})


def _judged_texts(content: Example | None) -> Record:
    """The prompt, and the answer or both of them, as text."""
    if isinstance(content, Pair):
        prompt, chosen = _prompt_and_completion(content.chosen)
        return {"prompt": prompt, "chosen_text": chosen, "rejected_text": _prompt_and_completion(content.rejected)[1]}
    if isinstance(content, Scored):
        content = content.text
    if isinstance(content, Messages | PromptCompletion):
        prompt, completion = _prompt_and_completion(content)
        return {"prompt": prompt, "completion": completion}
    return {"text": content.text} if isinstance(content, Text) else {}


def _prompt_and_completion(written: Messages | PromptCompletion) -> tuple[str, str]:
    if isinstance(written, PromptCompletion):
        return written.prompt, written.completion
    said = [message.get("content") or "" for message in written.messages]
    last = max(i for i, message in enumerate(written.messages) if message["role"] == "assistant")
    start = written.context or last
    return "\n".join(said[:start]), "\n".join(said[start:])


def _expected(example: Encoded, kind: Kind) -> Any:
    if kind is Kind.regression:
        return float(example.labels[0])
    return list(example.labels) if kind is Kind.multi_label else example.labels[0]


def _said(logits: np.ndarray, names: Sequence[str], kind: Kind) -> Record:
    """`logits`: [labels]"""
    if kind is Kind.regression:
        return {"predicted": float(logits[0])}
    if kind is Kind.multi_label:
        sure = 1 / (1 + np.exp(-logits.astype(np.float64)))
        chosen = [name for name, logit in zip(names, logits, strict=True) if logit > 0]
        return {"predicted": chosen, "probabilities": _by_name(names, sure)}
    sure = softmax(logits)
    best = int(logits.argmax())
    return {"predicted": names[best], "probability": _rounded(sure[best]), "probabilities": _by_name(names, sure)}


def _by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: _rounded(value) for name, value in zip(names, values, strict=True)}


def _rounded(value: Any) -> float:
    return round(float(value), DIGITS)


def _read(text: tuple[str, ...] | None, number: int, words: Words, from_the_left: bool) -> list[int]:
    """Which words of `text` the `number` predictions are for."""
    if text is None or len(text) == number:
        return list(range(number))
    known = words(text)
    return known[:number] if from_the_left else known[len(known) - number :]


def prompt_and_answer(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> Callable[[int], tuple[str, str]]:
    """The last question of an example as the model sees it, and its right answer."""
    from tunecli.evaluation.answers import prompt_of, question, text_of

    encoder = TextEncoder(tokenizer)

    def both(index: int) -> tuple[str, str]:
        asked = question(examples, index)
        return prompt_of(asked.prompt, encoder), text_of(asked.answer, tokenizer)

    return both
