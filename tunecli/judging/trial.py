"""`tune judge`: a judge tried on the rows of a file, and how well it agrees with what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunecli.config.data_checks import formats_for
from tunecli.config.errors import UserError
from tunecli.config.judged import JudgedConfig
from tunecli.config.stage import Rows
from tunecli.data.examples import Messages, Pair, PromptCompletion, Scored, Text
from tunecli.judging import agreement
from tunecli.judging.agreement import Judged, as_json, correlations
from tunecli.judging.judge import Comparison, Judge, Score, open_judge
from tunecli.judging.questions import Answered, Compared, answered
from tunecli.judging.rows import ANSWERS, Found, read
from tunecli.ops.bootstrap import Interval

TOGETHER = 32
"""Rows that are judged between two looks at the progress."""

Record = dict[str, Any]
Proceed = Callable[[float], object]


@dataclass(frozen=True, slots=True)
class Trial:
    judge: str
    kind: str
    """pairs or texts"""
    records: list[Record]
    measured: dict[str, Interval]
    summary: Record
    """of answers and what they cost"""

    def as_json(self) -> Record:
        return {
            "judge": self.judge,
            "kind": self.kind,
            "rows": len(self.records),
            "metrics": as_json(self.measured),
            **self.summary,
        }


def try_judge(config: JudgedConfig, proceed: Proceed = lambda done: None) -> Trial:
    """
    Raises:
        UserError: no such judge or rows, rows of another kind than it judges, or it does not answer.
    """
    rows, left_out = read(config.data, ANSWERS)
    if not rows:
        raise UserError("holds no rows", where=config.data.path or "data.path", fix="check the file")
    judge = open_judge(config.judge, seed=config.seed)
    pairs = isinstance(rows[0].example, Pair)
    if not pairs and not judge.scores:
        fix = f"judge.mode=score, or a file of pairs: {', '.join(formats_for(Rows.pairs))}"
        raise UserError("compares answers, and the rows hold one each", where=config.data.path or "data", fix=fix)
    started = time.monotonic()
    records: list[Record] = []
    judgments: list[Judged] = []
    for start in range(0, len(rows), TOGETHER):
        part = rows[start : start + TOGETHER]
        if pairs:
            records += _compare(judge, part, config.judge.tie_margin, judgments)
        else:
            records += _rate(judge, part)
        proceed(min(start + TOGETHER, len(rows)) / len(rows))
    measured = agreement.agreement(judgments) if pairs else _against_gold(records)
    summary = summary_of(judge) | {"left_out": left_out, "seconds": round(time.monotonic() - started, 3)}
    return Trial(judge.name, "pairs" if pairs else "texts", records, measured, summary)


def summary_of(judge: Judge) -> Record:
    return {"answers": asdict(judge.counts), "usage": asdict(judge.usage), "cost": judge.cost}


def pair_of(pair: Pair) -> Compared:
    """The better answer first, as far as the row says."""
    first, second = answered(pair.chosen), answered(pair.rejected)
    compared = Compared(first.prompt, first.answer, second.answer)
    return compared.swapped if pair.probability is not None and pair.probability < 0.5 else compared


def _compare(judge: Judge, rows: Sequence[Found], tie_margin: float, judgments: list[Judged]) -> list[Record]:
    examples = [row.example for row in rows]
    pairs = [pair_of(example) for example in examples if isinstance(example, Pair)]
    records = []
    for row, pair, found in zip(rows, pairs, judge.compare(pairs), strict=True):
        known = isinstance(row.example, Pair) and row.example.probability != 0.5
        if found.probability is not None and known:
            judgments.append(agreement.judged(pair, found, tie_margin=tie_margin))
        records.append(row.place | _of_pair(found, tie_margin))
    return records


def _of_pair(found: Comparison, tie_margin: float) -> Record:
    verdict = None
    if found.probability is not None:
        verdict = "tie" if found.is_tie(tie_margin) else "chosen" if found.probability > 0.5 else "rejected"
    return {"verdict": verdict} | _told(asdict(found))


def _rate(judge: Judge, rows: Sequence[Found]) -> list[Record]:
    items = [_item(row.example) for row in rows]
    records = []
    for row, found in zip(rows, judge.score(items), strict=True):
        gold = {"gold": row.example.score} if isinstance(row.example, Scored) else {}
        records.append(row.place | {"score": found.value} | gold | _told(_without(found)))
    return records


def _item(example: Any) -> Answered:
    written = example.text if isinstance(example, Scored) else example
    if isinstance(written, Messages) and not written.context:  # a conversation: its last answer is judged
        last = max(i for i, message in enumerate(written.messages) if message["role"] == "assistant")
        written = Messages(written.messages[: last + 1], context=last)
    assert isinstance(written, Messages | PromptCompletion | Text)
    return answered(written)


def _without(found: Score) -> Record:
    return {name: value for name, value in asdict(found).items() if name != "value"}


def _told(values: Record) -> Record:
    """Without what there is nothing to say of."""
    return {name: value for name, value in values.items() if value not in (None, "", ())}


def _against_gold(records: Sequence[Record]) -> dict[str, Interval]:
    measured = agreement.mean([record["score"] for record in records if record["score"] is not None])
    both = [
        (record["gold"], record["score"]) for record in records if "gold" in record and record["score"] is not None
    ]
    return measured | correlations([gold for gold, _ in both], [score for _, score in both])
