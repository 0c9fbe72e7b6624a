"""`tune preview`: the text of tokens, which examples are shown, and what reaches a terminal, a page and JSON."""

from __future__ import annotations

import io
import json
import os
import random
import re
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tunecli.preview
from tunecli.assembly.data import Data
from tunecli.config.compose import compose_run
from tunecli.config.data import OnBadRow
from tunecli.config.errors import UserError
from tunecli.config.run import RunConfig
from tunecli.data.encoded import Encoded
from tunecli.engine.text import visible
from tunecli.preview import Preview, as_json, preview
from tunecli.preview.examples import Gap, Piece, Wanted, choose, decode, read, shortened
from tunecli.preview.languages import languages
from tunecli.preview.page import write_page
from tunecli.preview.terminal import bar, show

WILD = (
    "naïve 中国的首都是北京 😀👨‍👩‍👧 \x1b[31mred\x07\x9b \u202eright to left\u2028"
    " <script>alert('x')</script> &amp; \ttab\r\n\x00"
)


@dataclass
class FakeDataset:
    """Examples in memory: token ids and which are trained."""

    ids: list[list[int]]
    trained: list[list[bool]]
    names: list[str] = field(default_factory=lambda: ["chats"])
    sources: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    left_out: list[dict[str, Any]] = field(default_factory=list)
    found: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.ids)
        if not len(self.sources):
            self.sources = np.zeros(count, np.int32)
        self.lengths = np.array([len(ids) for ids in self.ids])
        self.trained_counts = np.array([sum(trained) for trained in self.trained])
        self.rows = np.arange(1, count + 1)
        self.adapters = np.full(count, -1)
        self.contents = np.array([hash(tuple(ids)) for ids in self.ids])
        self.truncated = np.zeros(count, np.bool_)
        self.starts = np.cumsum([0, *np.bincount(self.sources, minlength=len(self.names))])
        self.label_counts = {name: Counter() for name in self.names}
        self.summary = {"rows": count + len(self.left_out), "split_rows": 0, "formats": ["messages"]}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Encoded:
        spans = [(i, i + 1) for i, trained in enumerate(self.trained[index]) if trained]
        return Encoded(torch.tensor(self.ids[index]), np.array(spans).reshape(-1, 2))

    def origin(self, index: int) -> str:
        return f"data/{self.names[self.sources[index]]}.jsonl row {self.rows[index]}"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: every Chinese character and every emoji is several tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, min_frequency=1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["hello world, the quick brown fox"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    marks = [AddedToken("<|im_start|>", special=True), AddedToken("<think>", special=False)]
    tokenizer.add_tokens(marks)
    return tokenizer


def chat(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str) -> tuple[list[int], list[bool]]:
    before = tokenizer.encode(f"<|im_start|>{prompt}\n", add_special_tokens=False)
    after = tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False)
    return before + after, [False] * len(before) + [True] * len(after)


def dataset_of(tokenizer: PreTrainedTokenizerFast, chats: list[tuple[str, str]], **fields: Any) -> FakeDataset:
    encoded = [chat(tokenizer, *each) for each in chats]
    return FakeDataset([ids for ids, _ in encoded], [trained for _, trained in encoded], **fields)


@pytest.mark.parametrize("seed", range(20))
def test_the_pieces_are_the_text_and_the_tokens(tokenizer, seed: int):
    """Also of ids that no text has: characters that are cut off or never begin."""
    rng = random.Random(seed)
    whole = tokenizer.encode(WILD + "<|im_end|><think> hello<|im_start|> world 中", add_special_tokens=False)
    broken = [rng.randrange(len(tokenizer)) for _ in range(40)]
    for ids in (whole, whole[rng.randrange(len(whole)) :], broken):
        trained = [rng.random() < 0.5 for _ in ids] if ids is broken else [i > 9 for i in range(len(ids))]
        pieces = list(decode(tokenizer, ids, trained))
        assert [token for piece in pieces for token in piece.ids] == ids
        assert [piece.trained for piece in pieces for _ in piece.ids] == trained
        if ids is whole:
            assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids)
            assert "\ufffd" not in "".join(piece.text for piece in pieces)


def test_a_character_is_one_piece_of_several_tokens(tokenizer):
    ids = tokenizer.encode("a中😀<think>", add_special_tokens=False)
    pieces = list(decode(tokenizer, ids, [True] * len(ids)))
    assert [(piece.text, len(piece.ids), piece.special) for piece in pieces] == [
        *(("a", 1, False), ("中", 3, False), ("😀", 4, False), ("<think>", 1, True)),
    ]


