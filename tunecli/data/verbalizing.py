"""Classification as filling a gap: a text becomes a sentence with a gap, and labels become words that may stand
there (Schick and Schuetze, 2021, PET, arXiv:2001.07676; Gao et al., 2021, LM-BFF, arXiv:2012.15723).

White space before the gap belongs to the word, as in most vocabularies. The word's tokens are those that it has
after the template's own words, whatever the text is, so that a label has the same tokens in every row. A masked
model reads the sentence as its tokenizer splits it with the mask in it. A causal model reads it up to the gap;
punctuation after the gap is left out. Longer than `max_length`, texts are shortened, the longer one first, never
the template's words.

A row becomes one example with a sequence for each template, each with the right word in its gap.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from tunecli.config.cloze import Cloze, parse_cloze
from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.config.stage import Task
from tunecli.config.template import Field, Words
from tunecli.data.examples import Labelled, Unusable
from tunecli.data.text_encoder import Request, TextEncoder
from tunecli.data.tokens import Encoding, Tokens
from tunecli.data.virtual import SHORTENINGS, shortened, too_long

ROOM = 8
"""Tokens that are kept free for the longest word where labels are the words, as not all of them are known yet."""

Steps = Generator[list[Request], None, list[Tokens]]


class Verbalizer:
    """Templates and words in the tokens of one tokenizer."""

    def __init__(self, encoder: TextEncoder, options: Encoding) -> None:
        self.encoder = encoder
        self.options = options
        self.templates = [parse_cloze(text) for text in options.templates]
        self._ids: dict[tuple[int, str], tuple[int, ...]] = {}

    def word(self, label: str) -> str:
        return self.options.verbalizer.get(label, label)

    def ids(self, template: int, label: str) -> tuple[int, ...]:
        """The tokens of the word for `label` in the gap of a template."""
        key = template, label
        if key not in self._ids:
            self._ids[key] = self._tokens_of(self.templates[template], self.word(label))
        return self._ids[key]

    def _tokens_of(self, cloze: Cloze, word: str) -> tuple[int, ...]:
        words = cloze.words_before
        head = words.rstrip() or ("a" if cloze.before else "")  # in place of the text that stands there
        return tuple(self.encoder.ids_after(head, words[len(words.rstrip()) :] + word))

    def tokens(self, example: Labelled) -> Steps:
        """One item. `parts`: where the sequence of each template after the first begins; `spans`: the words."""
        label = self._label(example)
        yield [(text, False) for cloze in self.templates for text in self._texts(cloze, _values(cloze, example))]
        ids: list[int] = []
        spans, parts = [], []
        truncated = False
        for number, cloze in enumerate(self.templates):
            sequence, gap, cut = self._fitting(number, _values(cloze, example), label)
            word = self.ids(number, label)
            start = len(ids)
            ids += [*sequence[:gap], *word, *sequence[gap:]]
            spans.append((start + gap, start + gap + len(word)))
            parts.append(start)
            truncated |= cut
        return [Tokens(ids, spans, truncated=truncated, labels=example.labels, parts=tuple(parts[1:]))]

    def _label(self, example: Labelled) -> str:
        if len(example.labels) != 1:
            raise Unusable(f"{len(example.labels)} labels, and a gap is filled with one", "one label in each row")
        label, known = example.labels[0], self.options.labels
        if known and label not in known:
            what = f"there is no word for the label {label!r} in stage.verbalizer, only for {', '.join(known[:20])}"
            raise Unusable(what, f"{did_you_mean(label, known)}mend the row, or give the label a word there")
        return label

    def _fitting(self, number: int, values: dict[str, str], label: str) -> tuple[list[int], int, bool]:
        """The sequence without the word, where the gap is, and whether texts were shortened."""
        room = self._room(number, label)
        for attempt in range(SHORTENINGS):
            ids, gap = self._sequence(self.templates[number], values)
            excess = len(ids) + room - self.options.max_length
            if excess <= 0:
                return ids, gap, attempt > 0
            values = shortened(values, excess, self.options, self.encoder)
        raise too_long(self.options)

    def _room(self, number: int, label: str) -> int:
        """Tokens of the longest word."""
        if self.options.labels:
            return max(len(self.ids(number, each)) for each in self.options.labels)
        return max(len(self.ids(number, label)), ROOM)

    def _sequence(self, cloze: Cloze, values: dict[str, str]) -> tuple[list[int], int]:
        opening, closing = self.encoder.ends
        front = [*opening, *self.options.before]
        (text,) = self._texts(cloze, values)
        body = self.encoder.ids(text)
        if self.options.task is not Task.masked_lm:
            ids = [*front, *body, *self.options.between]
            return ids, len(ids)
        mask = self.encoder.tokenizer.mask_token_id
        if body.count(mask) != 1:
            raise Unusable(
                f"the row itself holds the mask, {self.encoder.tokenizer.mask_token}",
                "take it out, or remove the row",
            )
        at = body.index(mask)
        head = [*front, *body[:at], *self.options.between]
        return [*head, *body[at + 1 :], *closing], len(head)

    def _texts(self, cloze: Cloze, values: Mapping[str, str]) -> list[str]:
        """What is tokenized of a template with a row in it."""
        head = _written(cloze.before, values).rstrip()
        if self.options.task is not Task.masked_lm:
            return [head]
        return [f"{head}{self.encoder.tokenizer.mask_token}{_written(cloze.after, values)}"]

    def check(self, tasks: Mapping[str, Sequence[str]]) -> None:
        """Raises UserError if two labels of a task, whose labels are given by its name, have the same tokens, or if
        words need more room than they were left."""
        for number, text in enumerate(self.options.templates):
            for labels in tasks.values():
                seen: dict[tuple[int, ...], str] = {}
                for label in labels:
                    ids = self.ids(number, label)
                    if len(ids) > ROOM and not self.options.labels:
                        what = f"the label {label!r} is {len(ids)} tokens, and labels that are words may have {ROOM}"
                        fix = "stage.verbalizer={LABEL: WORD, ...}, with a word for each label"
                        raise UserError(what, where="stage.verbalizer", fix=fix)
                    if ids in seen:
                        raise UserError(
                            f"the words for {seen[ids]!r} and {label!r} are the same tokens in {text!r}",
                            where="stage.verbalizer",
                            fix="words that the model's vocabulary tells apart",
                        )
                    seen[ids] = label


def _values(cloze: Cloze, example: Labelled) -> dict[str, str]:
    given = {"text": example.text.strip()} | ({} if example.pair is None else {"text_pair": example.pair.strip()})
    for name in given.keys() ^ set(cloze.texts):
        if name in given:
            fix = "put {text_pair} into each of stage.templates, or data.format=classification"
            raise Unusable("is a pair, and a template leaves the second text out", fix)
        raise Unusable(f"there is no {name}, which a template names", "take it out of stage.templates, or add it")
    return given


def _written(pieces: Sequence[Words | Field], values: Mapping[str, str]) -> str:
    return "".join(piece.text if isinstance(piece, Words) else values[piece.name] for piece in pieces)
