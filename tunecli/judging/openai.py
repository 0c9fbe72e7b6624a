"""A model behind an HTTP server that speaks OpenAI's chat completions, as judge.

Requests run in parallel and are sent again after errors that may pass: 408, 409, 425, 429 and 5xx, lost connections,
time that ran out, and answers that are no answers. Pauses double from one second, or are as long as the server's
Retry-After says. Each answer is handed on as soon as it is there, so that nothing that was paid for is lost.

The key comes from the environment, goes into the header of the request and nowhere else: what servers say is shown
with the key masked, redirects are not followed, and ~/.netrc is not read.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import Any

import requests
import urllib3
from requests.auth import AuthBase

from tunecli.config.errors import UserError
from tunecli.config.judge import OpenAIJudgeConfig
from tunecli.engine.text import harmless
from tunecli.judging import verdicts
from tunecli.judging.backend import Ask, Reply, Usage
from tunecli.judging.questions import Question

PASSING = {408, 409, 425, 429}
"""Statuses below 500 after which a request is sent again."""
TOP = 20
"""Most likely tokens at each place that are asked for; what OpenAI allows."""
LARGEST = 8_000_000
"""Bytes of an answer."""
SHOWN = 300
"""Characters of what a server says that are shown."""


class ServerError(UserError):
    """The server gives no answer. Not the configuration's fault, hence status 1."""

    exit_status = 1


class _Stopped(ServerError):
    """Another request failed for good, and this one was not sent."""


class _Failure(Exception):
    """One attempt that failed, and may not the next time."""

    def __init__(self, kind: str, what: str, wait: float | None = None) -> None:
        """
        Args:
            wait: seconds that the server asks for.
        """
        super().__init__(what)
        self.kind, self.what, self.wait = kind, what, wait


