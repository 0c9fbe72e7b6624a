"""How fast rows become tokens, against the tokenizer's own batched rate on the same texts, and in how much memory.

    python scripts/bench/prepare_rows.py [--rows 1000000] [--words 12] [--model assets/models/SmolLM2-135M-Instruct]

Writes so many short chats, prepares them as `python -m tunecli.prepare` does, in a process of its own, and then has
the bare tokenizer encode the rendered texts of the same rows, a thousand at a time, with its own threads. Peak memory
is that of the preparing process and of its largest worker; a tenth of the rows is prepared first, to tell what grows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORDS = ["the", "a", "model", "data", "row", "answer", "question", "time", "people", "house", "water", "light", "run"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--model", default="assets/models/SmolLM2-135M-Instruct")
    parser.add_argument("--bare-rows", type=int, default=100_000, help="rows that the bare tokenizer encodes")
    parser.add_argument("--words", type=int, default=12, help="most words of an answer")
    parser.add_argument("--job", choices=["prepare", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job is not None:
        print(json.dumps({"prepare": prepare, "bare": bare}[args.job](args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TUNECLI_CACHE"] = str(Path(folder, "cache"))
        report(args, Path(folder))


def report(args: argparse.Namespace, folder: Path) -> None:
    small, large = folder / "small.jsonl", folder / "large.jsonl"
    write_rows(small, max(args.rows // 10, 1), args.words)
    write_rows(large, args.rows, args.words)
    print(f"{args.rows:,} rows, {large.stat().st_size / 1e6:.0f} MB")
    tenth, whole = job("prepare", small, args), job("prepare", large, args)
    plain = job("bare", large, args)
    for name, result in (("a tenth", tenth), ("all", whole), ("bare tokenizer", plain)):
        rows, tokens = (result[kind] / result["seconds"] for kind in ("rows", "tokens"))
        peaks = f"peak {result['peak'] / 1e6:,.0f} MB, largest worker {result['worker_peak'] / 1e6:,.0f} MB"
        print(f"{name:<15}{rows:>9,.0f} rows/s  {tokens:>11,.0f} tokens/s  {peaks}")
    ratio = whole["rows"] / whole["seconds"] / (plain["rows"] / plain["seconds"])
    print(f"prepared at {ratio:.2f} of the bare tokenizer's rate")


def write_rows(file: Path, count: int, words: int) -> None:
    draw, lengths = random.Random(0), ((5, 15), (words // 4, words))
    with file.open("w") as stream:
        for _ in range(count):
            question, answer = (" ".join(draw.choices(WORDS, k=draw.randint(*k))) for k in lengths)
            turns = [{"role": "user", "content": question + "?"}, {"role": "assistant", "content": answer + "."}]
            stream.write(json.dumps({"messages": turns}) + "\n")


def job(name: str, file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own, so that neither its memory nor its caches are shared."""
    words = [sys.executable, __file__, "--job", name, "--file", str(file), "--model", args.model]
    done = subprocess.run([*words, "--bare-rows", str(args.bare_rows)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    from tunecli.config.data import DataConfig
    from tunecli.data.mixture import build
    from tunecli.data.tokens import Encoding

    tokenizer = load_tokenizer(args.model)
    started = time.perf_counter()
    train, _ = build(DataConfig(path=str(args.file)), tokenizer, Encoding(), show_progress=False)
    assert train is not None
    return measured(len(train), train.summary["tokens"], time.perf_counter() - started)


def bare(args: argparse.Namespace) -> dict[str, Any]:
    tokenizer = load_tokenizer(args.model)
    with args.file.open() as lines:
        rows = [json.loads(line)["messages"] for _, line in zip(range(args.bare_rows), lines, strict=False)]
    texts = tokenizer.apply_chat_template(rows, tokenize=False)
    tokens, started = 0, time.perf_counter()
    for i in range(0, len(texts), 1000):
        tokens += sum(map(len, tokenizer(texts[i : i + 1000], add_special_tokens=False)["input_ids"]))
    return measured(len(texts), tokens, time.perf_counter() - started)


def load_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def measured(rows: int, tokens: int, seconds: float) -> dict[str, Any]:
    own, workers = (
        1024 * resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {"rows": rows, "tokens": tokens, "seconds": seconds, "peak": own, "worker_peak": workers}


if __name__ == "__main__":
    main()
