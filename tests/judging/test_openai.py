"""A server as judge, which may do anything."""

from __future__ import annotations

import email.utils
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from stub_server import Answer, completion, dripping, longer_wins, send, serving

from tunecli.config.errors import UserError
from tunecli.config.judge import Mode, OpenAIJudgeConfig, Read
from tunecli.judging.cache import Cache
from tunecli.judging.judge import open_judge
from tunecli.judging.openai import Pace, ServerError
from tunecli.judging.questions import Answered, Compared

KEY = "sk-0123456789abcdef"
PAIRS = [Compared(f"Question {i}?", "x" * (i + 1), "x" * 3) for i in range(5)]


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tunecli.judging.openai.random.uniform", lambda low, high: 0.01)
    monkeypatch.setenv("STUB_KEY", KEY)


def judge(url: str, tmp_path: Path, **values):
    own = {"model": "stub", "base_url": url, "api_key_env": "STUB_KEY", "cache": str(tmp_path / "c.sqlite")}
    return open_judge(OpenAIJudgeConfig(**own | values), seed=0)


def after(failures: int, answer: Answer) -> Answer:
    """`answer` to the first requests, then those of `longer_wins`."""

    def wrapped(handler, body, number):
        (answer if number < failures else longer_wins)(handler, body, number)

    return wrapped


def close(handler, body, number) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')
    handler.close_connection = True
    handler.connection.shutdown(2)


FAILURES: dict[str, tuple[Answer, str]] = {
    "429": (lambda handler, body, number: send(handler, {"error": {"message": "slow down"}}, 429), "429"),
    "500": (lambda handler, body, number: send(handler, b"<html>oops</html>", 500), "500"),
    "malformed": (lambda handler, body, number: send(handler, b'{"choices": ['), "malformed"),
    "no choices": (lambda handler, body, number: send(handler, {"choices": []}), "malformed"),
    "no object": (lambda handler, body, number: send(handler, ["choices"]), "malformed"),
    "closed mid-answer": (close, "connection"),
    "slow": (lambda handler, body, number: time.sleep(1.5), "timeout"),
    "dripping": (dripping(2.0), "timeout"),
}


def test_probabilities_are_those_that_the_server_tells(tmp_path: Path):
    with serving(longer_wins) as stub:
        found = judge(stub.url, tmp_path).compare([Compared("q", "xx", "xxx")])[0]
    assert found.as_first == pytest.approx(1 / (1 + 2.718281828 ** -(-0.3 + 0.5)), rel=1e-6)
    assert found.as_second == pytest.approx(1 - 1 / (1 + 2.718281828 ** -(0.3 + 0.5)), rel=1e-6)
    assert found.mass == pytest.approx(0.9)
    assert stub.requests[0]["logprobs"] is True and stub.requests[0]["temperature"] == 0


def test_swapping_the_answers_gives_the_complement_and_costs_nothing_more(tmp_path: Path):
    with serving(longer_wins) as stub:
        own = judge(stub.url, tmp_path)
        found = own.compare(PAIRS)
        swapped = own.compare([pair.swapped for pair in PAIRS])
        assert len(stub.requests) == 2 * len({(pair.prompt, pair.first, pair.second) for pair in PAIRS}) - 1
    for one, other in zip(found, swapped, strict=True):
        assert one.probability + other.probability == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", FAILURES)
def test_errors_that_pass_are_tried_again_and_counted(name: str, tmp_path: Path):
    answer, kind = FAILURES[name]
    with serving(longer_wins) as stub:
        expected = judge(stub.url, tmp_path / "whole").compare(PAIRS)
    with serving(after(4, answer)) as stub:
        patience = 1.0 if kind == "timeout" else 30.0
        own = judge(stub.url, tmp_path, timeout_seconds=patience, parallel_requests=2)
        assert own.compare(PAIRS) == expected
        failures = own.usage.failures[kind]  # on a busy machine more than those run out of time
        assert failures == 4 or (failures > 4 and kind == "timeout")
        assert own.usage.requests == len(stub.requests) == own.usage.answers + failures


