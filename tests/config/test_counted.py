from __future__ import annotations

from tunecli.config.counted import counted


def test_nouns_follow_their_number():
    assert [counted(number, "row") for number in (0, 1, 1200)] == ["0 rows", "1 row", "1,200 rows"]
    assert counted(2, "process", "processes") == "2 processes"
