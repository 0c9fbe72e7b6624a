"""Texts and words with labels: tokens as transformers has them, words found again, labels in a fixed order."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tunecli.config.data import DataConfig, Overlong, Side, SourceConfig
from tunecli.config.errors import UserError
from tunecli.config.stage import ClassifyConfig, ProblemType, Subwords, TagConfig, Task
from tunecli.data.examples import Labelled, Tagged, TooLong, Unusable
from tunecli.data.formats.labelled import labels_of
from tunecli.data.labels import class_weights, ordered, run_labels
from tunecli.data.mixture import build
from tunecli.data.tokenize import tokenize
from tunecli.data.tokens import Encoding

CORPUS = [
    "The capital of France is Paris. What is the capital of Japan? Answer in one word: hello, hello world!",
    "system user assistant model Question: Answer: the answer is forty-two; a list of words, and more words.",
    "中国的首都是北京。你好，世界！ 😀 👋 naïve café",
]
TEXTS = ["The capital of France is Paris.", "你好，世界！ naïve café 😀", "hello"]
SENTENCES = [
    (["The", "capital", "of", "France", "is", "Paris", "."], ["O", "O", "O", "B-LOC", "O", "B-LOC", "O"]),
    (["naïve", "café", "😀", "can't", "forty-two"], ["O", "B-X", "O", "O", "I-X"]),
    (list("中国的首都是北京"), ["B-LOC", "I-LOC", "O", "O", "O", "O", "B-LOC", "I-LOC"]),
]


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's kind."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_level() -> PreTrainedTokenizerFast:
    """RoBERTa's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special)
    )
    ends = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """T5's kind."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>")
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


FAMILIES = {"wordpiece": wordpiece, "byte level": byte_level, "sentencepiece": sentencepiece}


@pytest.fixture(params=list(FAMILIES))
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return FAMILIES[request.param]()


def one(example: Labelled | Tagged, tokenizer: PreTrainedTokenizerBase, **options):
    (item,) = tokenize(example, tokenizer, Encoding(**options))
    return item


class TestTexts:
    @pytest.mark.parametrize("text", TEXTS)
    def test_the_tokens_are_those_of_the_tokenizer(self, tokenizer, text: str):
        item = one(Labelled(text, labels=("a",)), tokenizer)
        assert (item.input_ids, item.labels, item.parts) == (tokenizer(text)["input_ids"], ("a",), ())

    @pytest.mark.parametrize("pair", [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[0]), (TEXTS[2], TEXTS[2])])
    def test_pairs_too_and_where_the_second_begins(self, tokenizer, pair: tuple[str, str]):
        item = one(Labelled(*pair, labels=("a",)), tokenizer)
        found = tokenizer(*pair, return_token_type_ids=True)
        assert item.input_ids == found["input_ids"]
        (start,) = item.parts
        second = tokenizer(pair[1], add_special_tokens=False)["input_ids"]
        assert item.input_ids[start : start + len(second)] == second
        if 1 in found["token_type_ids"]:
            assert start == found["token_type_ids"].index(1)

    @pytest.mark.parametrize("max_length", [8, 9, 12])
    def test_the_longer_text_of_a_pair_is_cut_first(self, tokenizer, max_length: int):
        item = one(Labelled(TEXTS[0] * 3, "hello", ("a",)), tokenizer, max_length=max_length)
        expected = tokenizer(TEXTS[0] * 3, "hello", truncation="longest_first", max_length=max_length)["input_ids"]
        assert item.truncated and len(item.input_ids) == len(expected) == max_length
        if len(tokenizer("hello", add_special_tokens=False)["input_ids"]) <= 2:
            assert item.input_ids == expected

    def test_the_side_that_is_cut(self, tokenizer):
        whole = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
        item = one(Labelled(TEXTS[0], labels=("a",)), tokenizer, max_length=8, truncation_side=Side.left)
        inner = [token for token in item.input_ids if token not in tokenizer.all_special_ids]
        assert inner == whole[-len(inner) :]

    def test_virtual_tokens_stand_behind_the_opening_one(self, tokenizer):
        ids = tokenizer(*TEXTS[:2])["input_ids"]
        plain = one(Labelled(*TEXTS[:2], ("a",)), tokenizer)
        item = one(Labelled(*TEXTS[:2], ("a",)), tokenizer, before=(7777, 8888))
        opening = item.input_ids.index(7777)
        assert [token for token in item.input_ids if token < 7777] == ids and opening in (0, 1)
        assert item.parts[0] == plain.parts[0] + 2

    def test_dropped_and_refused(self, tokenizer):
        with pytest.raises(TooLong, match="max_length=5"):
            one(Labelled(TEXTS[0], labels=("a",)), tokenizer, max_length=5, overlong=Overlong.drop)
        with pytest.raises(TooLong):
            one(Labelled(*TEXTS[:2], ("a",)), tokenizer, max_length=3)

    @pytest.mark.parametrize("labels", [(), ("a", "b")])
    def test_one_label_unless_several_are_asked_for(self, tokenizer, labels: tuple[str, ...]):
        with pytest.raises(Unusable, match=f"{len(labels)} labels"):
            one(Labelled("x", labels=labels), tokenizer)
        assert one(Labelled("x", labels=labels), tokenizer, problem_type=ProblemType.multi_label).labels == labels

    @pytest.mark.parametrize("label", ["high", "nan", "inf", ""])
    def test_numbers_are_numbers(self, tokenizer, label: str):
        with pytest.raises(Unusable, match="no number"):
            one(Labelled("x", labels=(label,)), tokenizer, problem_type=ProblemType.regression)


class TestWords:
    @pytest.mark.parametrize(("words", "tags"), SENTENCES)
    def test_each_word_is_found_again_at_its_first_token(self, tokenizer, words: list[str], tags: list[str]):
        item = one(Tagged(tuple(words), tuple(tags)), tokenizer)
        assert item.labels == tuple(tags) and len(item.spans) == len(words)
        assert all(end == start + 1 for start, end in item.spans)
        ids = item.input_ids
        starts = [start for start, _ in item.spans]
        ends = [*starts[1:], len(ids) - 1]
        normal = tokenizer.backend_tokenizer.normalizer or normalizers.Sequence([])
        for word, start, end in zip(words, starts, ends, strict=True):
            inner = [token for token in ids[start:end] if token not in tokenizer.all_special_ids]
            text = tokenizer.decode(inner).replace("##", "").replace(" ", "")
            if tokenizer.unk_token_id not in ids[start:end]:
                assert text == normal.normalize_str(word).replace(" ", "")

    def test_words_as_transformers_split_them(self):
        """With BERT's tokenizer running text and words are the same."""
        tokenizer, (words, tags) = wordpiece(), SENTENCES[0]
        item = one(Tagged(tuple(words), tuple(tags)), tokenizer)
        expected = tokenizer(words, is_split_into_words=True)
        firsts = [expected.word_ids().index(i) for i in range(len(words))]
        assert (item.input_ids, [start for start, _ in item.spans]) == (expected["input_ids"], firsts)

    def test_all_tokens_of_a_word(self, tokenizer):
        words, tags = SENTENCES[0]
        item = one(Tagged(tuple(words), tuple(tags)), tokenizer, label_subwords=Subwords.all)
        covered = [place for start, end in item.spans for place in range(start, end)]
        special = [i for i, token in enumerate(item.input_ids) if token in tokenizer.all_special_ids]
        assert len(item.spans) == len(words) and covered == sorted({*range(len(item.input_ids))} - {*special})

    @pytest.mark.parametrize("overlap", [0, 4, 7])
    @pytest.mark.parametrize("max_length", [12, 19])
    def test_windows_train_each_word_once_and_in_order(self, tokenizer, max_length: int, overlap: int):
        words = [f"w{i}" for i in range(40)]
        options = {"max_length": max_length, "overlong": Overlong.split, "overlap": overlap}
        whole = one(Tagged(tuple(words), tuple(words)), tokenizer)
        items = tokenize(Tagged(tuple(words), tuple(words)), tokenizer, Encoding(**options))
        assert len(items) > 2 and all(len(item.input_ids) <= max_length for item in items)
        assert [label for item in items for label in item.labels] == words
        firsts = {label: whole.input_ids[start] for label, (start, _) in zip(whole.labels, whole.spans, strict=True)}
        for item in items:
            for label, (start, _) in zip(item.labels, item.spans, strict=True):
                assert item.input_ids[start] == firsts[label]

    def test_what_is_cut_off_is_not_trained(self, tokenizer):
        words, tags = SENTENCES[0]
        item = one(Tagged(tuple(words), tuple(tags)), tokenizer, max_length=8)
        assert item.truncated and len(item.labels) < len(words) and item.labels == tuple(tags[: len(item.labels)])

    def test_words_without_a_character_are_passed_over(self):
        words = ("Paris", "\u200d", "hello")  # a joiner, which BERT's tokenizer drops
        item = one(Tagged(words, ("a", "b", "c")), wordpiece())
        assert item.labels == ("a", "c")


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepare(data: DataConfig, task: Task = Task.sequence_classification):
    return build(data, byte_level(), Encoding(task=task), show_progress=False)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TUNECLI_CACHE", str(tmp_path / "cache"))


