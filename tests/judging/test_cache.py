"""The cache of answers: several processes, and a kill at any time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tunecli.config.errors import UserError
from tunecli.judging.backend import Ask, Reply
from tunecli.judging.cache import Cache, key_of
from tunecli.judging.questions import Question

ASK = Ask(Question("Which?", "Better:", ("1", "2"), False), True, 0.0, 16, 0)


def test_what_is_put_is_got_to_the_last_bit(tmp_path: Path):
    replies = {"a": Reply("text \ud800 \u2028", (1 / 3, 2 / 3), 0.1 + 0.2), "b": Reply("", None, problem="too long")}
    Cache(tmp_path / "c.sqlite").put(replies.items())
    assert Cache(tmp_path / "c.sqlite").get(["a", "b", "c"]) == replies


def test_what_is_there_stays(tmp_path: Path):
    cache = Cache(tmp_path / "c.sqlite")
    cache.put([("a", Reply("first", None))])
    cache.put([("a", Reply("second", None))])
    assert cache.get(["a"])["a"].text == "first"


def test_every_part_of_a_question_is_in_its_key():
    question = ASK.question
    others = [
        replace(ASK, question=replace(question, text="Which? ")),
        replace(ASK, question=replace(question, verdict="Worse:")),
        replace(ASK, question=replace(question, choices=("2", "1"))),
        replace(ASK, question=replace(question, reasoned=True)),
        replace(ASK, logprobs=False),
        replace(ASK, temperature=1.0),
        replace(ASK, max_new_tokens=17),
        replace(ASK, seed=1),
    ]
    keys = {key_of({"model": "m"}, each) for each in [ASK, *others]} | {key_of({"model": "n"}, ASK)}
    assert len(keys) == len(others) + 2
    assert key_of({"model": "m"}, ASK) == key_of({"model": "m"}, replace(ASK))


def test_more_keys_than_one_query_takes(tmp_path: Path):
    cache = Cache(tmp_path / "c.sqlite")
    cache.put([(str(i), Reply(str(i), None)) for i in range(1234)])
    found = cache.get([str(i) for i in range(2000)])
    assert len(found) == len(cache) == 1234


def _write(path: Path, process: int) -> None:
    cache = Cache(path)
    for i in range(30):
        cache.put([(f"{i}", Reply("same", None)), (f"{process} {i}", Reply("own", None))])


def test_processes_write_at_the_same_time(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(tmp_path / "c.sqlite", i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(Cache(tmp_path / "c.sqlite")) == 30 + 3 * 30


WRITER = """
import sys
from pathlib import Path
from tunecli.judging.backend import Reply
from tunecli.judging.cache import Cache
cache = Cache(Path(sys.argv[1]))
i = 0
while True:
    cache.put([(f"{i} {j}", Reply("x" * 2000, (0.25, 0.75))) for j in range(5)])
    print(i, flush=True)
    i += 1
"""


def test_a_kill_loses_nothing_that_was_put_and_halves_nothing(tmp_path: Path):
    path = tmp_path / "c.sqlite"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    done = [int(process.stdout.readline()) for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    done += [int(line) for line in process.stdout.read().split()]
    process.wait()
    cache = Cache(path)
    groups = [cache.get([f"{i} {j}" for j in range(5)]) for i in range(done[-1] + 2)]
    assert all(len(group) == 5 for group in groups[: done[-1] + 1])
    assert len(groups[-1]) in (0, 5)
    assert all(reply == Reply("x" * 2000, (0.25, 0.75)) for group in groups for reply in group.values())


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path):
    path = tmp_path / "c.sqlite"
    path.write_text("no database, but long enough to be taken for one" * 50)
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be used"):
        Cache(path)
    assert time.monotonic() - started < 60
