"""Which languages a data set is in, told from a sample of its examples.

The identifier is py3langid (Lui and Baldwin, 2012: naive Bayes over byte n-grams). Asked about few languages it is
right more often on short texts, so it is asked about those that people write most.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier
    from transformers import PreTrainedTokenizerBase

    from tunecli.data.mixture import Mixture

SAMPLE = 2000
"""Examples that are looked at, spread evenly."""
TOKENS = 512
"""Tokens that are looked at in each."""
LETTERS = 20
"""An answer with fewer letters is looked at together with its prompt."""
CONFIDENCE = 0.5
UNCLEAR = "unclear"
LANGUAGES = (
    *("am", "ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "gu", "he", "hi"),
    *("hr", "hu", "hy", "id", "it", "ja", "ka", "km", "kn", "ko", "lo", "lt", "lv", "ml", "mr", "my", "nl", "no"),
    *("pa", "pl", "pt", "ro", "ru", "si", "sk", "sl", "sr", "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur"),
    *("vi", "zh"),
)


def languages(dataset: Mixture, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """ISO 639 code, or `unclear`, -> examples of the sample, the most frequent first."""
    counts: Counter[str] = Counter()
    for text in sample_texts(dataset, tokenizer):
        language, confidence = _identifier().classify(text)
        # Digits and signs alone look like some language too.
        sure = confidence >= CONFIDENCE and any(character.isalpha() for character in text)
        counts[language if sure else UNCLEAR] += 1
    return dict(counts.most_common())


@cache
def _identifier() -> LanguageIdentifier:
    """Loading takes most of a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier


def sample_texts(dataset: Mixture, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """What to tell the language of each example of the sample from: the answers, or all of it if they are short.

    The beginning that all share is left out: a template's system prompt says nothing about the rows.
    """
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset))).astype(np.int64)).tolist()
    examples = [dataset[i] for i in indices]
    all_ids = [example.input_ids[:TOKENS].tolist() for example in examples]
    same = len(os.path.commonprefix(all_ids)) if len(set(map(tuple, all_ids))) > 1 else 0
    for ids, example in zip(all_ids, examples, strict=True):
        answers = _words(tokenizer, example.input_ids[example.trained][:TOKENS].tolist())
        long = sum(map(str.isalpha, answers)) >= LETTERS
        yield answers if long and not example.labels else _words(tokenizer, ids[same:])


def _words(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text.replace("\ufffd", "").strip()
