"""Tables of tasks on real data, three seeds each: classification, entities, words for labels, several data sets in
one run, and what is forgotten. The rows are in `task_rows.py`.

Each run is `tune run`, and what its result is asked `tune eval`, as a user would; each is a process of its own and a
line in a file. What is in that file is not run again: the script can be stopped at any time, and goes on where it
was. A run that fails is said and left out. scikit-learn's TF-IDF with a logistic regression, on the same rows, stands
beside the reviews and the domains.

    python scripts/bench/task_table.py --part reviews --results reviews.jsonl [--only lora] [--show]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from statistics import mean, stdev

from bench_results import ROOT, Record, Results, as_markdown, as_text, call, percent, say
from task_rows import DOMAINS, PARTS, SENTIMENT, TaskRow

SHARES = ("accuracy", "f1", "mcc", "exact_match", "choice_accuracy", "f1_macro", "precision", "recall")
SHOWN = {
    "reviews": ("accuracy", "gap accuracy"),
    "entities": ("f1", "precision", "recall", "gap f1"),
    "words": ("accuracy", "ece"),
    "domains": ("accuracy", *(f"accuracy {domain}" for domain in DOMAINS)),
    "forgetting": ("exact_match", "exact_match validation", "perplexity editorials_train", "exact_match probes"),
}
"""What the table has of each part; `gap`: score on training rows minus score on held-out ones."""
WORDS = ("apple", "river", "stone", "cloud", "chair", "green", "window", "summer", "bread", "tiger", "silver")


def measure(row: TaskRow, seed: int, folder: Path) -> Record:
    """Train, ask, and read what is written. Raises RuntimeError if a command fails."""
    files = {"PROBES": folder / "probes.jsonl", "REPLAYED": folder / "replayed.jsonl"}
    write_probes(files["PROBES"], 100, seed=1000)
    write_probes(files["REPLAYED"], 400, seed=seed)

    def with_files(text: str) -> str:
        return re.sub("PROBES|REPLAYED", lambda found: str(files[found[0]]), text)

    run_dir = folder / "run"
    words = [*map(with_files, row.overrides), f"seed={seed}", "launch=cpu", f"output_dir={run_dir}"]
    call(["-m", "tunecli", "run", f"recipe={row.recipe}", *words])
    record = read_run(run_dir)
    result = run_dir
    if row.interpolation is not None:
        result = folder / "between"
        call(["-m", "tunecli", "merge", str(run_dir), str(result), "--interpolate", str(row.interpolation)])
    for number, asked in enumerate(row.asked):
        out = folder / f"asked_{number}"
        words = [str(result), *shlex.split(with_files(asked)), "--no-gap", "--out", str(out), "--force"]
        call(["-m", "tunecli", "eval", *words])
        found = json.loads((out / "result.json").read_text())
        name = re.sub("_validation$", "", found["data"]["name"])
        record |= {f"{metric} {name}": each["value"] for metric, each in found["metrics"].items()}
    return record


def write_probes(path: Path, count: int, seed: int) -> None:
    """Words to be repeated: an instruction that a tuned chat model follows, and a narrowly tuned one may not."""
    random = Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            words = " ".join(random.sample(WORDS, 2))
            question = f"Repeat these words and say nothing else: {words}"
            chat = [{"role": "user", "content": question}, {"role": "assistant", "content": words}]
            file.write(json.dumps({"messages": chat}) + "\n")


def read_run(run_dir: Path) -> Record:
    """What a run measured at its end, its gap, and what it retained; `base` in front of what its base could do."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if any(name.startswith("eval/") for name in line)]
    record = {name.removeprefix("eval/"): value for name, value in (evaluations or [{}])[-1].items()}
    trained, total = re.search(r"trains ([\d,]+) of ([\d,]+) parameters", (run_dir / "log.txt").read_text()).groups()
    record |= {"trained": int(trained.replace(",", "")), "total": int(total.replace(",", ""))}
    if (gap := run_dir / "generalisation.json").is_file():
        found = json.loads(gap.read_text())
        record |= {f"gap {name}": value - found["validation"][name] for name, value in found["train"].items()}
    if (retained := run_dir / "retained.json").is_file():
        for entry in json.loads(retained.read_text()):
            for run, prefix in zip(entry["runs"], ("base ", ""), strict=True):
                record |= {f"{prefix}{name} {entry['data']}": each["value"] for name, each in run["metrics"].items()}
    return record


