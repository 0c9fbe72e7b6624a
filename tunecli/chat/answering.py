"""One answer, whose text is shown while it comes.

Generation runs in a thread of its own, so that Ctrl-C reaches the thread that waits for its tokens.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer, StoppingCriteria, StoppingCriteriaList

from tunecli.chat.rendering import Rendering
from tunecli.chat.settings import Settings
from tunecli.config.errors import UserError
from tunecli.models.generate import stop_ids

CONTEXT = 8
"""Tokens of a raw prompt that its continuation is decoded with: whether it begins with a space depends on them."""
Piece = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    tokens: int
    ended: str
    """end: by itself | length: at max_new_tokens | stopped: by the user"""
    seed: int


def answer(lm: PreTrainedModel, rendering: Rendering, ids: list[int], settings: Settings, show: Piece) -> Answer:
    """The answer to the prompt `ids`; `show` gets its text in pieces. Ctrl-C ends it early.

    Raises:
        UserError: the model has no room for an answer after this prompt.
    """
    seed = secrets.randbits(31) if settings.seed is None else settings.seed
    stops = list(dict.fromkeys(stop_ids(lm, rendering.tokenizer.eos_token_id) + rendering.stop_ids))
    room = min(settings.max_new_tokens, _room(lm, ids))
    text = _Text(rendering, ids if rendering.continues else [], show)
    worker = _Worker(lm, ids, _generation_config(settings, stops, room, rendering.tokenizer), seed)
    ended = "length"
    worker.start()
    try:
        for token in worker.tokens():
            if token in stops or text.add(token):
                ended = "end"
                break
    except KeyboardInterrupt:
        ended = "stopped"
    finally:
        worker.stop()
    return Answer(text.finish(), len(text.ids), ended, seed)


class _Worker(threading.Thread):
    def __init__(self, lm: PreTrainedModel, ids: list[int], config: GenerationConfig, seed: int) -> None:
        super().__init__(daemon=True)
        self._lm, self._ids, self._config, self._seed = lm, ids, config, seed
        self._queue: SimpleQueue[int | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            devices = [self._lm.device] if self._lm.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(self._seed)
                prompt = torch.tensor([self._ids], device=self._lm.device)
                self._lm.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    generation_config=self._config,
                    streamer=_Tokens(self._queue),
                    stopping_criteria=StoppingCriteriaList([_Stopped(self._stopped)]),
                )
        except BaseException as error:  # raised again where the answer is waited for
            self._error = error
        self._queue.put(None)

    def tokens(self) -> Iterator[int]:
        """Each token as soon as it is there."""
        while (token := self._queue.get()) is not None:
            yield token
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._stopped.set()
        self.join()


class _Tokens(BaseStreamer):
    """Puts what `generate` gives, but for the prompt, into a queue."""

    def __init__(self, queue: SimpleQueue[int | None]) -> None:
        self._queue = queue
        self._after_prompt = False

    def put(self, value: Tensor) -> None:
        if self._after_prompt:
            self._queue.put(int(value.reshape(-1)[0]))
        self._after_prompt = True

    def end(self) -> None:
        """The worker says itself when it is done, also after an error."""


class _Stopped(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """[batch] bool"""
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)


class _Text:
    """The text of tokens that come one by one. All of them are decoded each time, as spaces and characters depend on
    what stands before; a character whose last bytes are missing is held back, and so is what may become the end of
    turn."""

    def __init__(self, rendering: Rendering, context: Sequence[int], show: Piece) -> None:
        self.ids: list[int] = []
        self._tokenizer: PreTrainedTokenizerBase = rendering.tokenizer
        self._end = rendering.stop_text
        self._context = list(context)[-CONTEXT:]
        self._before = self._decoded(self._context)
        self._show = show
        self._shown = ""

    def add(self, token: int) -> bool:
        """Whether the answer has ended with this token."""
        self.ids.append(token)
        text = self._text()
        ended = bool(self._end) and self._end in text
        if not ended and not text.endswith("\ufffd"):
            self._show_up_to(text, len(text) - _overlap(text, self._end))
        return ended

    def finish(self) -> str:
        """The whole text, all of which is shown by now."""
        text = self._text()
        if self._end:
            text = text.partition(self._end)[0]
        self._show_up_to(text, len(text))
        return text

    def _show_up_to(self, text: str, end: int) -> None:
        if piece := text[len(self._shown) : end]:
            self._shown += piece
            self._show(piece)

    def _text(self) -> str:
        text = self._decoded(self._context + self.ids)
        return text[len(self._before) :] if text.startswith(self._before) else self._decoded(self.ids)

    def _decoded(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _overlap(text: str, end: str) -> int:
    """Characters at the end of `text` with which `end` begins."""
    lengths = range(min(len(text), len(end) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(end[:length])), 0)


def _room(lm: PreTrainedModel, ids: list[int]) -> int:
    """Tokens that the model can still take after its prompt, or beside it."""
    most = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    if most is None:
        return 2**31
    if len(ids) >= most:
        raise UserError(
            f"the conversation has {len(ids):,} tokens, and the model takes {most:,} with the answer",
            fix="/undo takes the last turn back, /reset begins anew",
        )
    return most if lm.config.is_encoder_decoder else most - len(ids)


def _generation_config(
    settings: Settings, stops: list[int], room: int, tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """With each value set: those left out would be the model's own."""
    sampled = settings.temperature > 0
    drawn = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    return GenerationConfig(
        max_new_tokens=room,
        do_sample=sampled,
        **(
            drawn if sampled else {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
        ),  # the values that are not warned of
        repetition_penalty=settings.repetition_penalty,
        num_beams=1,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
    )
