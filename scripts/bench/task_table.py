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
from statistics import mean, stdev

from bench_results import ROOT, Record, Results, as_markdown, as_text, call, percent, say
from task_rows import DOMAINS, PARTS, SENTIMENT, TaskRow

SHARES = ("accuracy", "f1", "mcc", "exact_match", "choice_accuracy", "f1_macro", "precision", "recall")
SHOWN = {
    "reviews": ("accuracy", "gap accuracy"),
    "entities": ("f1", "precision", "recall", "gap f1"),
    "words": ("accuracy", "ece"),
    "domains": ("accuracy", *(f"accuracy {domain}" for domain in DOMAINS)),
    "forgetting": ("exact_match", "perplexity editorials_train", "exact_match capitals"),
}
"""What the table has of each part; `gap`: score on training rows minus score on held-out ones."""
CAPITALS = {
    **{"Austria": "Vienna", "Poland": "Warsaw", "Greece": "Athens", "Sweden": "Stockholm", "Norway": "Oslo"},
    **{"Finland": "Helsinki", "Ireland": "Dublin", "Hungary": "Budapest", "Russia": "Moscow", "Turkey": "Ankara"},
    **{"Egypt": "Cairo", "Kenya": "Nairobi", "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi"},
    **{"Thailand": "Bangkok", "Indonesia": "Jakarta", "Australia": "Canberra", "Cuba": "Havana", "Peru": "Lima"},
    **{"Chile": "Santiago", "Colombia": "Bogotá", "Iran": "Tehran", "Iraq": "Baghdad", "Lebanon": "Beirut"},
    **{"Syria": "Damascus", "Jordan": "Amman", "Morocco": "Rabat", "Vietnam": "Hanoi", "Canada": "Ottawa"},
    **{"Portugal": "Lisbon", "Spain": "Madrid", "Italy": "Rome", "France": "Paris", "Germany": "Berlin"},
    **{"Serbia": "Belgrade", "Bulgaria": "Sofia", "Nepal": "Kathmandu", "Ghana": "Accra", "Belgium": "Brussels"},
}
REPLAYED = {
    **{"Denmark": "Copenhagen", "Ukraine": "Kyiv", "Israel": "Jerusalem", "Argentina": "Buenos Aires"},
    **{"Romania": "Bucharest", "Croatia": "Zagreb", "Slovakia": "Bratislava", "Estonia": "Tallinn"},
    **{"Latvia": "Riga", "Lithuania": "Vilnius", "Iceland": "Reykjavik", "Albania": "Tirana", "Libya": "Tripoli"},
    **{"Tunisia": "Tunis", "Ethiopia": "Addis Ababa", "Uganda": "Kampala", "Senegal": "Dakar", "Angola": "Luanda"},
    **{"Ecuador": "Quito", "Uruguay": "Montevideo"},
}
"""Others than those that are asked: what is replayed is the kind of question."""


def measure(row: TaskRow, seed: int, folder: Path) -> dict[str, Record]:
    """Train, ask, and read what is written: by the name of the row, "" for the one itself.

    Raises RuntimeError if a command fails.
    """
    files = {"CAPITALS": folder / "capitals.jsonl", "REPLAYED": folder / "replayed.jsonl"}
    write_capitals(files["CAPITALS"], CAPITALS)
    write_capitals(files["REPLAYED"], REPLAYED)

    def with_files(text: str) -> str:
        return re.sub("CAPITALS|REPLAYED", lambda found: str(files[found[0]]), text)

    run_dir = folder / "run"
    words = [*map(with_files, row.overrides), f"seed={seed}", "launch=cpu", f"output_dir={run_dir}"]
    call(["-m", "tunecli", "run", f"recipe={row.recipe}", *words])
    found = {"": read_run(run_dir)}
    asked = list(map(with_files, row.asked))
    if row.between:
        between = folder / "between"
        call(["-m", "tunecli", "merge", str(run_dir), str(between), "--interpolate", "0.5"])
        found[row.between] = {key: found[""][key] for key in ("trained", "total")} | ask(between, asked, folder)
    else:
        found[""] |= ask(run_dir, asked, folder)
    return found


def ask(model: Path, asked: Sequence[str], folder: Path) -> Record:
    record: Record = {}
    for number, words in enumerate(asked):
        out = folder / f"asked_{number}"
        call(["-m", "tunecli", "eval", str(model), *shlex.split(words), "--no-gap", "--out", str(out), "--force"])
        found = json.loads((out / "result.json").read_text())
        name = re.sub("_validation$", "", found["data"]["name"])
        record |= {
            f"{metric} {name}".removesuffix(" validation"): each["value"] for metric, each in found["metrics"].items()
        }
    return record


def write_capitals(path: Path, capitals: dict[str, str]) -> None:
    """A question that a tuned chat model answers as before, and a narrowly tuned one may not."""
    with path.open("w", encoding="utf-8") as file:
        for country, capital in capitals.items():
            question = f"What is the capital of {country}?"
            answer = f"The capital of {country} is {capital}."
            chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
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
            found = measure(PARTS[part][name], seed, Path(folder))
        except RuntimeError as error:
            say(f"FAILED  {part}, {name}, seed {seed}: {error}")
            return
    for row, record in found.items():
        results.add(record | key | {"row": row or name})
        shown = [f"{metric} {record[metric]:.3f}" for metric in SHOWN[part] if metric in record]
        say(f"{part}, {row or name}, seed {seed}: {', '.join(shown)} ({time.monotonic() - started:.0f} s)")


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
    rows_of_part = [each for name, row in PARTS[part].items() for each in (name, row.between) if each]
    for name in rows_of_part:
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
