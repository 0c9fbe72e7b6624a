"""Rows of answers with what is thought of them, and of prompts: what formats and tokenisation make of them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from tunecli.config.data import Overlong, Side
from tunecli.config.data_checks import formats_for
from tunecli.config.model import ModelConfig
from tunecli.config.stage import Rows, Task
from tunecli.data.batching import Batching, collate
from tunecli.data.encode import RowEncoder
from tunecli.data.encoded import Encoded
from tunecli.data.examples import Feedback, Messages, Pair, Prompt, PromptCompletion, Scored, Text, TooLong, Unusable
from tunecli.data.feed import window_of
from tunecli.data.formats import Format, choose_format
from tunecli.data.reading import AnswerTokens, Place, WholeAnswers, sides_of
from tunecli.data.rows import Row
from tunecli.data.tokenize import tokenize
from tunecli.data.tokens import Encoding
from tunecli.models.load import load_tokenizer

Q = {"role": "user", "content": "How was it?"}
GOOD, BAD = {"role": "assistant", "content": "Great fun"}, {"role": "assistant", "content": "Dull"}
CHOSEN, REJECTED = Messages([Q, GOOD], context=1), Messages([Q, BAD], context=1)
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How was it?\n\nAssistant:"


def tokenizer(name: str):
    return load_tokenizer(ModelConfig(path=f"builtin:{name}"))


def read(values: dict[str, Any], rows: Rows = Rows.judged) -> Any:
    return choose_format("auto", {}, values, formats_for(rows))(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"chosen": [Q, GOOD], "rejected": [Q, BAD]}, Pair(CHOSEN, REJECTED)),
        ({"prompt": "How was it?", "chosen": [Q, GOOD], "rejected": [Q, BAD]}, Pair(CHOSEN, REJECTED)),
        ({"prompt": [Q], "chosen": [GOOD], "rejected": [BAD], "margin": 2}, Pair(CHOSEN, REJECTED, margin=2.0)),
        ({"prompt": [Q], "chosen": "Great fun", "rejected": "Dull"}, Pair(CHOSEN, REJECTED)),
        ({"prompt": "How was it?", "chosen": [GOOD], "rejected": [BAD]}, Pair(CHOSEN, REJECTED)),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0.75},
            Pair(PromptCompletion("p", "a"), PromptCompletion("p", "b"), probability=0.75),
        ),
        (
            {"chosen": f"{HH} Great", "rejected": f"{HH} Dull"},
            Pair(PromptCompletion(HH, " Great"), PromptCompletion(HH, " Dull")),
        ),
        ({"chosen": "a", "rejected": "b"}, Pair(PromptCompletion("", "a"), PromptCompletion("", "b"))),
        ({"prompt": "p", "completion": "a", "score": "1.5"}, Scored(PromptCompletion("p", "a"), 1.5)),
        ({"prompt": [Q], "response": "Great fun", "score": 1}, Scored(CHOSEN, 1.0)),
        ({"messages": [Q, GOOD], "score": -1}, Scored(CHOSEN, -1.0)),
        ({"text": "a", "score": 0}, Scored(Text("a"), 0.0)),
    ],
)
def test_what_is_judged_is_told_from_the_columns(values: dict[str, Any], expected: Pair | Scored):
    assert read(values) == expected


def test_feedback_and_prompts_are_told_from_the_columns():
    row = {"prompt": [Q], "completion": [GOOD], "label": True}
    assert read(row, Rows.feedback) == Feedback(CHOSEN, True)
    assert read({"prompt": "p", "response": "a", "label": 0}, Rows.feedback) == Feedback(
        PromptCompletion("p", "a"), False
    )
    assert read({"question": "1 + 1?", "answer": 2}, Rows.prompts) == Prompt(
        "1 + 1?", {"question": "1 + 1?", "answer": 2}
    )
    assert read({"prompt": [Q], "rating": 0.5}, Rows.prompts) == Prompt([Q], {"rating": 0.5})


PAIRS = {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (PAIRS | {"rejected": [GOOD]}, "identical"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "identical"),
        ({"prompt": "p", "chosen": "a", "rejected": " "}, "blank"),
        (PAIRS | {"rejected": [BAD | {"content": ""}]}, "blank"),
        ({"chosen": f"{HH} Great", "rejected": f"{HH}"}, "blank"),
        (PAIRS | {"margin": -1}, "margin is -1"),
        (PAIRS | {"margin": math.nan}, "no finite number"),
        (PAIRS | {"margin": "large"}, "no finite number"),
        (PAIRS | {"probability": 1.5}, "probability is 1.5"),
        (PAIRS | {"probability": math.inf}, "no finite number"),
        ({"chosen": [Q, GOOD], "rejected": [Q | {"content": "And?"}, BAD]}, "different prompts"),
        ({"chosen": f"{HH} Great", "rejected": "\n\nHuman: Other\n\nAssistant: Dull"}, "different prompts"),
        (PAIRS | {"rejected": "Dull"}, "two kinds"),
        ({"prompt": "p", "completion": "a", "score": math.inf}, "no finite number"),
        ({"prompt": "p", "completion": "a", "score": None}, "no finite number"),
        ({"messages": [Q], "score": 1}, "no assistant's"),
        ({"prompt": "p", "completion": " ", "score": 1}, "blank"),
    ],
)
def test_rows_that_cannot_be_judged_are_refused(values: dict[str, Any], said: str):
    with pytest.raises(Unusable, match=said):
        read(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [({"prompt": " "}, "blank"), ({"prompt": [Q, GOOD]}, "ends with an assistant"), ({"prompt": 3}, "neither text")],
)
def test_rows_that_ask_nothing_are_refused(values: dict[str, Any], said: str):
    with pytest.raises(Unusable, match=said):
        read(values, Rows.prompts)


def options(task: Task = Task.sequence_classification, rows: Rows = Rows.judged, **changes: Any) -> Encoding:
    return Encoding(task=task, rows=rows, max_target_length=32, **changes)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_bert", "tiny_t5"])
@pytest.mark.parametrize("kind", [CHOSEN, PromptCompletion("How was it?", " Great fun")])
def test_each_side_of_a_pair_is_tokenized_as_it_is_alone(name: str, kind: Messages | PromptCompletion):
    other = REJECTED if isinstance(kind, Messages) else PromptCompletion("How was it?", " Dull")
    (pair,) = tokenize(Pair(kind, other, 1.5, 0.75), tokenizer(name), options())
    (alone,) = tokenize(Scored(kind, 2.0), tokenizer(name), options())
    (other_alone,) = tokenize(Scored(other, 2.0), tokenizer(name), options())
    assert pair.input_ids == alone.input_ids + other_alone.input_ids
    start = len(alone.input_ids)
    assert pair.parts == (start,)
    moved = [(first + start, end + start) for first, end in other_alone.spans]
    assert pair.spans == [*alone.spans, *moved]
    assert pair.numbers == (1.5, 0.75) and alone.numbers == (2.0,)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_the_completion_is_trained_and_ends_the_text(name: str):
    words = tokenizer(name)
    (pair,) = tokenize(Pair(CHOSEN, REJECTED), words, options(Task.causal_lm))
    assert [words.decode(pair.input_ids[start:end]) for start, end in pair.spans] == [
        f"Great fun{words.eos_token}",
        f"Dull{words.eos_token}",
    ]
    assert pair.spans[0][1] == pair.parts[0] and pair.spans[1][1] == len(pair.input_ids)
    first, second = pair.spans[0][0], pair.spans[1][0] - pair.parts[0]
    assert first == second and pair.input_ids[:first] == pair.input_ids[pair.parts[0] :][:second]


def test_an_encoder_decoder_reads_a_source_and_writes_a_target_on_both_sides():
    words = tokenizer("tiny_t5")
    (pair,) = tokenize(Pair(CHOSEN, REJECTED), words, options(Task.seq2seq_lm))
    borders = (0, *pair.parts, len(pair.input_ids))
    texts = [words.decode(pair.input_ids[a:b]) for a, b in zip(borders, borders[1:], strict=False)]
    assert texts == ["How was it?</s>", "Great fun</s>", "How was it?</s>", "Dull</s>"]


LONG = PromptCompletion("one two three four five six seven", " eight nine ten")
LONGER = PromptCompletion("one two three four five six seven", " eight nine ten eleven twelve")


def test_a_pair_that_is_cut_keeps_a_shared_prompt():
    words = tokenizer("tiny_llama")
    (whole,) = tokenize(Pair(LONG, LONGER), words, options())
    longest = len(whole.input_ids) - whole.parts[0]
    cut = options(max_length=longest - 10, truncation_side=Side.left)
    (pair,) = tokenize(Pair(LONG, LONGER), words, cut)
    assert pair.truncated and len(pair.input_ids) == len(whole.input_ids) - 20
    first, second = pair.spans[0][0], pair.spans[1][0] - pair.parts[0]
    assert first == second and pair.input_ids[:first] == pair.input_ids[pair.parts[0] :][:second]


def test_what_is_the_same_within_the_length_is_left_out():
    with pytest.raises(TooLong, match="the same within"):
        tokenize(Pair(LONG, LONGER), tokenizer("tiny_llama"), options(max_length=46))
    with pytest.raises(TooLong):
        tokenize(Pair(LONG, LONGER), tokenizer("tiny_llama"), options(max_length=46, overlong=Overlong.drop))


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_t5"])
def test_a_prompt_is_what_an_answer_follows(name: str):
    words = tokenizer(name)
    task = Task.causal_lm if name == "tiny_llama" else Task.seq2seq_lm
    (prompt,) = tokenize(Prompt([Q], {"answer": "x"}), words, options(task, Rows.prompts))
    (pair,) = tokenize(Pair(CHOSEN, REJECTED), words, options(task, Rows.pairs))
    assert prompt.input_ids == pair.input_ids[: pair.spans[0][0]] and prompt.spans == []
    assert json.loads(prompt.columns) == {"answer": "x", "prompt": [Q]}


def test_a_long_prompt_loses_its_start_or_is_left_out():
    words = tokenizer("tiny_llama")
    (whole,) = tokenize(Prompt("a long question"), words, options(Task.causal_lm, Rows.prompts))
    cut = options(Task.causal_lm, Rows.prompts, max_length=5, truncation_side=Side.left)
    (short,) = tokenize(Prompt("a long question"), words, cut)
    assert short.input_ids == whole.input_ids[-5:] and short.truncated
    with pytest.raises(TooLong):
        tokenize(Prompt("a long question"), words, options(Task.causal_lm, Rows.prompts, max_length=5))


def examples_of(rows: list[dict[str, Any]], name: str, encoding: Encoding):
    encoder = RowEncoder(Format("preference"), tokenizer(name), encoding)
    pairs = [row for row in rows if "chosen" in row]
    window = window_of(encoder([Row("a.jsonl", i, row) for i, row in enumerate(pairs)]), "a")
    scored = RowEncoder(Format("scored"), tokenizer(name), encoding)
    others = window_of(scored([Row("a.jsonl", i, row) for i, row in enumerate(rows) if row not in pairs]), "a")
    window.examples += others.examples
    window.sources += others.sources
    window.adapters += others.adapters
    window.origins += others.origins
    return window


ROWS = [
    {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD], "margin": 2},
    {"prompt": "p", "chosen": "aaaa", "rejected": "b", "probability": 0.5},
    {"prompt": "p", "completion": "aaa", "score": 3},
]


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_holds_pairs_and_scored_texts_side_by_side(packed: bool):
    window = examples_of(ROWS, "tiny_llama", options())
    how = Batching(
        num_processes=1, process_index=0, rows=8, tokens=None, packed=packed, pad_token_id=0,
        read=WholeAnswers(place=Place.last),
    )  # fmt: skip
    batch = collate(window, range(3), how)
    assert batch.candidates.tolist() == [0, 1, 2, 3, 4] and batch.questions.tolist() == [0, 0, 1, 1, 2]
    assert batch.right.tolist() == [0, 2, 4]
    assert batch.margins.tolist() == [2, 0, 0] and batch.probabilities.tolist() == [1, 0.5, 1]
    assert batch.scores[2] == 3 and batch.scores[:2].isnan().all()
    texts = [each.input_ids[side] for each in window.examples for side in sides_of(each)]
    last = batch.input_ids.flatten()[batch.kept]
    assert torch.equal(last, torch.stack([text[-1] for text in texts]))
    sequences = len(batch.cu_seq_lens) - 1 if packed else len(batch.input_ids)
    assert sequences == 5 and len(batch.weights) == len(batch.sources) == 3


@pytest.mark.parametrize("packed", [False, True])
def test_the_tokens_of_completions_are_what_follows_the_kept_places(packed: bool):
    window = examples_of(ROWS[:2], "tiny_llama", options(Task.causal_lm, Rows.pairs))
    how = Batching(
        num_processes=1, process_index=0, rows=8, tokens=None, packed=packed, pad_token_id=0, read=AnswerTokens()
    )
    batch = collate(window, range(2), how)
    assert torch.equal(batch.input_ids.flatten()[batch.kept + 1], batch.targets)
    wanted = [each.input_ids[start:end] for each in window.examples for start, end in each.spans.tolist()]
    assert torch.equal(batch.targets, torch.cat(wanted))
    assert torch.bincount(batch.candidates).tolist() == [len(each) for each in wanted]


def test_both_sides_of_an_encoder_decoder_stand_in_rows_of_their_own():
    window = examples_of(ROWS[:2], "tiny_t5", options(Task.seq2seq_lm, Rows.pairs))
    how = Batching(
        num_processes=1, process_index=0, rows=8, tokens=None, packed=False, pad_token_id=0,
        read=AnswerTokens(shift=lambda target: torch.cat([torch.tensor([0]), target[:-1]])),
    )  # fmt: skip
    batch = collate(window, range(2), how)
    assert len(batch.input_ids) == len(batch.decoder_input_ids) == 4
    parts = [each.input_ids[part] for each in window.examples for part in sides_of(each)]
    for row, (source, target) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        assert torch.equal(batch.input_ids[row, : len(source)], source)
        assert torch.equal(batch.decoder_input_ids[row, 1 : len(target)], target[:-1])
        assert torch.equal(batch.targets[batch.candidates == row], target)
        assert batch.kept[batch.candidates == row][0] == row * batch.decoder_input_ids.shape[1]


def test_encoders_tell_a_prompt_from_its_completion():
    window = examples_of(ROWS[:1], "tiny_bert", options())
    reading = WholeAnswers(place=Place.first, token_types=True)(window[0], "a")
    sides = [reading.token_types[side].tolist() for side in sides_of(window[0])]
    assert [sum(side) for side in sides] == [len("Great fun") + 1, len("Dull") + 1]


def test_a_filler_counts_for_nothing_and_numbers_are_kept_apart():
    example = Encoded.of(np.arange(4), np.array([1, 2, 3, 4]), (), (2,), (1.0, 1.0), "")
    answers = WholeAnswers(place=Place.last)(example, "a").answers
    assert answers is not None and answers.scores is not None and answers.scores.isnan().all()
