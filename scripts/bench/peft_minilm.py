"""One run of the table of PEFT methods: MiniLM learns whether a movie review is positive, in a process of its own.

    python scripts/bench/peft_minilm.py --row lora --rate 5e-4 --seed 0 --steps 200 --out run.json --adapter adapter

- Model: BertForSequenceClassification without BERT's pooler, which this checkpoint never trained: the head reads the
  mean of the last layer's states of the text's tokens. (A linear classifier on frozen states of 2,000 reviews was
  right on 81.0 % of 300 others with the mean, on 75.7 % with [CLS], through the pooler or not.)
- The head is trained in every run at a rate of its own, and counted in none; `head only` trains nothing else.
- Weights in fp32, products in bf16 by autocast; no dropout, as no review is seen twice.
- AdamW without weight decay, a linear decay of its rate after 6 % of warm-up, clipping at 1.
- Virtual tokens stand behind [CLS], and are no part of the mean.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft_rows import FULL, HEAD_ONLY, MINILM
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from tunecli.config.peft import PeftConfig
from tunecli.config.train import Scheduler, TrainConfig
from tunecli.engine.batch import Batch
from tunecli.engine.optim import build_optimizer, build_scheduler
from tunecli.engine.recorder import peak_memory_bytes
from tunecli.engine.step_hook import StepHook
from tunecli.peft_methods.composition import inject, rate_factors, step_hooks
from tunecli.peft_methods.injection import leave_casts_to_autocast
from tunecli.peft_methods.saving import save_adapters
from tunecli.peft_methods.token_ids import token_ids

ASSETS = Path(__file__).resolve().parents[2] / "assets"
MODEL = ASSETS / "models" / "all-MiniLM-L6-v2"
REVIEWS = ASSETS / "data" / "movie_reviews"
NUM_VALIDATION = 300
"""Training reviews that are held out for choosing the learning rate; the 300 of validation.jsonl are the test."""
HEAD_RATE = 3e-3
BATCH_SIZE = 16
POOL = 40
"""Batches that are cut from as many reviews, sorted by length, so that little is padding."""


@dataclass(frozen=True, slots=True)
class Reviews:
    ids: list[list[int]]
    """[CLS] text [SEP]"""
    labels: list[int]
    """1: positive"""


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch as the model reads it."""

    input_ids: Tensor
    """[rows, width]"""
    attention_mask: Tensor
    """[rows, width]"""
    text: Tensor
    """[rows, width] bool: neither padding nor a virtual token"""
    labels: Tensor
    """[rows]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    validation: float
    """share of right answers"""
    test: float
    trained: int
    """parameters, the head aside"""
    base: int
    """parameters of the plain model, the head aside"""
    memory_peak_bytes: int
    """highest resident set of the process up to the end of training: Python, torch and transformers too"""
    tokens_per_second: float
    """tokens of text, neither padding nor virtual, per second of CPU time (on one core), batches and optimizer too"""
    seconds: float
    """of training, on the clock"""
    adapter_bytes: int
    """on disk; of full fine-tuning the whole model; the head is not in it"""
    diverged: bool
    """the loss became infinite or no number; nothing was evaluated"""


def read_reviews(path: Path, tokenizer: PreTrainedTokenizerBase) -> Reviews:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [row["messages"][0]["content"].split("\n\n", 1)[1] for row in rows]  # without the instruction
    return Reviews(tokenizer(texts)["input_ids"], [int(row["rating"] > 0) for row in rows])


def part(reviews: Reviews, first: int, last: int | None) -> Reviews:
    return Reviews(reviews.ids[first:last], reviews.labels[first:last])


def collate(reviews: Reviews, chosen: list[int], virtual: list[int]) -> Rows:
    """The reviews `chosen`, padded on the right, with the tokens `virtual` behind the first one."""
    ids = [torch.tensor([*reviews.ids[i][:1], *virtual, *reviews.ids[i][1:]]) for i in chosen]
    mask = [torch.ones(len(row), dtype=torch.int64) for row in ids]
    padded = torch.nn.utils.rnn.pad_sequence(mask, batch_first=True)
    text = padded.bool()
    text[:, 1 : 1 + len(virtual)] = False
    return Rows(
        torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),  # BERT's padding token is 0
        padded,
        text,
        torch.tensor([reviews.labels[i] for i in chosen]),
    )


def shuffled(lengths: list[int], seed: int) -> Iterator[list[int]]:
    """Batches of indices without end, those of one batch alike in length; what is left of an epoch is dropped."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(lengths), generator=generator).tolist()
        batches = []
        for i in range(0, len(order), POOL * BATCH_SIZE):
            pool = sorted(order[i : i + POOL * BATCH_SIZE], key=lambda row: lengths[row])
            batches += [pool[j : j + BATCH_SIZE] for j in range(0, len(pool) - BATCH_SIZE + 1, BATCH_SIZE)]
        yield from (batches[i] for i in torch.randperm(len(batches), generator=generator).tolist())


def logits_of(model: PreTrainedModel, rows: Rows) -> Tensor:
    """[rows, 2] fp32"""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.bert(input_ids=rows.input_ids, attention_mask=rows.attention_mask).last_hidden_state.float()
    text = rows.text[..., None].float()
    return model.classifier((hidden * text).sum(1) / text.sum(1))


@torch.no_grad()
def accuracy(model: PreTrainedModel, reviews: Reviews, virtual: list[int]) -> float:
    model.eval()
    order = sorted(range(len(reviews.ids)), key=lambda i: len(reviews.ids[i]))
    right = 0
    for i in range(0, len(order), BATCH_SIZE):
        rows = collate(reviews, order[i : i + BATCH_SIZE], virtual)
        right += int((logits_of(model, rows).argmax(1) == rows.labels).sum())
    return right / len(order)