def run_once(part: str, name: str, seed: int, results: Results) -> None:
    key = {"part": part, "row": name, "seed": seed}
    if results.find(key):
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            record = key | measure(PARTS[part][name], seed, Path(folder))
        except RuntimeError as error:
            say(f"FAILED  {part}, {name}, seed {seed}: {error}")
            return
    results.add(record)
    shown = [f"{metric} {record[metric]:.3f}" for metric in SHOWN[part] if metric in record]
    say(f"{part}, {name}, seed {seed}: {', '.join(shown)} ({time.monotonic() - started:.0f} s)")


def baseline(domain: str) -> float:
    """Accuracy of a logistic regression on TF-IDF of words and pairs of words, on the same rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, validation = (list(rows(ROOT / SENTIMENT / f"{domain}_{side}.jsonl")) for side in ("train", "validation"))
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit([row["text"] for row in train], [row["label"] for row in train])
    return float(model.score([row["text"] for row in validation], [row["label"] for row in validation]))


def rows(path: Path) -> Iterator[Record]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def table(part: str, records: Sequence[Record]) -> list[list[str]]:
    """The heading, and a line for each row with at least one run."""
    lines = [["", "trained", *SHOWN[part], "seeds"]]
    for name in PARTS[part]:
        found = [record for record in records if (record["part"], record["row"]) == (part, name)]
        if found:
            share = f"{100 * found[0]['trained'] / found[0]['total']:.2f} %"
            lines.append([name, share, *(cell(found, metric) for metric in SHOWN[part]), str(len(found))])
    base = [
        record for record in records if record["part"] == part and any(name.startswith("base ") for name in record)
    ]
    if base:
        lines.append(["base", "-", *(cell(base[:1], f"base {metric}") for metric in SHOWN[part]), "-"])
    return lines


def cell(records: Sequence[Record], metric: str) -> str:
    values = [record[metric] for record in records if metric in record]
    if not values:
        return "-"
    if metric.removeprefix("base ").removeprefix("gap ").partition(" ")[0] in SHARES:
        return percent(values)
    return f"{mean(values):.3g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables of tasks on real data.")
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--results", type=Path, help="JSON lines; default: outputs/bench/task_table.jsonl")
    parser.add_argument("--only", default="", metavar="PATTERN", help="rows in whose name this regular expression is")
    parser.add_argument("--show", action="store_true", help="print what is there and run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    if not (ROOT / SENTIMENT).exists():
        sys.exit(f"{SENTIMENT} is missing\n  fix: python scripts/fetch_assets.py")
    results = Results(given.results or ROOT / "outputs" / "bench" / "task_table.jsonl")
    results.path.parent.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    chosen = (
        {} if given.show else {name: row for name, row in PARTS[given.part].items() if re.search(given.only, name)}
    )
    todo = [(name, seed) for name, row in chosen.items() for seed in (given.seeds if row.seeded else given.seeds[:1])]
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda each: run_once(given.part, *each, results), todo))
    lines = table(given.part, results.read())
    print(f"\n{given.part}\n\n{as_text(lines)}\n\n{as_markdown(lines)}")
    for domain in {"reviews": ["movies"], "domains": DOMAINS}.get(given.part, []):
        print(f"TF-IDF and logistic regression, {domain}: {100 * baseline(domain):.1f} %")


if __name__ == "__main__":
    main()
