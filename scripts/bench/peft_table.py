"""The table of PEFT methods on real reviews: accuracy, parameters, memory, speed and size, row by row.

- `minilm`: a 22M-parameter encoder learns to tell positive from negative reviews, with every method that applies to
  it (`peft_minilm.py`). The learning rate is chosen of 1, 3 and 10 times the row's default by 300 held-out training
  reviews with the first seed; then the other seeds are run at that rate. Accuracy is on 300 other reviews.
- `smollm2`: `tune run recipe=quickstart` with other methods at their default rates and 8 reviews in each step;
  accuracy is how often the more likely one of both answers is right, of the same 300 reviews, and how often the
  answer that it writes is, of the first 100 of them.

Each run is a process of its own, so that its peak memory is its own, and a line in a file. What is in that file is
not run again: the script can be stopped at any time, and goes on where it was. A run that fails is said and left out.

    python scripts/bench/peft_table.py --part minilm --results minilm.jsonl [--only lora] [--show]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench_results import ROOT, Record, Results, as_markdown, as_text, call, percent, say
from peft_rows import FACTORS, MINILM, SMOLLM2, Row

NEEDED = {
    "minilm": (ROOT / "assets" / "models" / "all-MiniLM-L6-v2", ROOT / "assets" / "data" / "movie_reviews"),
    "smollm2": (ROOT / "assets" / "models" / "SmolLM2-135M-Instruct", ROOT / "assets" / "data" / "movie_reviews"),
}


def minilm(row: str, rate: float, seed: int, steps: int, folder: Path) -> Record:
    """Raises RuntimeError if the run fails."""
    script, out = Path(__file__).with_name("peft_minilm.py"), folder / "result.json"
    settings = [f"--row={row}", f"--rate={rate}", f"--seed={seed}", f"--steps={steps}"]
    call([str(script), *settings, f"--adapter={folder / 'adapter'}", f"--out={out}"])
    return json.loads(out.read_text())


def smollm2(row: str, rate: float, seed: int, steps: int, folder: Path) -> Record:
    """Raises RuntimeError if the run fails."""
    run_dir = folder / "run"
    settings = [f"train.max_steps={steps}", "train.global_batch_size=8", "train.eval_every=null", f"seed={seed}"]
    settings += ["train.save_every=null", "evaluation.exact_match=100", f"train.learning_rate={rate}"]
    places = ["launch=cpu", f"output_dir={run_dir}"]
    call(["-m", "tunecli", "run", "recipe=quickstart", *SMOLLM2[row].overrides, *settings, *places])
    return read_run(run_dir)


def read_run(run_dir: Path) -> Record:
    """What the table shows of a finished run directory."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    evaluation = [line for line in lines if "eval/exact_match" in line][-1]
    trained, total = re.search(r"trains ([\d,]+) of ([\d,]+) parameters", (run_dir / "log.txt").read_text()).groups()
    counts = [int(number.replace(",", "")) for number in (trained, total)]
    adapter = [path for path in (run_dir / "adapter").glob("*/*") if path.is_file()]
    return {
        "test": evaluation["eval/exact_match"],
        "choices": evaluation["eval/choice_accuracy"],
        "trained": counts[0],
        "base": counts[1] - counts[0],
        "memory_peak_bytes": training[-1]["memory_peak_bytes"],
        "tokens_per_second": median(line["tokens_per_second"] for line in training),
        "seconds": training[-1]["seconds"],
        "adapter_bytes": sum(path.stat().st_size for path in adapter),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    rows: Mapping[str, Row]
    run: Callable[[str, float, int, int, Path], Record]
    steps: int
    factors: tuple[float, ...]
    """of the default rate, to choose from"""


PARTS = {
    "minilm": Part(rows=MINILM, run=minilm, steps=200, factors=FACTORS),
    "smollm2": Part(rows=SMOLLM2, run=smollm2, steps=60, factors=(1,)),
}


def finish_row(part: str, row: str, seeds: Sequence[int], steps: int, results: Results) -> None:
    """Every run of the row that is not among the results yet."""
    rates = [rate_of(PARTS[part].rows[row], factor) for factor in PARTS[part].factors]
    first = [run_once(part, row, rate, seeds[0], steps, results) for rate in rates]
    if chosen := best([record for record in first if record is not None]):
        for seed in seeds[1:]:
            run_once(part, row, chosen["rate"], seed, steps, results)


def rate_of(row: Row, factor: float) -> float:
    return float(f"{row.rate * factor:.6g}")


def best(records: Iterable[Record]) -> Record | None:
    """Of runs at different rates, the best on the validation reviews; of equals, that with the lowest rate."""
    return max(records, key=lambda record: (record.get("validation", 0.0), -record["rate"]), default=None)


def run_once(part: str, row: str, rate: float, seed: int, steps: int, results: Results) -> Record | None:
    """The record of this run, which is made now if there is none. None: it failed."""
    key = {"part": part, "row": row, "rate": rate, "seed": seed, "steps": steps}
    if known := results.find(key):
        return known
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            record = key | PARTS[part].run(row, rate, seed, steps, Path(folder))
        except RuntimeError as error:
            say(f"FAILED  {row}, rate {rate:g}, seed {seed}: {error}")
            return None
    results.add(record)
    scores = f"validation {record['validation']:.3f}, test" if "validation" in record else "test"
    say(f"{row}, rate {rate:g}, seed {seed}: {scores} {record['test']:.3f} ({time.monotonic() - started:.0f} s)")
    return record


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    cell: Callable[[Row, Sequence[Record], Sequence[Record]], str]
    """of the row, its runs at the chosen rate, and all of its runs"""


def chosen_rate(row: Row, chosen: Sequence[Record], _: Sequence[Record]) -> str:
    rate = chosen[0]["rate"]
    return f"{rate:g} ({rate / row.rate:.0f} x)"


def size(number: float) -> str:
    return "-" if not number else f"{number / 1e6:.2f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"


COLUMNS = [
    Column("trained", lambda row, chosen, _: f"{chosen[0]['trained']:,}"),
    Column("share", lambda row, chosen, _: f"{100 * chosen[0]['trained'] / chosen[0]['base']:.3f} %"),
    Column("accuracy %: mean ± sd (min to max)", lambda row, chosen, _: percent([run["test"] for run in chosen])),
    Column("rate", chosen_rate),
    Column("peak memory", lambda row, _, every: f"{max(run['memory_peak_bytes'] for run in every) / 1e9:.2f} GB"),
    Column("real tok/s", lambda row, _, every: f"{median(run['tokens_per_second'] for run in every):.0f}"),
    Column("on disk", lambda row, chosen, _: size(chosen[0]["adapter_bytes"])),
    Column("seeds", lambda row, chosen, _: str(len(chosen))),
]
CHOICES = Column("likelier answer %", lambda row, chosen, _: percent([run["choices"] for run in chosen]))


def table(part: str, records: Sequence[Record], seeds: Sequence[int], steps: int) -> list[list[str]]:
    """The heading, and a line for each row with at least one run of `steps` steps."""
    columns = COLUMNS[:3] + [CHOICES] * (part == "smollm2") + COLUMNS[3:]
    lines = [["method", *(column.title for column in columns)]]
    for name, row in PARTS[part].rows.items():
        rates = {rate_of(row, factor) for factor in PARTS[part].factors}
        every = [
            record
            for record in records
            if (record["part"], record["row"], record["steps"]) == (part, name, steps)
            and record["rate"] in rates
            and record["seed"] in seeds
        ]
        if winner := best(record for record in every if record["seed"] == seeds[0]):
            chosen = [record for record in every if record["rate"] == winner["rate"]]
            lines.append([name, *(column.cell(row, chosen, every) for column in columns)])
    return lines


NOTES = {
    "minilm": """The head (770 parameters) is trained in each row; it is in no count, and not on disk. Peak memory:
of the whole process up to the end of training, Python and torch too (about 0.5 GB before the first step). Real tok/s:
tokens of text per second of CPU time of one core, the median of all runs. On disk, of `full`: the model.""",
    "smollm2": """Accuracy: the answer that the model writes is the right word (100 reviews). Peak memory: of the
whole process, Python and torch too. Real tok/s: on the clock, the median of each run's steps and of all runs.""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the PEFT methods on movie reviews.")
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--results", type=Path, help="JSON lines; default: outputs/bench/peft_table_PART.jsonl")
    parser.add_argument("--only", default="", metavar="PATTERN", help="rows in whose name this regular expression is")
    parser.add_argument("--show", action="store_true", help="print what is there and run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first one chooses the rate")
    parser.add_argument("--steps", type=int, help="of each run; default: 200 for minilm, 60 for smollm2")
    given = parser.parse_args()
    for path in NEEDED[given.part]:
        if not path.exists():
            sys.exit(f"{path} is missing\n  fix: python scripts/fetch_assets.py")
    steps = given.steps or PARTS[given.part].steps
    results = Results(given.results or ROOT / "outputs" / "bench" / f"peft_table_{given.part}.jsonl")
    results.path.parent.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    rows = [] if given.show else [row for row in PARTS[given.part].rows if re.search(given.only, row)]
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda row: finish_row(given.part, row, given.seeds, steps, results), rows))
    lines = table(given.part, results.read(), given.seeds, steps)
    print(f"\n{given.part}, {steps} steps\n\n{as_text(lines)}\n\n{as_markdown(lines)}\n\n{NOTES[given.part]}")


if __name__ == "__main__":
    main()