def as_batch(rows: Rows) -> Batch:
    """What EVA looks at: every token of the text."""
    kept = rows.text.flatten().nonzero()[:, 0]
    return Batch(
        input_ids=rows.input_ids,
        position_ids=torch.arange(rows.input_ids.shape[1]).expand_as(rows.input_ids),
        cu_seq_lens=None,
        attention_mask=rows.attention_mask,
        kept=kept,
        targets=kept.new_zeros(len(kept)),
        weights=torch.ones(len(kept)),
        sources=kept.new_zeros(len(kept)),
        num_tokens=len(kept),
        rows=(),
    )


def with_trainable(
    model: PreTrainedModel,
    row: str,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    batches: Callable[[], Iterator[Batch]],
) -> None:
    """Put the methods of `row` into `model`; the head is trained in any case."""
    model.requires_grad_(False)
    if row != HEAD_ONLY:
        inject(model, MINILM[row].methods, seed=seed, tokenizer=tokenizer, batches=batches)
    model.classifier.requires_grad_(True)
    leave_casts_to_autocast(model)


def num_parameters(model: PreTrainedModel, *, trained: bool) -> int:
    """The head aside."""
    head = {id(parameter) for parameter in model.classifier.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in head and (p.requires_grad or not trained))


def head_factors(model: PreTrainedModel, row: str, rate: float) -> dict[str, float]:
    """Parameter name -> factor of the learning rate, so that the head has one of its own."""
    factor = 1.0 if row == HEAD_ONLY else HEAD_RATE / rate
    return {f"classifier.{name}": factor for name, _ in model.classifier.named_parameters()}


@dataclass(frozen=True, slots=True)
class Training:
    tokens: int
    cpu_seconds: float
    seconds: float
    diverged: bool


def train(
    model: PreTrainedModel,
    batches: Iterator[Rows],
    config: TrainConfig,
    factors: Mapping[str, float],
    hooks: list[StepHook],
    num_steps: int,
) -> Training:
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(model, config, factors)
    scheduler = build_scheduler(optimizer, config, num_steps=num_steps, done=0)
    started, cpu_started, tokens = time.perf_counter(), time.process_time(), 0
    for step in range(1, num_steps + 1):
        rows = next(batches)
        loss = F.cross_entropy(logits_of(model, rows), rows.labels) + sum(hook.penalty() for hook in hooks)
        if not math.isfinite(loss.item()):
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        for hook in hooks:
            hook.after_step(step)
        optimizer.zero_grad()
        tokens += int(rows.text.sum())
    diverged = not math.isfinite(loss.item())
    return Training(tokens, time.process_time() - cpu_started, time.perf_counter() - started, diverged)


def bytes_on_disk(model: PreTrainedModel, row: str, methods: Mapping[str, PeftConfig], folder: Path) -> int:
    """Writes to `folder` what the run has trained, the head aside. Returns the size of all files."""
    if row == HEAD_ONLY:
        return 0
    if row == FULL:
        model.bert.save_pretrained(folder)
    else:
        save_adapters(model, methods, folder, base=MODEL.name)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(row: str, *, rate: float, seed: int, num_steps: int, folder: Path) -> Result:
    torch.use_deterministic_algorithms(True)
    # What is filled is written over before it is read; filling takes a fifth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    known, test = (read_reviews(REVIEWS / f"{name}.jsonl", tokenizer) for name in ("train", "validation"))
    reviews, validation = part(known, 0, -NUM_VALIDATION), part(known, -NUM_VALIDATION, None)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, dtype=torch.float32, **no_dropout)
    model.bert.pooler = None
    base, methods = num_parameters(model, trained=False), MINILM[row].methods
    virtual = [token for ids in token_ids(methods, tokenizer).values() for token in ids]

    def batches() -> Iterator[Rows]:
        order = shuffled([len(ids) for ids in reviews.ids], seed)
        return (collate(reviews, chosen, virtual) for chosen in order)

    with_trainable(model, row, seed, tokenizer, lambda: map(as_batch, batches()))
    trained = num_parameters(model, trained=True)
    config = TrainConfig(learning_rate=rate, lr_scheduler=Scheduler.linear, warmup_steps=0.06)
    factors = rate_factors(model, methods) | head_factors(model, row, rate)
    hooks = step_hooks(model, methods, num_steps)
    training = train(model, batches(), config, factors, hooks, num_steps)
    memory = peak_memory_bytes()
    scores = [0.0 if training.diverged else accuracy(model, each, virtual) for each in (validation, test)]
    return Result(
        validation=scores[0],
        test=scores[1],
        trained=trained,
        base=base,
        memory_peak_bytes=memory,
        tokens_per_second=training.tokens / training.cpu_seconds,
        seconds=training.seconds,
        adapter_bytes=bytes_on_disk(model, row, methods, folder),
        diverged=training.diverged,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="One run of MiniLM for scripts/bench/peft_table.py.")
    parser.add_argument("--row", choices=MINILM, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--adapter", type=Path, required=True, help="folder for what was trained")
    parser.add_argument("--out", type=Path, required=True, help="file for the result")
    given = parser.parse_args()
    logging.set_verbosity_error()  # the head is new, as it should be
    logging.disable_progress_bar()
    result = run(given.row, rate=given.rate, seed=given.seed, num_steps=given.steps, folder=given.adapter)
    given.out.write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
