"""Answers that were given once, in a SQLite file: by a hash of the judge, the whole question and how it was asked.

Safe under several processes and a kill at any time: the file is written ahead (WAL), and each `put` is one
transaction. What a key stands for is in the key, so nothing ever has to be thrown away.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunecli.config.errors import UserError
from tunecli.judging.backend import Ask, Reply
from tunecli.judging.questions import digest

VERSION = 1
"""Part of each key; raise it when answers to the same question come to mean something else."""
PATIENCE = 120.0
"""Seconds to wait for other processes."""
AT_ONCE = 500
"""Keys in one query."""


def key_of(identity: dict[str, Any], ask: Ask) -> str:
    return digest([VERSION, identity, asdict(ask)])


class Cache:
    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: the file cannot be opened or is no cache.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            patiently(self._connection, "PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            patiently(
                self._connection, "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"
            )
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"cannot be used: {error}", where=str(path), fix="judge.cache=FILE names another"
            ) from None

    def get(self, keys: Sequence[str]) -> dict[str, Reply]:
        found: dict[str, Reply] = {}
        for start in range(0, len(keys), AT_ONCE):
            part = list(keys[start : start + AT_ONCE])
            marks = ",".join("?" * len(part))
            rows = self._connection.execute(f"SELECT key, reply FROM answers WHERE key IN ({marks})", part)
            found |= {key: _reply(text) for key, text in rows}
        return found

    def put(self, replies: Iterable[tuple[str, Reply]]) -> None:
        """All or none. What is there already stays."""
        rows = [(key, json.dumps(asdict(reply))) for key, reply in replies]
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        self._connection.close()


def _reply(text: str) -> Reply:
    values = json.loads(text)
    shares = values.pop("probabilities")
    return Reply(probabilities=None if shares is None else tuple(shares), **values)


def patiently(connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()) -> None:
    """SQLite does not wait by itself where several processes turn a new file to WAL at once."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute(statement, values)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)