class OpenAI:
    together = False

    def __init__(self, config: OpenAIJudgeConfig) -> None:
        self.config = config
        self.name = f"{config.model} at {config.base_url}"
        self.identity: dict[str, Any] = {
            "backend": "openai",
            "base_url": config.base_url.rstrip("/"),
            "model": config.model,
            "extra": dict(config.extra),
        }
        self.usage = Usage()
        self._pace = Pace(config.requests_per_minute)
        self._sessions = threading.local()
        self._counting = threading.Lock()
        self._stopped = threading.Event()

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        """As they come.

        Raises:
            ServerError: a request failed for good; the answers to those that were under way came before.
        """
        if not asks:
            return
        self._stopped.clear()
        started = time.monotonic()
        pool = ThreadPoolExecutor(max_workers=min(self.config.parallel_requests, len(asks)))
        running = {pool.submit(self._answer, ask): i for i, ask in enumerate(asks)}
        try:
            yield from self._collected(running)
        finally:
            self._stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self.usage.seconds += time.monotonic() - started

    def _collected(self, running: dict[Future[Reply], int]) -> Iterator[tuple[int, Reply]]:
        error: BaseException | None = None
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                number = running.pop(future)
                if future.cancelled():
                    continue
                if (found := future.exception()) is None:
                    self.usage.answers += 1
                    yield number, future.result()
                elif error is None or isinstance(error, _Stopped):
                    error = found
                    for each in running:
                        each.cancel()
        if error is not None:
            raise error

    def _answer(self, ask: Ask) -> Reply:
        """
        Raises:
            ServerError: all attempts failed, or one in a way that no other attempt would mend.
        """
        failures: list[_Failure] = []
        while True:
            self._pace.wait(self._stopped)
            if self._stopped.is_set():
                raise _Stopped("another request failed", where=self.config.base_url)
            try:
                return _reply(ask, self._received(ask), self)
            except _Failure as failure:
                failures.append(failure)
                self._count(failures=failure.kind)
                pause = self._pause(failures)
            self._stopped.wait(pause)

    def _pause(self, failures: Sequence[_Failure]) -> float:
        """Seconds until the next attempt.

        Raises:
            ServerError: there is none.
        """
        last, most = failures[-1], self.config.max_wait_seconds
        if len(failures) > self.config.max_retries:
            kinds = {each.kind: sum(other.kind == each.kind for other in failures) for each in failures}
            told = ", ".join(f"{number} times {kind}" for kind, number in kinds.items())
            raise self._error(f"gave no answer in {len(failures)} attempts ({told}); the last: {last.what}")
        if last.wait is not None and last.wait > most:
            fix = f"start again then, or judge.max_wait_seconds={math.ceil(last.wait)}"
            raise self._error(f"asks to wait {last.wait:.0f} seconds: {last.what}", fix)
        usual = min(most, 2.0 ** (len(failures) - 1)) * random.uniform(0.75, 1.0)
        return usual if last.wait is None else last.wait

    def _received(self, ask: Ask) -> dict[str, Any]:
        """The body of one answer.

        Raises:
            _Failure: the next attempt may go better.
            ServerError: it would not.
        """
        self._count(requests=1)
        end = time.monotonic() + self.config.timeout_seconds
        try:
            with self._session().post(
                f"{self.config.base_url.rstrip('/')}/chat/completions",
                json=self._body(ask),
                auth=_Key(self._secret),
                timeout=self.config.timeout_seconds,
                allow_redirects=False,
                stream=True,
            ) as response:
                text = _text(response, end)
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            raise _Failure("timeout", f"no whole answer in {self.config.timeout_seconds:g} seconds") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _Failure("connection", self._masked(str(error) or type(error).__name__)) from None
        self._check(response, text)
        try:
            found = json.loads(text)
        except ValueError:
            raise _Failure("malformed", f"the answer is no JSON: {self._masked(text)!r}") from None
        if not isinstance(found, dict):
            raise _Failure("malformed", f"the answer is no JSON object: {self._masked(text)!r}")
        return found

    def _check(self, response: requests.Response, text: str) -> None:
        status = response.status_code
        if status == 200:
            return
        what = f"status {status}: {self._masked(_message(text))}"
        if status in PASSING or status >= 500:
            raise _Failure(str(status), what, _retry_after(response.headers))
        fix = {
            401: f"check the key in {self.config.api_key_env}"
            if self.config.api_key_env
            else "judge.api_key_env=NAME",
            403: f"check what the key in {self.config.api_key_env} may do",
            404: "check judge.base_url and judge.model",
        }.get(status, "check judge.model, judge.extra and judge.max_tokens_name")
        raise self._error(what, fix)

    def _body(self, ask: Ask) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": ask.question.text}],
            "temperature": ask.temperature,
            self.config.max_tokens_name: ask.max_new_tokens,
            "seed": ask.seed,
        }
        if ask.logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP}
        return body | dict(self.config.extra)

    @property
    def _secret(self) -> str:
        return os.environ.get(self.config.api_key_env or "", "").strip()

    def _masked(self, text: str) -> str:
        """What a server or a library said, without the key."""
        shown = text.replace(self._secret, "***") if self._secret else text
        return harmless(" ".join(shown.split()))[:SHOWN]

    def _error(self, what: str, fix: str = "start it again: what was answered is kept") -> ServerError:
        self._stopped.set()  # requests that wait to be sent are not
        return ServerError(what, where=self.config.base_url, fix=fix)

    def _session(self) -> requests.Session:
        """One for each thread, which keeps its connection."""
        if not hasattr(self._sessions, "own"):
            self._sessions.own = requests.Session()
        return self._sessions.own

    def _count(self, *, requests: int = 0, failures: str = "", prompt: int = 0, written: int = 0) -> None:
        with self._counting:
            self.usage.requests += requests
            self.usage.prompt_tokens += prompt
            self.usage.written_tokens += written
            if failures:
                self.usage.failures[failures] = self.usage.failures.get(failures, 0) + 1

    def count_tokens(self, usage: Any) -> None:
        """Of `usage` in an answer, where the server tells."""
        given = usage if isinstance(usage, dict) else {}
        prompt, written = given.get("prompt_tokens"), given.get("completion_tokens")
        self._count(
            prompt=prompt if isinstance(prompt, int) else 0, written=written if isinstance(written, int) else 0
        )

    @property
    def cost(self) -> float | None:
        """Of all answers so far; None where no prices are given."""
        paid_in, paid_out = self.config.price_input, self.config.price_output
        if paid_in is None or paid_out is None:
            return None
        return (self.usage.prompt_tokens * paid_in + self.usage.written_tokens * paid_out) / 1e6


