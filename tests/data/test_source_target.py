"""Source and target of an encoder-decoder: which columns they come from, and their tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.data import DataConfig, Overlong, Side, SystemPolicy
from tunecli.config.data_checks import formats_for
from tunecli.config.errors import UserError
from tunecli.config.stage import Task
from tunecli.data.examples import Messages, PromptCompletion, TooLong, Unusable
from tunecli.data.formats import FORMATS, choose_format
from tunecli.data.mixture import build
from tunecli.data.prompts import raw_prompt
from tunecli.data.tokenize import tokenize
from tunecli.data.tokens import Encoding
from tunecli.models.builtin import byte_seq2seq_tokenizer

KNOWN = formats_for(Task.seq2seq_lm)
OPTIONS = {"task": Task.seq2seq_lm, "max_length": 32, "max_target_length": 16}
V1, V2 = 1_000_000_000, 1_000_000_001


@pytest.fixture(scope="module")
def t5() -> PreTrainedTokenizerBase:
    return byte_seq2seq_tokenizer()


@pytest.fixture(scope="module")
def bart() -> PreTrainedTokenizerBase:
    """One that begins its texts too."""
    tokenizer = byte_seq2seq_tokenizer()
    ends = [("<s>", tokenizer.unk_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ends
    )
    return tokenizer


def sides(example, tokenizer: PreTrainedTokenizerBase, **options) -> tuple[list[int], list[int], bool]:
    (found,) = tokenize(example, tokenizer, Encoding(**OPTIONS | options))
    (start,) = found.parts
    assert found.spans == [(start, len(found.input_ids))]
    return found.input_ids[:start], found.input_ids[start:], found.truncated


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("pair", [("Hello there", "hi"), ("今天天气很好", "好")])
def test_both_sides_are_what_transformers_makes_of_them(family: str, pair: tuple[str, str], request) -> None:
    tokenizer = request.getfixturevalue(family)
    source, target = pair
    read, written, truncated = sides(PromptCompletion(source, target), tokenizer)
    assert read == tokenizer(source)["input_ids"]
    assert written == tokenizer(text_target=target)["input_ids"]
    assert written[-1] == tokenizer.eos_token_id and not truncated


def test_a_tokenizer_that_ends_nothing_gets_an_end_for_the_target(t5) -> None:
    plain = byte_seq2seq_tokenizer()
    plain.backend_tokenizer.post_processor = processors.ByteLevel()
    read, written, _ = sides(PromptCompletion("ab", "c"), plain)
    assert read == t5("ab", add_special_tokens=False)["input_ids"]
    assert written == t5("c")["input_ids"]


def test_cut_sides_keep_their_ends(bart) -> None:
    example = PromptCompletion("0123456789" * 4, "abcdefghij" * 3)
    read, written, truncated = sides(example, bart)
    assert (len(read), len(written)) == (32, 16) and truncated
    text = example.prompt[:30]
    assert read == bart(text)["input_ids"]
    assert written == bart(example.completion[:14])["input_ids"]
    left, same, _ = sides(example, bart, truncation_side=Side.left)
    assert left == bart(example.prompt[-30:])["input_ids"]
    assert same == written  # a target is read from its beginning


def test_one_cut_side_is_enough_to_count_as_cut(t5) -> None:
    assert sides(PromptCompletion("a" * 31, "b" * 15), t5)[2] is False
    assert sides(PromptCompletion("a" * 32, "b" * 15), t5)[2] is True
    assert sides(PromptCompletion("a" * 31, "b" * 16), t5)[2] is True


@pytest.mark.parametrize(
    ("source", "target", "fix"), [(32, 3, "data.max_length=33"), (3, 16, "stage.max_target_length=17")]
)
def test_long_rows_can_be_left_out(t5, source: int, target: int, fix: str) -> None:
    with pytest.raises(TooLong) as error:
        sides(PromptCompletion("a" * source, "b" * target), t5, overlong=Overlong.drop)
    assert error.value.fix.startswith(f"set {fix} or more")


def test_virtual_tokens_belong_to_the_source(bart) -> None:
    virtual = {"before": (V1,), "between": (V2,)}
    read, written, truncated = sides(PromptCompletion("ab", "c"), bart, **virtual)
    a, b = bart("ab", add_special_tokens=False)["input_ids"]
    assert read == [bart.unk_token_id, V1, a, b, V2, bart.eos_token_id]
    assert written == bart(text_target="c")["input_ids"] and not truncated
    assert sides(PromptCompletion("a" * 30, "c"), bart, **virtual)[2]
    assert raw_prompt("ab", bart, Encoding(**OPTIONS, **virtual)) == read


def test_a_question_and_its_answer_are_source_and_target(t5) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    expected = sides(PromptCompletion("a", "b"), t5)
    assert sides(Messages(messages), t5) == expected
    system = [{"role": "system", "content": "s"}, *messages]
    assert sides(Messages(system), t5, system=SystemPolicy.drop) == expected
    for more in (system, messages * 2, messages[:1]):
        with pytest.raises(Unusable, match="an encoder-decoder reads one text"):
            sides(Messages(more), t5)


def test_empty_targets_and_sources_are_refused() -> None:
    with pytest.raises(Unusable, match="nothing to learn"):
        FORMATS["seq2seq"]({"source": "a", "target": " "})
    with pytest.raises(Unusable, match="'source' is blank"):
        FORMATS["seq2seq"]({"source": " ", "target": "a"})


@pytest.mark.parametrize(
    ("columns", "source", "target"),
    [
        (("source", "target"), "source", "target"),
        (("article", "highlights", "id"), "article", "highlights"),
        (("document", "summary", "id"), "document", "summary"),
        (("dialogue", "summary"), "dialogue", "summary"),
        (("text", "summary"), "text", "summary"),
        (("input", "target"), "input", "target"),
        (("Text", " Summary"), "Text", " Summary"),
    ],
)
def test_the_columns_tell_the_format(columns: tuple[str, ...], source: str, target: str) -> None:
    row = {name: f"of {name}" for name in columns}
    found = choose_format("auto", {}, row, KNOWN)
    assert found.name == "seq2seq" and found.detected
    assert found(row) == PromptCompletion(f"of {source}", f"of {target}")


def test_rows_of_other_formats_are_read_too() -> None:
    assert choose_format("auto", {}, {"prompt": "a", "completion": "b"}, KNOWN).name == "prompt_completion"
    assert choose_format("auto", {}, {"instruction": "a", "input": "", "output": "b"}, KNOWN).name == "alpaca"
    with pytest.raises(UserError, match=r"data\.columns\.source=COLUMN data\.columns\.target=COLUMN"):
        choose_format("auto", {}, {"title": "a", "body": "b"}, KNOWN)
    with pytest.raises(UserError, match="no format reads these columns"):  # a chat model is not asked in this way
        choose_format("auto", {}, {"source": "a", "target": "b"})


def test_a_source_can_be_written_from_several_columns(tmp_path: Path, t5, monkeypatch) -> None:
    monkeypatch.setenv("TUNECLI_CACHE", str(tmp_path))
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "who?", "context": "me", "answers": "I"}) + "\n")
    columns = {"source": "question: {question} context: {context}", "target": "answers"}
    data = DataConfig(path=str(file), format="seq2seq", columns=columns)
    train, _ = build(data, t5, Encoding(**OPTIONS | {"max_length": 64}), show_progress=False)
    example = train[0]
    assert t5.decode(example.input_ids[: example.parts[0]]) == "question: who? context: me</s>"
    assert t5.decode(example.input_ids[example.parts[0] :]) == "I</s>"
    assert train.trained_counts.tolist() == [2]


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["data.overlong=split"], "data.overlong"),
        (["data.chat_template=chatml"], "data.chat_template"),
        (["data.system=add", "data.system_prompt=x"], "data.system"),
        (["model.attention=packed"], "model.attention"),
        (["stage.max_target_length=1"], "stage.max_target_length"),
        (["data.format=messages"], "data.format"),
        (["data.format=columns"], "data.format"),
        (["peft.lora.init_lora_weights=eva"], "peft.lora.init_lora_weights"),
        (["peft=p_tuning", "peft.p_tuning.template='{v3} {text} It is {label}'"], "peft.p_tuning.template"),
        (["peft=p_tuning", "peft.p_tuning.template='{v3} {text} It is {mask}'"], "peft.p_tuning.template"),
        (["evaluation.bleu_tokenize=cn"], "evaluation.bleu_tokenize"),
        (["evaluation.bleu=0", "evaluation.bleu_tokenize=zh"], "evaluation.bleu_tokenize"),
        (["evaluation={exact_match: 0, rouge: 0, bleu: 0, chrf: 0, num_beams: 4}"], "evaluation.num_beams"),
        (["evaluation.rouge=0", "train.best_metric=eval/rougeL"], "train.best_metric"),
    ],
)
def test_what_makes_no_sense_is_refused_early(words: list[str], where: str) -> None:
    problems = find_problems(compose_run("smoke_seq2seq", words).config)
    assert [problem.where for problem in problems] == [where]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["peft=p_tuning", "peft.p_tuning.template='{v3} {prompt} {v2} {completion}'"],
        ["data.format=alpaca", "data.overlong=drop"],
        ["evaluation.num_beams=4", "evaluation.bleu_tokenize=zh", "train.best_metric=eval/rougeL"],
    ],
)
def test_what_makes_sense_is_not(words: list[str]) -> None:
    assert find_problems(compose_run("smoke_seq2seq", words).config) == []