def test_spaces_between_words_stay_where_a_tokenizer_marks_word_starts():
    """As SentencePiece does: a token decoded alone loses its space."""
    words = ["▁hello", "▁world", "▁", "!", "</s>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="!"))
    backend.decoder = decoders.Metaspace()
    spaced = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert [piece.text for piece in decode(spaced, [0, 1, 3], [True] * 3)] == ["hello", " world", "!"]


@pytest.mark.parametrize(
    "character", [*map(chr, range(32)), *map(chr, range(127, 160)), *"\u202e\u2066\u200b\u2028\ufeff\U000e0041\ud800"]
)
def test_nothing_in_the_data_acts_on_a_terminal(character: str):
    shown = visible(f"a{character}b")
    if character in "\n\t":
        assert shown == {"\n": "a⏎\nb", "\t": "a⇥ b"}[character]
    else:
        assert shown.isprintable() and re.fullmatch(r"a\\(r|x..|u....|U.{8})b", shown)


def test_letters_of_every_script_and_joined_emoji_stay():
    text = "naïve 中国　العربية עברית 👨‍👩‍👧 🇫🇷 نمی‌خواهم ไทย"
    assert visible(text) == text


def test_choosing(tokenizer):
    chats = [(f"question {i}", "answer " * (1 + i % 5)) for i in range(20)]
    sources = np.array([0] * 15 + [1] * 5)
    dataset = dataset_of(tokenizer, chats, names=["a", "b"], sources=sources)
    assert choose(dataset, Wanted(4)) == [0, 15, 1, 16]
    assert choose(dataset, Wanted(0)) == []
    assert sorted(choose(dataset, Wanted(99))) == list(range(20))
    assert choose(dataset, Wanted(3, longest=True)) == [14, 19, 4]
    drawn = choose(dataset, Wanted(5, random=1))
    assert len(set(drawn)) == 5 and drawn == choose(dataset, Wanted(5, random=1)) != choose(
        dataset, Wanted(5, random=2)
    )
    assert choose(dataset, Wanted(3, row="17")) == [16]
    assert choose(dataset, Wanted(3, row="b.jsonl:17")) == choose(dataset, Wanted(3, row="./data/b.jsonl:17")) == [16]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("99", "last row with an example is 3"),
        ("b.jsonl:2", "no example"),
        ("x", "names no row"),
        ("a:", "names no row"),
        ("4", "left out (bad): not JSON"),
    ],
)
def test_a_row_without_an_example_is_explained(tokenizer, row: str, message: str):
    left_out = [{"source": "data/chats.jsonl", "row": 4, "why": "bad", "what": "not JSON", "fix": "mend it"}]
    dataset = dataset_of(tokenizer, [("q", "a")] * 3, left_out=left_out)
    with pytest.raises(UserError, match=re.escape(message)):
        choose(dataset, Wanted(3, row=row))


