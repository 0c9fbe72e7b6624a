"""Where virtual tokens stand among the tokens of examples and of prompts, for tokenizers of several kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tunecli.assembly.data import prepare_data
from tunecli.config.compose import compose_run
from tunecli.config.data import OnBadRow, Overlong, Side
from tunecli.config.errors import UserError
from tunecli.config.stage import Turns
from tunecli.config.virtual import FIRST_VIRTUAL
from tunecli.data.examples import Columns, Messages, PromptCompletion, Text, TooLong, Unusable
from tunecli.data.prompts import chat_prompt, raw_prompt
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokenize import Encoding, Tokens, tokenize
from tunecli.data.virtual import filled
from tunecli.models.builtin import byte_tokenizer
from tunecli.peft_methods.token_ids import around

V = range(FIRST_VIRTUAL, FIRST_VIRTUAL + 9)
REVIEW = "{v3} {text} It was {v2} {label}"
ROW = Columns({"text": "hello world, the list of words", "label": "good"})


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's: lower case, [CLS] and [SEP] around every text, no token that ends a text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[unused{i}]" for i in range(4))]
    words += [
        "hello",
        "world",
        "it",
        "was",
        "good",
        "great",
        "the",
        "list",
        "of",
        "words",
        "##s",
        ",",
        ".",
        "a",
        "电",
    ]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", **names)


def sentence_piece() -> PreTrainedTokenizerFast:
    """As Llama 2's: ▁ for spaces, one put before every text, <s> in front, and letters for what is no word."""
    words = ["<unk>", "▁hello", "▁world", "▁It", "▁was", "▁good", "▁great", "▁the", "▁", ",", "电", "影", "好", "\n"]
    words += [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["I"]
    backend = Tokenizer(models.Unigram([(word, -1.0 * (i + 1)) for i, word in enumerate(words)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<s>", "</s>"])
    opening = [("<s>", backend.token_to_id("<s>"))]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=opening)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(params=["byte-level BPE", "bytes", "SentencePiece", "WordPiece"])
def tokenizer(request, plain_tokenizer) -> PreTrainedTokenizerBase:
    makers = {"bytes": byte_tokenizer, "SentencePiece": sentence_piece, "WordPiece": word_piece}
    return makers[request.param]() if request.param in makers else plain_tokenizer


def in_template(text: str, **options) -> Encoding:
    return Encoding(template=text, template_ids=tuple(V), **options)


def surroundings(template: str, tokenizer, **options) -> Encoding:
    return Encoding(**around([(template, list(V))], tokenizer), **options)


def encode(example, tokenizer, encoding: Encoding) -> Tokens:
    (item,) = tokenize(example, tokenizer, encoding)
    return item


def shown(ids: list[int], tokenizer) -> str:
    """The text with `^` for each virtual token, special tokens left out."""
    real = [token for token in ids if token < FIRST_VIRTUAL]
    if len(real) == len(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)
    at = next(i for i, token in enumerate(ids) if token >= FIRST_VIRTUAL)
    return shown(ids[:at], tokenizer) + "^" + shown(ids[at + 1 :], tokenizer)


def answer(item: Tokens) -> list[int]:
    (span,) = item.spans
    return item.input_ids[span[0] : span[1]]


def virtual(ids: list[int]) -> list[int]:
    return [token for token in ids if token >= FIRST_VIRTUAL]


class TestTemplatesOfColumns:
    def test_virtual_tokens_are_where_the_template_has_them(self, tokenizer):
        item = encode(ROW, tokenizer, in_template(REVIEW))
        assert virtual(item.input_ids) == list(V[:5])
        pieces = shown(item.input_ids, tokenizer).split("^")
        assert [piece.strip().lower() for piece in pieces] == [
            *("", "", ""),
            *("hello world, the list of words it was", "", "good"),
        ]

    def test_without_them_the_tokens_are_those_of_the_whole_text(self, tokenizer):
        """With borders at white space; so anchor words and labels have the tokens that they have in any text."""
        item = encode(ROW, tokenizer, in_template(REVIEW))
        real = [token for token in item.input_ids if token < FIRST_VIRTUAL]
        whole = tokenizer("hello world, the list of words It was good")["input_ids"]
        ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        closing = [tokenizer.sep_token_id] if tokenizer.sep_token_id is not None else []
        assert real == whole[: len(whole) - len(closing)] + ends

    def test_the_answer_and_the_end_are_trained_and_nothing_else(self, tokenizer):
        item = encode(ROW, tokenizer, in_template(REVIEW))
        assert tokenizer.decode(answer(item), skip_special_tokens=True).strip() == "good"
        assert item.spans[0][1] == len(item.input_ids)
        if tokenizer.eos_token_id is not None:
            assert answer(item)[-1] == tokenizer.eos_token_id

    @pytest.mark.parametrize("text", ["hello world", "", "words.", "  hello ", "电影好", "a\nlist of words\n"])
    @pytest.mark.parametrize(
        "template",
        [
            REVIEW,
            "{v2}{text}{v1}{label}",
            "{text} {v1} {label}",
            "{v1} {text}\n{v2}{label}",
            "电{v1} {text}{v2} {label}",
        ],
    )
    def test_the_prompt_is_a_prefix_of_the_trained_example(self, tokenizer, template, text):
        encoding = in_template(template)
        item = encode(Columns({"text": text, "label": "good"}), tokenizer, encoding)
        prompt = raw_prompt(text, tokenizer, encoding)
        assert item.input_ids == prompt + answer(item)

    def test_the_prompt_does_not_depend_on_the_answer(self, tokenizer):
        rows = [Columns({"text": "hello", "label": label}) for label in ("good", "words", ",", "o", "电")]
        encoding = in_template("{v1} {text}{v1}{label}")
        items = [encode(row, tokenizer, encoding) for row in rows]
        assert len({tuple(item.input_ids[: item.spans[0][0]]) for item in items}) == 1

    def test_a_language_without_spaces_gets_none(self, plain_tokenizer):
        for tokenizer in (plain_tokenizer, byte_tokenizer(), sentence_piece()):
            row = Columns({"text": "电影", "label": "好"})
            item = encode(row, tokenizer, in_template("{v1}{text}电{v2}{label}"))
            ids = item.input_ids[: -1 if item.input_ids[-1] == tokenizer.eos_token_id else None]
            assert shown(ids, tokenizer).replace("^^^", "^").lstrip() == "^电影电^^好"

    def test_columns_are_shortened_and_nothing_else(self, tokenizer):
        row = Columns({"text": "hello world, " * 40, "label": "good"})
        for length in (80, 61):
            item = encode(row, tokenizer, in_template(REVIEW, max_length=length))
            assert item.truncated and length - 8 <= len(item.input_ids) <= length
            text = shown(item.input_ids, tokenizer).lower()
            assert text.startswith("^^^") and "it was^^" in text.replace(" ^", "^")
            assert tokenizer.decode(answer(item), skip_special_tokens=True).strip() == "good"
        whole = encode(row, tokenizer, in_template(REVIEW, max_length=4000))
        assert not whole.truncated

    def test_the_side_that_is_cut(self, plain_tokenizer):
        row = Columns({"text": "Question: " + "hello " * 50 + "world", "label": "good"})
        for side, kept, gone in ((Side.right, "Question:", "world"), (Side.left, "world", "Question:")):
            encoding = in_template(REVIEW, max_length=40, truncation_side=side)
            text = plain_tokenizer.decode(
                [token for token in encode(row, plain_tokenizer, encoding).input_ids if token < FIRST_VIRTUAL]
            )
            assert kept in text and gone not in text

    @pytest.mark.parametrize("side", Side)
    def test_no_character_is_cut_in_two(self, side):
        row = Columns({"text": "电影😀" * 30, "label": "好"})
        for length in range(40, 60):
            item = encode(row, byte_tokenizer(), in_template(REVIEW, max_length=length, truncation_side=side))
            assert len(item.input_ids) <= length
            assert "\ufffd" not in shown(item.input_ids, byte_tokenizer())

    def test_of_two_columns_the_longer_is_cut_to_the_length_of_the_other_first(self, plain_tokenizer):
        template = "{v1} {premise} ? {v1} {hypothesis} {label}"
        row = Columns({"premise": "hello " * 60, "hypothesis": "world " * 8, "label": "good"})
        item = encode(row, plain_tokenizer, in_template(template, max_length=40))
        assert plain_tokenizer.decode(_real(item)).count("world") == 8
        item = encode(row, plain_tokenizer, in_template(template, max_length=16))
        text = plain_tokenizer.decode(_real(item))
        assert text.count("world") < 8 and abs(text.count("world") - text.count("hello")) <= 2

    def test_what_cannot_be_cut_is_too_long(self, tokenizer):
        row = Columns({"text": "hello world", "label": "good"})
        with pytest.raises(TooLong, match="max_length=6"):
            encode(row, tokenizer, in_template(REVIEW, max_length=6))
        long = Columns({"text": "hello " * 60, "label": "good"})
        for overlong in (Overlong.drop, Overlong.split):
            with pytest.raises(TooLong, match=r"data.max_length=30(.|\n)*"):
                encode(long, tokenizer, in_template(REVIEW, max_length=30, overlong=overlong))

    def test_a_prompt_of_prompt_tuning_stands_in_front(self, tokenizer):
        encoding = Encoding(before=(V[7], V[8]), template=REVIEW, template_ids=tuple(V))
        item = encode(ROW, tokenizer, encoding)
        assert virtual(item.input_ids) == [V[7], V[8], *V[:5]]
        assert item.input_ids.index(V[7]) == (0 if tokenizer.bos_token != "<s>" and not tokenizer.cls_token else 1)

    def test_rows_that_cannot_be_used(self, tokenizer):
        encoding = in_template(REVIEW)
        with pytest.raises(Unusable, match="column 'text', which the template names; the row has: body, label"):
            encode(Columns({"body": "x", "label": "good"}), tokenizer, encoding)
        with pytest.raises(Unusable, match="label is empty"):
            encode(Columns({"text": "x", "label": " "}), tokenizer, encoding)
        with pytest.raises(Unusable, match="together with a template"):
            encode(ROW, tokenizer, Encoding())

    def test_a_question_for_several_columns_names_them(self, plain_tokenizer):
        template = "{v1} {premise} ? {v1} {hypothesis} {label}"
        values = {"premise": "hello", "hypothesis": "world"}
        item = encode(Columns(values | {"label": "good"}), plain_tokenizer, in_template(template))
        prompt = raw_prompt(json.dumps(values), plain_tokenizer, in_template(template))
        assert item.input_ids == prompt + answer(item)
        for text in ("hello", "[1]", '{"premise": "hello"}'):
            with pytest.raises(Unusable, match="2 columns") as caught:
                raw_prompt(text, plain_tokenizer, in_template(template))
            assert '{"premise": "...", "hypothesis": "..."}' in caught.value.fix


def _real(item: Tokens) -> list[int]:
    return [token for token in item.input_ids if token < FIRST_VIRTUAL]


class TestMasks:
    TEMPLATE = "{v2} {text} it was {v1} {mask} ."

    def test_the_mask_is_the_target(self):
        tokenizer = word_piece()
        found = filled(ROW, in_template(self.TEMPLATE), TextEncoder(tokenizer))
        assert found.input_ids[found.answer[0]] == tokenizer.mask_token_id
        assert tokenizer.convert_ids_to_tokens(found.answer_ids) == ["good"]
        words = [f"v{t - V[0]}" if t in V else tokenizer.convert_ids_to_tokens(t) for t in found.input_ids]
        text = "[CLS] v0 v1 hello world , the list of words it was v2 [MASK] . [SEP]"
        assert words == text.split()

    def test_a_tokenizer_whose_end_of_text_closes_every_text_closes_it(self):
        """RoBERTa's: <s> in front and </s> behind, which is its end-of-text token too."""
        words = ["<s>", "</s>", "<mask>", "<unk>", "hello", "good", "a"]
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.add_special_tokens(["<s>", "</s>", "<mask>"])
        backend.post_processor = processors.BertProcessing(("</s>", 1), ("<s>", 0))
        names = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>", "unk_token": "<unk>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
        row = Columns({"text": "hello", "label": "good"})
        found = filled(row, in_template("{v1} {text} {mask}"), TextEncoder(tokenizer))
        assert found.input_ids == [0, V[0], 4, 2, 1]

    @pytest.mark.parametrize(
        ("row", "what"),
        [
            ({"text": "hello", "label": "hello world"}, "'hello world' is 2 tokens"),
            ({"text": "a [MASK]", "label": "good"}, r"holds the mask, \[MASK\]"),
            ({"text": "hello"}, "column 'label'"),
        ],
    )
    def test_rows_that_cannot_be_used(self, row, what):
        with pytest.raises(Unusable, match=what):
            filled(Columns(row), in_template(self.TEMPLATE), TextEncoder(word_piece()))


QUESTION = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris."}
MORE = {"role": "user", "content": "And of Japan?"}
FAMILIES = ["smollm2", "llama3", "qwen3", "gemma3", "phi3", "deepseek_r1_distill", "gptoss"]


class TestExamples:
    """Prompts and templates that are put around examples of any format."""

    @pytest.mark.parametrize("name", FAMILIES)
    @pytest.mark.parametrize(
        "template", ["", "{v3} {prompt} {v2} {completion}", "{v1} Q: {prompt} A: {v1} {completion}"]
    )
    def test_a_chat_as_without_them_and_the_prompt_is_a_prefix(self, family, name, template):
        tokenizer = family(name)
        encoding = surroundings(template, tokenizer, turns=Turns.last)
        plain = Encoding(turns=Turns.last)
        for start in ([QUESTION], [QUESTION, ANSWER, MORE]):
            messages = Messages([*start, ANSWER])
            item, expected = encode(messages, tokenizer, encoding), encode(messages, tokenizer, plain)
            added = {*encoding.before, *encoding.between}
            assert [t for t in item.input_ids if t not in added] == [t for t in expected.input_ids if t not in added]
            assert answer(item) == answer(expected)
            prompt = chat_prompt(start, tokenizer, encoding)
            assert item.input_ids[: len(prompt)] == prompt
            assert item.spans[0][0] == len(prompt)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_all_answers_of_a_conversation_are_trained_behind_a_prompt(self, family, name):
        tokenizer = family(name)
        messages = Messages([QUESTION, ANSWER, MORE, ANSWER])
        items = tokenize(messages, tokenizer, surroundings("", tokenizer))
        plain = tokenize(messages, tokenizer, Encoding())
        for item, expected in zip(items, plain, strict=True):
            assert virtual(item.input_ids) == list(V)
            assert [item.input_ids[a:b] for a, b in item.spans] == [
                expected.input_ids[a:b] for a, b in expected.spans
            ]

    def test_in_front_but_behind_what_opens_every_text(self, tokenizer):
        item = encode(PromptCompletion("hello", " world"), tokenizer, surroundings("", tokenizer))
        opening = [token for token in (tokenizer.cls_token_id, tokenizer.bos_token_id) if token is not None]
        opens = opening and tokenizer("hello")["input_ids"][0] in opening
        assert item.input_ids.index(V[0]) == (1 if opens else 0)

    def test_raw_prompts_are_prefixes(self, tokenizer):
        for template in ("", "{v2} {prompt} {v1} {completion}", "{v2} {prompt} It was {v1} {completion}"):
            encoding = surroundings(template, tokenizer)
            item = encode(PromptCompletion("hello the", " world"), tokenizer, encoding)
            prompt = raw_prompt("hello the", tokenizer, encoding)
            assert item.input_ids[: item.spans[0][0]] == prompt or tokenizer.sep_token_id in item.input_ids

    def test_text_is_trained_and_virtual_tokens_are_not(self, tokenizer):
        item = encode(Text("hello world"), tokenizer, surroundings("", tokenizer))
        plain = encode(Text("hello world"), tokenizer, Encoding())
        assert answer(item) == answer(plain)
        with pytest.raises(Unusable, match="a text alone has no answer"):
            encode(Text("hello"), tokenizer, surroundings("{v1} {prompt} {v1} {completion}", tokenizer))

    def test_virtual_tokens_are_never_trained(self, plain_tokenizer):
        """Also where the tokenizer opens texts with two tokens, of which the second is trained with the prompt."""
        plain_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> <s> $A", special_tokens=[("<s>", plain_tokenizer.convert_tokens_to_ids("<s>"))]
        )
        example = PromptCompletion("hello", " world")
        item = encode(example, plain_tokenizer, surroundings("", plain_tokenizer, train_on_prompt=True))
        plain = encode(example, plain_tokenizer, Encoding(train_on_prompt=True))
        trained = [token for token, is_trained in zip(item.input_ids, item.trained, strict=True) if is_trained]
        assert trained == answer(plain)

    @pytest.mark.parametrize("overlong", Overlong)
    def test_max_length_counts_them(self, plain_tokenizer, overlong):
        for length in range(12, 40):
            encoding = surroundings("", plain_tokenizer, max_length=length, overlong=overlong)
            try:
                items = tokenize(Text("hello world, the list " * 4), plain_tokenizer, encoding)
            except TooLong as error:
                assert overlong is Overlong.drop and f"data.max_length={length}" in error.what
                continue
            for item in items:
                assert len(item.input_ids) <= length
                assert virtual(item.input_ids) == list(V)

    def test_what_the_errors_ask_for_suffices(self, plain_tokenizer):
        example = PromptCompletion("hello world, the list", " good")
        for overlong in (Overlong.truncate, Overlong.drop):
            with pytest.raises(TooLong) as caught:
                encode(example, plain_tokenizer, surroundings("", plain_tokenizer, max_length=10, overlong=overlong))
            wanted = max(
                int(word) for word in caught.value.fix.replace(",", " ").replace("=", " ").split() if word.isdigit()
            )
            enough = surroundings("", plain_tokenizer, max_length=wanted + 1, overlong=overlong)
            assert encode(example, plain_tokenizer, enough).spans


def test_errors_name_file_and_row(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "hello", "label": "good"}, {"text": "hello"}, {"text": "world", "label": "bad"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["peft=p_tuning", f"peft.p_tuning.template='{REVIEW}'", "data=file", "data.path=rows.jsonl"]
    words += ["data.format=columns", "data.validation=null", "train.eval_every=null"]
    config = compose_run("smoke_sft_lora", words).config
    with pytest.raises(UserError, match=r"rows.jsonl row 2: no text or number in a column 'label'"):
        prepare_data(config, show_progress=False)
    config.data.on_bad_row = OnBadRow.skip
    assert len(prepare_data(config, show_progress=False).train) == 2