class TestLabels:
    ROWS = [{"text": f"text {i}", "label": label} for i, label in enumerate(["b", "c", "a", "b", "b"])]

    @pytest.mark.parametrize("seed", range(4))
    def test_their_order_never_depends_on_that_of_the_rows(self, tmp_path: Path, seed: int):
        rows = random.Random(seed).sample(self.ROWS, len(self.ROWS))
        data = DataConfig(path=write(tmp_path / "rows.jsonl", rows))
        assert run_labels(data, ClassifyConfig(), *prepare(data)).names == ["a", "b", "c"]

    def test_numbers_are_ordered_by_size_and_given_labels_as_given(self, tmp_path: Path):
        assert ordered(["10", "9", "-1"]) == ["-1", "9", "10"] and ordered(["10", "9", "x"]) == ["10", "9", "x"]
        data = DataConfig(path=write(tmp_path / "rows.jsonl", self.ROWS))
        assert run_labels(data, ClassifyConfig(labels=["c", "b", "a", "d"]), *prepare(data)).names == [
            "c",
            "b",
            "a",
            "d",
        ]

    def test_balanced_weights_are_scikit_learns(self, tmp_path: Path):
        from sklearn.utils.class_weight import compute_class_weight

        train, _ = prepare(DataConfig(path=write(tmp_path / "rows.jsonl", self.ROWS)))
        given = np.array([row["label"] for row in self.ROWS])
        expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=given)
        found = class_weights(ClassifyConfig(balanced=True), train)
        assert [found[name] for name in "abc"] == pytest.approx(expected.tolist())

    def test_each_task_has_its_own(self, tmp_path: Path):
        other = [{"text": "x", "label": "yes"}, {"text": "y", "label": "no"}]
        mix = [
            SourceConfig(path=write(tmp_path / "one.jsonl", self.ROWS), task="one"),
            SourceConfig(path=write(tmp_path / "two.jsonl", other), task="two"),
        ]
        data = DataConfig(path=None, mix=mix)
        labels = run_labels(data, ClassifyConfig(), *prepare(data))
        assert labels.names == ["one: a", "one: b", "one: c", "two: no", "two: yes"]
        assert labels.range_of("two") == range(3, 5) and labels.number("two", "yes") == 4
        assert labels.own(["two", "one"]).tolist() == [[False] * 3 + [True] * 2, [True] * 3 + [False] * 2]

    def test_sources_without_a_task_have_one_list(self, tmp_path: Path):
        other = write(tmp_path / "two.jsonl", [{"text": "x", "label": "d"}])
        mix = [SourceConfig(path=write(tmp_path / "one.jsonl", self.ROWS)), SourceConfig(path=other)]
        data = DataConfig(path=None, mix=mix)
        labels = run_labels(data, ClassifyConfig(), *prepare(data))
        assert labels.names == ["a", "b", "c", "d"] and labels.number("two", "d") == 3

    def test_an_unknown_label_names_its_row(self, tmp_path: Path):
        held_out = write(tmp_path / "held.jsonl", [{"text": "x", "label": "a"}, {"text": "z", "label": "bb"}])
        data = DataConfig(path=write(tmp_path / "rows.jsonl", self.ROWS), validation=held_out)
        with pytest.raises(UserError, match=r"held.jsonl row 2: the label 'bb' is none of a, b, c") as caught:
            run_labels(data, ClassifyConfig(), *prepare(data))
        assert "did you mean b" in str(caught.value)

    def test_one_label_is_too_few_and_thousands_too_many(self, tmp_path: Path):
        same = DataConfig(path=write(tmp_path / "same.jsonl", [{"text": "x", "label": "a"}] * 3))
        with pytest.raises(UserError, match="all rows have the label 'a'"):
            run_labels(same, ClassifyConfig(), *prepare(same))
        numbers = [{"text": "x", "label": i / 7} for i in range(1, 1500)]
        many = DataConfig(path=write(tmp_path / "many.jsonl", numbers))
        with pytest.raises(UserError, match="labels, such as") as caught:
            run_labels(many, ClassifyConfig(), *prepare(many))
        assert "regression" in str(caught.value)

    def test_tags_of_a_conll_file(self, tmp_path: Path):
        text = "-DOCSTART- -X- O\n\n# sent_id = 1\nEU NNP B-ORG\nrejects VBZ O\n\n\nPeter\tB-PER\nBlackburn\tI-PER\n"
        (tmp_path / "train.conll").write_text(text)
        data = DataConfig(path=str(tmp_path / "train.conll"))
        train, _ = prepare(data, Task.token_classification)
        assert [train[i].labels for i in range(2)] == [("B-ORG", "O"), ("B-PER", "I-PER")]
        assert [train.origin(i).partition(" row ")[2] for i in range(2)] == ["4", "8"]
        assert run_labels(data, TagConfig(), train, None).names == ["B-ORG", "B-PER", "I-PER", "O"]

    def test_a_word_without_a_tag_names_its_line(self, tmp_path: Path):
        (tmp_path / "train.conll").write_text("EU B-ORG\nrejects\n\nPeter B-PER\n")
        with pytest.raises(UserError, match=r"train.conll row 2: 'rejects' has no tag"):
            prepare(DataConfig(path=str(tmp_path / "train.conll")), Task.token_classification)


DETECTED: list[tuple[dict, Callable]] = [
    ({"sentence": "x", "label": "a", "idx": 3}, lambda item: item.parts == ()),
    ({"premise": "x", "hypothesis": "y", "label": 1}, lambda item: item.labels == ("1",) and item.parts),
    ({"question": "x", "sentence": "y", "labels": 0}, lambda item: item.labels == ("0",) and item.parts),
    ({"text": "x", "label": 2.0}, lambda item: item.labels == ("2",)),
]


@pytest.mark.parametrize(("row", "holds"), DETECTED)
def test_formats_are_told_from_the_columns(tmp_path: Path, row: dict, holds: Callable):
    train, _ = prepare(DataConfig(path=write(tmp_path / "rows.jsonl", [row])))
    assert holds(train[0])


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("film", ("film",)),
        (["film", 3], ("film", "3")),
        ('["film", "plot"]', ("film", "plot")),  # in a table
        ("[]", ()),
        ("[sic] film", ("[sic] film",)),
    ],
)
def test_labels_of_a_row(value: object, labels: tuple[str, ...]) -> None:
    assert labels_of({"label": value}) == labels