def test_long_runs_lose_their_middle_and_keep_every_border():
    runs = [Piece("word ", [i], trained=i // 100 % 2 == 1) for i in range(400)]
    short = list(shortened(runs, 50))
    assert sum(len(piece.ids) if isinstance(piece, Piece) else piece.tokens for piece in short) == 400
    assert sum(isinstance(piece, Gap) for piece in short) == 4
    for border in (0, 99, 100, 199, 200, 299, 300, 399):
        assert runs[border] in short
    assert list(shortened(runs, None)) == list(shortened(runs, 10_000)) == runs


def test_of_many_turns_the_first_and_the_last_are_shown():
    turns = [Piece("word ", [i], trained=i % 2 == 1) for i in range(101)]
    short = list(shortened(turns, 50))
    assert short[:6] == turns[:6] and short[-6:] == turns[-6:]
    assert short[6:-6] == [Gap(89, trained=False)]


def shown(result: Preview, *, width: int = 80, colour: bool = False, tokens: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colour, color_system="standard" if colour else None)
    show(result, full=False, tokens=tokens, console=console)
    return file.getvalue()


@pytest.fixture
def config() -> RunConfig:
    return compose_run("smoke_sft_lora", ["data.validation=null", "train.eval_every=null"]).config


@pytest.fixture
def previewed(tokenizer, config, monkeypatch: pytest.MonkeyPatch):
    """`previewed(dataset)`: its preview, as if it had been prepared."""

    def build(dataset: FakeDataset) -> Preview:
        monkeypatch.setattr(tunecli.preview, "prepare_data", lambda *_, **__: Data(tokenizer, dataset, None))
        return preview(config, Wanted(3))

    return build


def test_a_terminal_gets_colours_and_a_pipe_gets_brackets(tokenizer, previewed):
    result = previewed(dataset_of(tokenizer, [("hello", "world")]))
    plain, coloured = shown(result), shown(result, colour=True)
    assert "<|im_start|>hello⏎\n⟦world<|im_end|>⟧\n" in plain and "\x1b" not in plain
    assert "\x1b[32mworld" in coloured and "⟦" not in coloured


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(tokenizer, previewed, monkeypatch):
    """`tune preview ... | head`: the command line answers this error with status 0, rich alone with 1."""
    result = previewed(dataset_of(tokenizer, [("hello", "world")]))
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w", encoding="utf-8"))
    with pytest.raises(BrokenPipeError):
        show(result, full=False, tokens=False)
    with suppress(BrokenPipeError):
        sys.stdout.close()


def test_max_length_is_marked_where_it_is_reached(tokenizer, previewed, config):
    dataset = dataset_of(tokenizer, [("hello", "world")])
    config.data.max_length = len(dataset.ids[0])
    assert f"← max_length {config.data.max_length}" in shown(previewed(dataset))
    config.data.max_length = 5000
    assert "(max_length 5,000)" in shown(previewed(dataset))


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_and_escapes_in_the_data_are_harmless(tokenizer, previewed, width: int):
    left_out = [{"source": WILD, "row": 4, "why": "bad", "what": WILD, "fix": WILD}]
    dataset = dataset_of(tokenizer, [(WILD * 9, WILD * 40), ("x" * 500, "中" * 500)], names=[WILD], left_out=left_out)
    dataset.found = {WILD: (1, [WILD])}
    for text in (shown(previewed(dataset), width=width), shown(previewed(dataset), width=width, tokens=True)):
        # Control characters other than the line breaks of the layout itself:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", text)
        assert all(Console().measure(line).maximum <= width for line in text.splitlines())
        assert r"\x1b[31mred" in text


def test_the_table_of_tokens_has_a_row_for_each(tokenizer, previewed):
    dataset = dataset_of(tokenizer, [("hello", "中")])
    text = shown(previewed(dataset), tokens=True)
    table = [line.split() for line in text.split("trained\n")[-1].splitlines() if re.match(r" *\d+ +\d+ ", line)]
    assert [int(row[1]) for row in table] == dataset.ids[0]
    assert ["✓" in row for row in table] == dataset.trained[0]


def test_json_holds_every_token_and_its_text(tokenizer, previewed):
    dataset = dataset_of(tokenizer, [(WILD, "answer " * 500)] * 2)
    data = json.loads(json.dumps(as_json(previewed(dataset))))
    example = data["examples"][0]
    assert [token["id"] for token in example["tokens"]] == dataset.ids[0]
    assert [token["trained"] for token in example["tokens"]] == dataset.trained[0]
    text = tokenizer.decode(dataset.ids[0])
    assert example["text"] == "".join(token["text"] for token in example["tokens"]) == text
    assert data["statistics"]["duplicates"] == 1
    assert data["statistics"]["tokens"] == sum(map(len, dataset.ids))


class Elements(HTMLParser):
    """Which elements a page has, what they say, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str | None] = []
        self.marked: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("b", "i"):
            self.marked.append((self.tags[-1], data))


def test_the_page_escapes_the_data_and_loads_nothing(tokenizer, previewed, tmp_path: Path):
    dataset = dataset_of(tokenizer, [(WILD, WILD), (WILD, WILD)], names=[WILD, "b"], sources=np.array([0, 1]))
    dataset.left_out = [{"source": WILD, "row": 4, "why": WILD, "what": WILD, "fix": WILD}]
    dataset.found = {WILD: (1, [WILD])}
    write_page(previewed(dataset), tmp_path / "page.html", full=False)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("alert(") == page.count("&gt;alert(") >= 10 and page.count("<script") == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", page)
    assert not Elements(page).loaded


def test_the_page_shows_what_is_trained(tokenizer, previewed, tmp_path: Path):
    dataset = dataset_of(tokenizer, [("hello", "world 中")])
    write_page(previewed(dataset), tmp_path / "page.html", full=True)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    text = page[page.index("<pre>") : page.index("</pre>")]
    marked = Elements(text).marked
    assert "".join(text for tag, text in marked if tag == "b") == "world 中<|im_end|>"
    assert "".join(text for tag, text in marked if tag == "i").startswith("<|im_start|>hello⏎")
    assert [
        int(number) for title in re.findall(r'title="([\d ]+)"', text) for number in title.split()
    ] == dataset.ids[0]


def test_a_page_that_cannot_be_written(tokenizer, previewed, tmp_path: Path):
    with pytest.raises(UserError, match="cannot be written"):
        write_page(previewed(dataset_of(tokenizer, [("a", "b")])), tmp_path / "no" / "page.html", full=False)


def test_bars_grow_with_what_they_stand_for():
    assert bar(0, 10) == "" and bar(1, 10) == "█" * 10 and bar(0.0001, 10) == "▏" and bar(0.55, 10) == "█" * 5 + "▌"


def test_languages_are_told_from_short_rows(tokenizer):
    rows = {
        "en": ("What is the capital of France?", "The capital of France is Paris."),
        "de": ("Schreibe ein Gedicht über den Frühling.", "Gerne, hier ist ein kurzes Gedicht."),
        "zh": ("法国的首都是哪里？", "法国的首都是巴黎。"),
        "ja": ("フランスの首都はどこですか。", "フランスの首都はパリです。"),
        "ru": ("Какая столица Франции?", "Столица Франции Париж."),
    }
    counts = {name: i + 1 for i, name in enumerate(rows)}
    chats = [rows[name] for name in rows for _ in range(counts[name])]
    assert languages(dataset_of(tokenizer, chats), tokenizer) == counts
    assert languages(dataset_of(tokenizer, [("2 + 2", "4"), ("1 + 1", "2")]), tokenizer) == {"unclear": 2}


def test_a_system_prompt_that_all_share_says_nothing_about_the_language(tokenizer):
    prompt = "You are a helpful assistant that was made to answer all questions as well as it can.\n"
    chats = [(prompt + "德国的首都是哪里？", "柏林。"), (prompt + "法国的首都是哪里？", "巴黎。")]
    assert languages(dataset_of(tokenizer, chats), tokenizer) == {"zh": 2}


def test_bad_rows_are_listed_although_a_run_would_stop(tokenizer, config, monkeypatch: pytest.MonkeyPatch):
    left_out = [{"source": "a.jsonl", "row": row, "why": "bad", "what": "not JSON", "fix": ""} for row in range(9)]
    dataset = dataset_of(tokenizer, [("a", "b")], left_out=left_out)

    def prepare(config: RunConfig, *, show_progress: bool) -> Data:
        if config.data.on_bad_row is OnBadRow.error:
            raise UserError("not JSON", where="a.jsonl row 0")
        return Data(tokenizer, dataset, None)

    monkeypatch.setattr(tunecli.preview, "prepare_data", prepare)
    result = preview(config, Wanted(1))
    assert "a run would stop here: a.jsonl row 0: not JSON" in result.notes[0]
    assert len(result.left_out["bad"]) == 5 and result.statistics.left_out == {"bad": 9}
    assert "and 4 more" in shown(result)


def test_data_that_cannot_be_read_at_all_give_the_first_error(config, monkeypatch: pytest.MonkeyPatch):
    def prepare(config: RunConfig, *, show_progress: bool) -> Data:
        raise UserError(f"on_bad_row={config.data.on_bad_row.value}")

    monkeypatch.setattr(tunecli.preview, "prepare_data", prepare)
    with pytest.raises(UserError, match="on_bad_row=error"):
        preview(config, Wanted(1))


def test_of_streamed_data_the_first_rows_are_looked_at(tokenizer, config, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[bool, int | None]] = []

    def prepare(config: RunConfig, *, show_progress: bool) -> Data:
        asked.append((config.data.streaming, config.data.max_samples))
        return Data(tokenizer, dataset_of(tokenizer, [("a", "b")]), None)

    monkeypatch.setattr(tunecli.preview, "prepare_data", prepare)
    config.data.streaming = True
    assert "first 1,000 rows" in preview(config, Wanted(1)).notes[0]
    config.data.max_samples = 7
    preview(config, Wanted(1))
    assert asked == [(False, 1000), (False, 7)]


def test_the_shares_of_a_mixture_are_those_of_training(tokenizer, monkeypatch: pytest.MonkeyPatch):
    mix = "data.mix=[{path: x/a.jsonl, weight: 3}, {path: x/b.jsonl, weight: 1}]"
    overrides = ["data.path=null", mix, "data.mixing=weights", "data.validation=null", "train.eval_every=null"]
    config = compose_run("smoke_sft_lora", overrides).config
    dataset = dataset_of(tokenizer, [("a", "b")] * 10, names=["a", "b"], sources=np.array([0] * 2 + [1] * 8))
    monkeypatch.setattr(tunecli.preview, "prepare_data", lambda *_, **__: Data(tokenizer, dataset, None))
    result = preview(config, Wanted(1))
    assert [source.drawn for source in result.statistics.sources] == [0.75, 0.25]
    assert "75.0%" in shown(result)


def test_validation_needs_validation_data(config):
    with pytest.raises(UserError, match="no validation data"):
        preview(config, Wanted(1), validation=True)


def test_an_example_says_where_it_comes_from(tokenizer):
    example = read(dataset_of(tokenizer, [("a", "b")]), 0, tokenizer)
    assert (example.origin, example.source, example.tokens) == ("data/chats.jsonl row 1", "chats", 5)
    assert example.trained_tokens == 2 and not example.truncated