@pytest.mark.parametrize("name", ["429", "500", "malformed", "closed mid-answer"])
def test_errors_that_stay_end_in_one_message_and_lose_nothing(name: str, tmp_path: Path):
    answer, kind = FAILURES[name]

    def wrapped(handler, body, number):
        (longer_wins if "Question 0?" in str(body) else answer)(handler, body, number)

    with serving(wrapped) as stub:
        with pytest.raises(ServerError) as caught:
            judge(stub.url, tmp_path, max_retries=2, parallel_requests=1).compare(PAIRS)
        assert f"3 attempts (3 times {kind})" in str(caught.value) and caught.value.exit_status == 1
        assert len(Cache(tmp_path / "c.sqlite")) == 2
        stub.answer = longer_wins
        before = len(stub.requests)
        judge(stub.url, tmp_path).compare(PAIRS)
        assert len(stub.requests) - before == 2 * len(PAIRS) - 2 - 1  # one pair has two equal answers


def test_what_is_under_way_when_another_fails_is_kept(tmp_path: Path):
    all_sent, failed = threading.Barrier(9), threading.Event()

    def answer(handler, body, number):
        all_sent.wait(20)
        if "Question 0?" in str(body):
            send(handler, {"error": "no"}, 400)
            failed.set()
        else:
            failed.wait(20)
            longer_wins(handler, body, number)

    with serving(answer) as stub, pytest.raises(ServerError, match="status 400"):
        judge(stub.url, tmp_path, parallel_requests=10).compare(PAIRS)
    assert len(Cache(tmp_path / "c.sqlite")) == 7  # of 10 questions 2 failed, and 2 are the same


LASTING = {401: "STUB_KEY", 404: "judge.model", 400: "judge.extra"}


@pytest.mark.parametrize(("status", "fix"), LASTING.items())
def test_errors_that_do_not_pass_are_not_tried_again(status: int, fix: str, tmp_path: Path):
    def answer(handler, body, number):
        send(handler, {"error": {"message": f"bad key {KEY}"}}, status, Location="http://127.0.0.1:1/")

    with serving(answer) as stub, pytest.raises(ServerError) as caught:
        judge(stub.url, tmp_path, parallel_requests=1).compare(PAIRS)
    assert len(stub.requests) == 1
    assert f"status {status}: bad key ***" in str(caught.value) and fix in str(caught.value)
    assert KEY not in str(caught.value)


def test_pauses_are_as_long_as_the_server_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    wait = threading.Event.wait
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: pauses.append(timeout) or wait(self, 0))
    date = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    said = ["7", "0.5", date]

    def answer(handler, body, number):
        send(handler, {}, 503, Retry_After=said[number])

    with serving(after(3, answer)) as stub:
        judge(stub.url, tmp_path, parallel_requests=1).compare(PAIRS[:1])
    told = [pause for pause in pauses if pause is not None and pause > 0.3]
    assert told[:2] == [7, 0.5] and 15 < told[2] <= 20


def test_a_pause_that_is_too_long_ends_the_run(tmp_path: Path):
    with serving(lambda handler, body, number: send(handler, {}, 429, Retry_After="3600")) as stub:
        with pytest.raises(ServerError, match="asks to wait 3600 seconds"):
            judge(stub.url, tmp_path, parallel_requests=1).compare(PAIRS)
        assert len(stub.requests) == 1


def test_nobody_at_the_address(tmp_path: Path):
    with serving(longer_wins) as stub:
        url = stub.url
    with pytest.raises(ServerError, match="2 times connection"):
        judge(url, tmp_path, max_retries=1).compare(PAIRS[:1])


def test_without_log_probabilities_votes_are_counted(tmp_path: Path):
    votes = iter(["1", "1", "2", "1", "2", "2", "2", "1"] * 2)
    lock = threading.Lock()

    def answer(handler, body, number):
        with lock:
            send(handler, completion("1" if body.get("logprobs") else next(votes)))

    with serving(answer) as stub:
        own = judge(stub.url, tmp_path, parallel_requests=1)
        found = own.compare(PAIRS[:1])[0]
        assert {found.as_first, found.as_second} <= {0.0, 0.25, 0.5, 0.75, 1.0}
        assert found.mass is None and found.consistency is not None
        asked = len(stub.requests)
        own.compare(PAIRS[1:2])
        assert len(stub.requests) - asked == 8  # it is known by now that the server has none
        assert {body["temperature"] for body in stub.requests[asked:]} == {1.0}
        assert len({body["seed"] for body in stub.requests[asked:]}) == 4


