"""Token ids of many texts at once, and where in the ids a place of the text lies.

Tokenising in batches uses all cores and skips most of transformers' bookkeeping per text. Character offsets of all
tokens, which are slow to copy out of the tokenizers library, are not needed: those of a few added tokens are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from tunecli.data.examples import Unusable

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

Request = tuple[str, bool]
"""A text, and whether the tokenizer adds its special tokens (a begin-of-text token, say)."""
LONGEST_HEADER = 64
"""Characters of a text that is worth remembering."""


class TextEncoder:
    """Ids of texts, which are the quicker the more of them were given to `prime` together."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._primed: dict[Request, tokenizers.Encoding | list[int]] = {}
        self._ids_of_header = lru_cache(maxsize=1024)(self.ids)

    def prime(self, requests: Iterable[Request]) -> None:
        """Tokenise these texts together for the look-ups that follow; those of the last call are forgotten."""
        self._primed = {}
        requests = dict.fromkeys(requests)
        for special in (False, True):
            texts = [text for text, wants_special in requests if wants_special is special]
            if texts:
                found = self._encode(texts, add_special_tokens=special)
                self._primed.update(zip(((text, special) for text in texts), found, strict=True))

    def ids(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        found = self._encoding(text, add_special_tokens)
        ids = found if isinstance(found, list) else found.ids
        return self._without_added_end(text, ids) if add_special_tokens else ids

    @cached_property
    def ends(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts in front of a text and behind it."""
        plain, found = self.ids("a"), self._encoding("a", True)
        whole = found if isinstance(found, list) else found.ids
        start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        return whole[:start], whole[start + len(plain) :]

    @cached_property
    def target_ends(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts in front of a target text and behind it, and at the end an end-of-text token."""
        plain, whole = self.ids("a"), self.tokenizer(text_target="a")["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        opening, closing = whole[:start], whole[start + len(plain) :]
        eos = self.tokenizer.eos_token_id
        return opening, closing if eos is None or eos in closing else [*closing, eos]

    @cached_property
    def pair_ends(self) -> tuple[list[int], list[int], list[int]]:
        """What the tokenizer puts in front of two texts that belong together, between them, and behind them."""
        first, second = self.ids("a"), self.ids("b")
        whole = self.tokenizer("a", "b")["input_ids"]
        at = next(i for i in range(len(whole)) if whole[i : i + len(first)] == first)
        end = at + len(first)
        then = next(i for i in range(end, len(whole)) if whole[i : i + len(second)] == second)
        return whole[:at], whole[end:then], whole[then + len(second) :]

    def token_at(self, text: str, character: int) -> int | None:
        """Which token of `text` the character is in; None: in none.

        Raises:
            Unusable: the tokenizer cannot tell.
        """
        found = self._encoding(text, False)
        if isinstance(found, list):
            raise Unusable(
                "the tokenizer does not tell which token a word is in", "use a model with a fast tokenizer"
            )
        return found.char_to_token(character)

    def ids_after(self, text: str, more: str) -> list[int]:
        """Ids of `more` as they are after `text`; should a token cross the border, as after a line break: some
        tokenizers put a space before a text of its own."""
        for head in (text, "\n") if text else ():
            ids, whole = self.ids(head), self.ids(head + more)
            if whole[: len(ids)] == ids:
                return whole[len(ids) :]
        return self.ids(more)

    def cut(self, text: str, count: int, *, left: bool) -> str:
        """`text` without its last `count` tokens, or its first ones; no character is cut in two."""
        ids, found = self.ids(text), self._encoding(text, False)
        if isinstance(found, list):
            kept = ids[count:] if left else ids[: len(ids) - count]
            return self.tokenizer.decode(kept, skip_special_tokens=True).strip("\ufffd")
        if left:
            return text[found.token_to_chars(count - 1)[1] :]
        return text[: found.token_to_chars(len(ids) - count)[0]]

    def tokens_before(self, text: str, ids: list[int], borders: Iterable[int]) -> dict[int, int] | None:
        """For each border (a character's index), how many of the `ids` of `text` come before it.

        None if, for some border, the ids of the text before it are not the first ids of the whole.
        """
        added = [i for i, token in enumerate(ids) if token in self._added]
        positions = {}
        for border in borders:
            position = self._after_added_token(text, ids, added, border)
            if position is None:
                prefix = self.ids(text[:border])
                if ids[: len(prefix)] != prefix:
                    return None
                position = len(prefix)
            positions[border] = position
        return positions

    def _after_added_token(self, text: str, ids: list[int], added: list[int], border: int) -> int | None:
        """The number of tokens before `border`, told from the text after the last added token before it; else None.

        No token crosses an added token (an end of turn, say), so only the few characters after it, mostly a header,
        need tokenising again. All the text before each border would take several times as long.
        """
        encoding = self._encoding(text, False)
        if isinstance(encoding, list):
            return None
        before = bisect_right(added, border, key=lambda i: encoding.token_to_chars(i)[1])
        if not before:
            return None
        last = added[before - 1]
        end, count = encoding.token_to_chars(last)[1], last + 1
        rest = self._ids_between(text[end:border]) if end < border else []
        return count + len(rest) if ids[count : count + len(rest)] == rest else None

    def _ids_between(self, text: str) -> list[int]:
        """Ids of what stands between an added token and a border: one of few headers in most templates."""
        return self._ids_of_header(text) if len(text) <= LONGEST_HEADER else self.ids(text)

    def _encoding(self, text: str, special: bool) -> tokenizers.Encoding | list[int]:
        found = self._primed.get((text, special))
        return self._encode([text], add_special_tokens=special)[0] if found is None else found

    def _encode(self, texts: list[str], *, add_special_tokens: bool) -> list[tokenizers.Encoding] | list[list[int]]:
        """What `tokenizer(texts)` finds, before it is copied into lists."""
        tokenizer = self.tokenizer
        if not tokenizer.is_fast:
            return tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        return backend.encode_batch(texts, add_special_tokens=add_special_tokens)

    def _without_added_end(self, text: str, ids: list[int]) -> list[int]:
        """Without the end-of-text token that some tokenizers add themselves, which must not stand after a prompt."""
        eos, eos_id = self.tokenizer.eos_token, self.tokenizer.eos_token_id
        added = eos is not None and len(ids) > 1 and ids[-1] == eos_id and not text.endswith(eos)
        return ids[:-1] if added else ids
