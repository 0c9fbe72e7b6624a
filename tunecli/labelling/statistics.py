"""What a labelled set is like: of its lines, hence the same however often the run was stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tunecli.config.counted import counted
from tunecli.labelling.store import Outcome

Record = dict[str, Any]


def statistics(outcomes: Sequence[Outcome], num_rows: int, tie_margin: float) -> Record:
    records = [record for outcome in outcomes for each in outcome.records.values() for record in each]
    why = Counter(_kind(text) for outcome in outcomes for texts in outcome.left_out.values() for text in texts)
    found: Record = {"rows": num_rows, "written": len(records), "left_out": dict(sorted(why.items()))}
    if records and "chosen" in records[0]:
        found |= _of_pairs(records, tie_margin)
    scored = [[value for value in record["scores"] if value is not None] for record in records if "scores" in record]
    if scored:
        found["mean_score"] = _mean([_mean(values) for values in scored])
        found["mean_best_score"] = _mean([max(values) for values in scored])
    if records and "original" in records[0]:
        found["changed"] = _mean([float(_last(record) != record["original"]) for record in records])
    return found


def _of_pairs(records: Sequence[Record], tie_margin: float) -> Record:
    """Shares and means over pairs. position_bias: how often the two orders contradict each other."""
    probabilities = [record["probability"] for record in records]
    orders = [record["judgment"] for record in records if record["judgment"]["as_first"] is not None]
    consistency = [record["judgment"]["consistency"] for record in records]
    mass = [record["judgment"]["mass"] for record in records]
    lengths = [(len(_last_text(record["chosen"])), len(_last_text(record["rejected"]))) for record in records]
    found: Record = {
        "mean_probability": _mean(probabilities),
        "ties": _mean([float(each - 0.5 <= tie_margin) for each in probabilities]),
        "longer_is_chosen": _mean([0.5 * ((a > b) + (a >= b)) for a, b in lengths]),
    }
    if orders:
        contradict = [(each["as_first"] > 0.5) != (each["as_second"] > 0.5) for each in orders]
        found["position_bias"] = _mean([float(each) for each in contradict])
        # The mean probability of what stands first, over both orders of each pair.
        found["first_place"] = _mean([(each["as_first"] + 1 - each["as_second"]) / 2 for each in orders])
    for name, values in {"consistency": consistency, "mass": mass}.items():
        if known := [value for value in values if value is not None]:
            found[name] = _mean(known)
    if "agrees" in records[0]:
        found["agrees_with_given"] = _mean([float(record["agrees"]) for record in records])
    return found


WORDS = {
    "mean_probability": "mean probability of the better answer",
    "ties": "ties",
    "position_bias": "pairs whose orders contradict each other",
    "first_place": "mean probability of what stands first",
    "consistency": "answers to a question that agree",
    "mass": "probability of all verdicts together",
    "longer_is_chosen": "pairs whose longer answer is the better one",
    "agrees_with_given": "pairs judged as they were given",
    "mean_score": "mean score",
    "mean_best_score": "mean score of the best answers",
    "changed": "answers that were changed",
}
NUMBERS = ("mean_probability", "first_place", "mean_score", "mean_best_score")
"""Those that read best as they are, not in percent."""


def lines_of(found: Record) -> list[str]:
    lines = [f"{counted(found['written'], 'line')} of {counted(found['rows'], 'row')}"]
    for name, text in WORDS.items():
        if name in found:
            shown = f"{found[name]:.3f}" if name in NUMBERS else f"{100 * found[name]:.1f}%"
            lines.append(f"{text}: {shown}")
    lines += [f"left out: {counted(number, 'time')} {why}" for why, number in found["left_out"].items()]
    return lines


def _kind(why: str) -> str:
    """Without the numbers of one row."""
    return "too long" if "tokens" in why else why


def _last_text(answer: str | list[Record]) -> str:
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


def _last(record: Record) -> str:
    return record["completion"] if "completion" in record else str(record["messages"][-1]["content"])


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)
