"""Metrics of generated texts: ROUGE (Lin, 2004) by rouge-score, BLEU (Papineni et al., 2002) and chrF (Popović, 2015)
by sacrebleu (Post, 2018), each on the library's own scale.

For ASCII texts the words of ROUGE are those of rouge-score without stemming. Its own tokenizer drops every other
character; here letters, digits and the marks on them are words in all scripts, and where words are not set apart by
spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer) each character is one, as is usual for Chinese summaries.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np

ROUGE = ("rouge1", "rouge2", "rougeL")
HAN = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
UNSPACED = (
    *HAN,
    (0x3005, 0x3007),  # signs that repeat and count in Japanese and Chinese
    (0x3041, 0x30FF),  # Hiragana and Katakana
    (0x31F0, 0x31FF),
    (0xFF66, 0xFF9F),
    (0x0E00, 0x0EFF),  # Thai and Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
)
"""Characters of scripts that set no spaces between words."""

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]
"""From answers, and as many right answers."""


class Words:
    """A tokenizer for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        words: list[str] = []
        before = ""
        """What the last character was: a letter of a word, a word by itself, or nothing of the kind."""
        for character in text.lower():
            kind = unicodedata.category(character)[0]
            if kind == "M" and before:
                words[-1] += character
            elif kind not in "LN":
                before = ""
            elif _within(character, UNSPACED):
                words.append(character)
                before = "word"
            elif before == "letter":
                words[-1] += character
            else:
                words.append(character)
                before = "letter"
        return words


def rouge(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L, from 0 to 1, averaged over the answers."""
    scores = rouge_of_each(answers, expected)
    return {name: mean(score[name] for score in scores) for name in ROUGE}


def rouge_of_each(answers: Sequence[str], expected: Sequence[str]) -> list[dict[str, float]]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), tokenizer=Words())
    scores = [scorer.score(right, answer) for answer, right in zip(answers, expected, strict=True)]
    return [{name: score[name].fmeasure for name in ROUGE} for score in scores]


def bleu(answers: Sequence[str], expected: Sequence[str], tokenize: str = "auto") -> dict[str, float]:
    """Of all answers together, from 0 to 100. `tokenize`: as `evaluation.bleu_tokenize`."""
    from sacrebleu.metrics import BLEU

    chosen = bleu_tokenizer(expected) if tokenize == "auto" else tokenize
    return {"bleu": float(BLEU(tokenize=chosen).corpus_score(answers, [expected]).score)}


def chrf(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """Of all answers together, from 0 to 100."""
    from sacrebleu.metrics import CHRF

    return {"chrf": float(CHRF().corpus_score(answers, [expected]).score)}


def bleu_counts(answers: Sequence[str], expected: Sequence[str], tokenize: str = "auto") -> list[list[int]]:
    """What BLEU adds up over answers, of each: how many of its 1- to 4-grams are right, how many there are, and the
    lengths of the answer and of the right one."""
    from sacrebleu.metrics import BLEU

    chosen = bleu_tokenizer(expected) if tokenize == "auto" else tokenize
    metric = BLEU(tokenize=chosen, effective_order=True)  # of single sentences; the counts are the same
    scores = [metric.sentence_score(answer, [right]) for answer, right in zip(answers, expected, strict=True)]
    return [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores]


def bleu_of(sums: np.ndarray) -> np.ndarray:
    """[resamples] from `bleu_counts` summed, [resamples, 10]."""
    from sacrebleu.metrics import BLEU

    def one(row: list[int]) -> float:
        return float(BLEU.compute_bleu(row[:4], row[4:8], row[8], row[9], smooth_method="exp").score)

    return np.array([one(row) for row in np.rint(sums).astype(np.int64).tolist()])


def chrf_counts(answers: Sequence[str], expected: Sequence[str]) -> list[list[int]]:
    """What chrF adds up over answers, of each: for 1 to 6 characters how many such pieces the answer has, how many
    the right one, and how many are in both."""
    from sacrebleu.metrics import CHRF

    return CHRF()._extract_corpus_statistics(answers, [expected])  # nothing public gives them


def chrf_of(sums: np.ndarray) -> np.ndarray:
    """[resamples] from `chrf_counts` summed, [resamples, 18]: F2 of mean precision and mean recall (Popović, 2015,
    with sacrebleu's means over the lengths that both texts have)."""
    said, right, both = np.moveaxis(sums.reshape(len(sums), -1, 3), -1, 0)
    known = (said > 0) & (right > 0)
    number = np.maximum(known.sum(1), 1)
    precision = np.where(known, both / np.maximum(said, 1), 0.0).sum(1) / number
    recall = np.where(known, both / np.maximum(right, 1), 0.0).sum(1) / number
    either = 4 * precision + recall
    return np.where(either > 0, 500 * precision * recall / np.where(either > 0, either, 1.0), 0.0)


def bleu_tokenizer(texts: Sequence[str]) -> str:
    """`zh` if most letters are Chinese, else `13a`."""
    letters = [character for text in texts for character in text if character.isalpha()]
    return "zh" if 2 * sum(_within(character, HAN) for character in letters) > len(letters) else "13a"


def _within(character: str, ranges: Sequence[tuple[int, int]]) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in ranges)
