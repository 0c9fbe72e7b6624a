"""Metrics of texts are those of the libraries, on every script."""

from __future__ import annotations

import random
import string

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from tunecli.evaluation.texts import ROUGE, Words, bleu, bleu_tokenizer, chrf, rouge

ANSWERS = ["The cat sat on the mat.", "A dog, barking loudly; 3.5 metres away", "nothing", ""]
EXPECTED = ["The cat is sitting on a mat.", "A dog barked 3.5 metres away.", "Something else", "An answer"]
CHINESE = ["小明今天去市场买了苹果", "北京是中国的首都。"]
CHINESE_EXPECTED = ["小明去市场买苹果", "中国的首都是北京。"]


def test_rouge_is_that_of_rouge_score() -> None:
    scorer = RougeScorer(list(ROUGE))
    own = [scorer.score(right, answer) for answer, right in zip(ANSWERS, EXPECTED, strict=True)]
    expected = {name: sum(score[name].fmeasure for score in own) / len(own) for name in ROUGE}
    assert rouge(ANSWERS, EXPECTED) == pytest.approx(expected)
    assert 0 < expected["rouge2"] < expected["rouge1"] < 1


def test_words_of_ascii_texts_are_those_of_rouge_score() -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices(string.printable, k=40))
        assert Words().tokenize(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("GPT-4o用了3天,你好", ["gpt", "4o", "用", "了", "3", "天", "你", "好"]),
        ("Über naïve cafés", ["über", "naïve", "cafés"]),
        ("ひらがな カタカナ", list("ひらがなカタカナ")),
        ("안녕 세계", ["안녕", "세계"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("Привет, мир!", ["привет", "мир"]),
        ("cafe\u0301s a \u0301b", ["cafe\u0301s", "a", "b"]),
    ],
)
def test_no_script_loses_its_words(text: str, words: list[str]) -> None:
    assert Words().tokenize(text) == words


def test_rouge_of_chinese_is_that_of_its_characters() -> None:
    """As words set apart by spaces: digits stand for the characters, which rouge-score itself would drop."""

    def numbered(text: str) -> str:
        return " ".join(str(ord(character)) for character in text if character != "。")

    scorer = RougeScorer(list(ROUGE))
    pairs = zip(CHINESE, CHINESE_EXPECTED, strict=True)
    own = [scorer.score(numbered(right), numbered(answer)) for answer, right in pairs]
    found = rouge(CHINESE, CHINESE_EXPECTED)
    assert found == pytest.approx({name: sum(score[name].fmeasure for score in own) / 2 for name in ROUGE})
    assert found["rouge1"] > 0.8 > found["rouge2"] > 0
    assert rouge(CHINESE, CHINESE) == dict.fromkeys(ROUGE, 1.0)


@pytest.mark.parametrize(
    ("answers", "expected", "tokenize"), [(ANSWERS, EXPECTED, "13a"), (CHINESE, CHINESE_EXPECTED, "zh")]
)
def test_bleu_and_chrf_are_those_of_sacrebleu(answers: list[str], expected: list[str], tokenize: str) -> None:
    own = sacrebleu.corpus_bleu(answers, [expected], tokenize=tokenize).score
    assert own > 0
    assert bleu(answers, expected) == bleu(answers, expected, tokenize) == {"bleu": own}
    other = "char" if tokenize == "13a" else "13a"
    assert bleu(answers, expected, other)["bleu"] != pytest.approx(own)
    assert chrf(answers, expected) == {"chrf": sacrebleu.corpus_chrf(answers, [expected]).score}


def test_most_letters_tell_the_language() -> None:
    assert bleu_tokenizer(["这是 GPT 的答案", "三"]) == "zh"
    assert bleu_tokenizer(["the word 你好 in English"]) == "13a"
    assert bleu_tokenizer(["12 3"]) == "13a"
