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
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), tokenizer=Words())
    scores = [scorer.score(right, answer) for answer, right in zip(answers, expected, strict=True)]
    return {name: mean(score[name].fmeasure for score in scores) for name in ROUGE}


def bleu(answers: Sequence[str], expected: Sequence[str], tokenize: str = "auto") -> dict[str, float]:
    """Of all answers together, from 0 to 100. `tokenize`: as `evaluation.bleu_tokenize`."""
    from sacrebleu.metrics import BLEU

    chosen = bleu_tokenizer(expected) if tokenize == "auto" else tokenize
    return {"bleu": float(BLEU(tokenize=chosen).corpus_score(answers, [expected]).score)}


def chrf(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """Of all answers together, from 0 to 100."""
    from sacrebleu.metrics import CHRF

    return {"chrf": float(CHRF().corpus_score(answers, [expected]).score)}


def bleu_tokenizer(texts: Sequence[str]) -> str:
    """`zh` if most letters are Chinese, else `13a`."""
    letters = [character for text in texts for character in text if character.isalpha()]
    return "zh" if 2 * sum(_within(character, HAN) for character in letters) > len(letters) else "13a"


def _within(character: str, ranges: Sequence[tuple[int, int]]) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in ranges)