class _Key(AuthBase):
    """As `auth=`, or requests would take a password out of ~/.netrc."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Pace:
    """Lets requests go at most so many a minute, evenly."""

    def __init__(self, per_minute: float | None) -> None:
        self._apart = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stopped: threading.Event) -> None:
        if not self._apart:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._apart
        stopped.wait(start - now)


def _text(response: requests.Response, end: float) -> str:
    """The whole body, which has to be there at `end`: a server may send it byte by byte."""
    parts, size = [], 0
    while part := response.raw.read1(1 << 16, decode_content=True):
        parts.append(part)
        size += len(part)
        if time.monotonic() > end:
            raise requests.Timeout
        if size > LARGEST:
            raise _Failure("malformed", f"the answer is longer than {LARGEST:,} bytes")
    return b"".join(parts).decode("utf-8", "replace")


def _reply(ask: Ask, body: Mapping[str, Any], server: OpenAI) -> Reply:
    """
    Raises:
        _Failure: the body is no answer.
    """
    try:
        choice = body["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise _Failure("malformed", "the answer has no choices[0].message.content") from None
    if text is not None and not isinstance(text, str):
        raise _Failure("malformed", "choices[0].message.content is no text")
    server.count_tokens(body.get("usage"))
    question, text = ask.question, (text or "").strip()
    chosen = verdicts.read(text, question.verdict, question.choices, reasoned=question.reasoned)
    if chosen is None:
        return Reply(text, None)
    weighed = _weighed(choice.get("logprobs"), question, chosen) if ask.logprobs else None
    if weighed is not None:
        return Reply(text, *weighed)
    return Reply(text, tuple(verdicts.certain(chosen, len(question.choices))))


def _weighed(told: Any, question: Question, chosen: int) -> tuple[tuple[float, ...], float] | None:
    """Probabilities of the verdicts and their sum, at the token that gives the verdict; None where the server does
    not tell. A verdict that is not among the likeliest tokens has none."""
    places = told.get("content") if isinstance(told, dict) else None
    if not isinstance(places, list) or not all(isinstance(place, dict) for place in places):
        return None
    verdict = question.choices[chosen]
    for i in range(len(places) - 1, -1, -1):  # the verdict comes last
        weights = _weights(places[i], question.choices)
        if _token(places[i]) == verdict:
            break
        if i + 1 < len(places) and _token(places[i]) + _token(places[i + 1]) == verdict:  # 1, then 0
            further = _weights(places[i + 1], [_token(places[i + 1])])[_token(places[i + 1])]
            begun = weights.get(_token(places[i]), 0.0)
            weights |= {verdict: begun * further, _token(places[i]): begun * max(0.0, 1 - further)}
            break
    else:
        return None
    shares, mass = verdicts.normalised(list(weights.values()))
    return (tuple(shares), mass) if mass > 0 else None


def _weights(place: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, float]:
    """Probability of each of `tokens`, 0 for those that the server does not name."""
    weights = dict.fromkeys(tokens, 0.0)
    for each in place.get("top_logprobs") or [place]:
        token, logprob = _token(each), each.get("logprob")
        if token in weights and isinstance(logprob, int | float):
            weights[token] += math.exp(min(float(logprob), 0.0))
    return weights


def _token(place: Mapping[str, Any]) -> str:
    return str(place.get("token", "")).strip()


def _message(text: str) -> str:
    """What an error's body says."""
    try:
        found = json.loads(text)
        error = found.get("error", found) if isinstance(found, dict) else found
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        return text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, which may be given as a date."""
    value = headers.get("Retry-After", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