def test_log_probabilities_that_are_insisted_on(tmp_path: Path):
    with serving(lambda handler, body, number: send(handler, completion("1"))) as stub:
        own = judge(stub.url, tmp_path, read=Read.logprobs)
        with pytest.raises(UserError, match="gives no log-probabilities"):
            own.compare(PAIRS[:1])


def test_the_key_does_not_follow_to_another_address(tmp_path: Path):
    with serving(longer_wins) as other:

        def answer(handler, body, number):
            send(handler, {}, 307, Location=f"{other.url}/chat/completions")

        with serving(answer) as stub, pytest.raises(ServerError, match="status 307"):
            judge(stub.url, tmp_path, parallel_requests=1).compare(PAIRS)
        assert other.requests == []


def test_answers_that_cannot_be_read_are_asked_for_again_with_another_seed(tmp_path: Path):
    def answer(handler, body, number):
        if body["temperature"] == 0:
            send(handler, completion("Both are nice."))
        else:
            longer_wins(handler, body, number)

    with serving(answer) as stub:
        own = judge(stub.url, tmp_path)
        assert own.compare(PAIRS[:1])[0].probability is not None
        assert own.counts.unreadable == 2 and own.counts.failed == 0
        assert {body["temperature"] for body in stub.requests} == {0, 1.0}
    with serving(lambda handler, body, number: send(handler, completion("Both."))) as stub:
        own = judge(stub.url, tmp_path / "never", retries=2)
        assert own.compare(PAIRS[:1])[0].probability is None
        assert own.counts.unreadable == 6 and own.counts.failed == 2


def test_scores_of_a_server(tmp_path: Path):
    def answer(handler, body, number):
        send(handler, completion("Rating: 8", {"8": 0.5, "7": 0.25, "\n": 0.25}))

    with serving(answer) as stub:
        (found,) = judge(stub.url, tmp_path, mode=Mode.score).score([Answered("q", "a")])
    assert found.value == pytest.approx(8 * 2 / 3 + 7 / 3)
    assert found.mass == pytest.approx(0.75)


def test_the_key_is_sent_and_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(longer_wins) as stub:
        own = judge(stub.url, tmp_path)
        own.compare(PAIRS)
        assert {headers["Authorization"] for headers in stub.headers} == {f"Bearer {KEY}"}
        judge(stub.url, tmp_path / "none", api_key_env=None).compare(PAIRS[:1])
        assert "Authorization" not in stub.headers[-1]
    assert KEY not in str(own.identity)
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_tokens_and_cost_are_counted(tmp_path: Path):
    with serving(longer_wins) as stub:
        own = judge(stub.url, tmp_path, price_input=2.0, price_output=10.0)
        own.compare(PAIRS[:1])
    assert (own.usage.prompt_tokens, own.usage.written_tokens) == (200, 4)
    assert own.cost == pytest.approx((200 * 2 + 4 * 10) / 1e6)


def test_no_more_requests_at_once_than_allowed(tmp_path: Path):
    running, most = 0, 0
    lock = threading.Lock()

    def answer(handler, body, number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        longer_wins(handler, body, number)

    with serving(answer) as stub:
        judge(stub.url, tmp_path, parallel_requests=3).compare(PAIRS)
    assert 1 <= most <= 3


def test_no_more_requests_a_minute_than_allowed(monkeypatch: pytest.MonkeyPatch):
    class Waits(list):
        def wait(self, seconds: float) -> None:
            self.append(seconds)

    monkeypatch.setattr("tunecli.judging.openai.time.monotonic", lambda: 100.0)
    pace, waits = Pace(30), Waits()
    for _ in range(3):
        pace.wait(waits)
    assert waits == [0, 2, 4]
    Pace(None).wait(waits)
    assert len(waits) == 3
