"""What a policy says to held-out prompts, and what a reward model, a judge that it was never trained against, and its
base think of it. `rlhf_table.py` starts it.

    python scripts/bench/rlhf_measure.py POLICY BASE REWARD_RUN JUDGE_RUN PROMPTS.jsonl OUT.json --answers 200

Prints nothing; OUT.json has the mean of each measure, and some samples:
- score: the reward model's, of prompt and answer in its chat template;
- judge: share of positive in the judge's eyes (the mean of its probability), of the answer alone;
- kl: log-probability of the answer less that under the base, summed over its tokens, averaged over answers drawn from
  the policy at temperature 1: an estimate of KL(policy, base) in nats for each answer;
- perplexity: of the answers' tokens under the base;
- ended: share of the answers that ended by themselves; tokens: their length.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

import tunecli
from tunecli.models.generate import generate, stop_ids

BATCH = 16


@torch.no_grad()
def token_logprobs(lm: nn.Module, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[Tensor]:
    """[tokens] of each answer."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        logits = lm(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0])
    return found


@torch.no_grad()
def texts_scored(path: str, texts: Sequence[str], *, special: bool) -> Tensor:
    """[texts, labels] logits of a classifier."""
    model, tokenizer = tunecli.load(path)
    found = []
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(
            list(texts[start : start + BATCH]), padding=True, return_tensors="pt", add_special_tokens=special
        )
        found.append(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float())
    return torch.cat(found), model.config.label2id


def measure(given: argparse.Namespace) -> dict[str, Any]:
    rows = [json.loads(line) for line in Path(given.prompts).read_text(encoding="utf-8").splitlines()]
    chats = [row["prompt"] for row in rows[: given.answers]]
    lm, tokenizer = tunecli.load(given.policy)
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    stops = stop_ids(lm, tokenizer.eos_token_id)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    asked = {"max_new_tokens": given.new_tokens, "stop_ids": stops, "pad_token_id": pad}
    answers = generate(lm, prompts, **asked, temperature=1.0, seed=given.seed)
    ended = [len(answer) < given.new_tokens for answer in answers]
    whole = [[*answer, *([stops[0]] if end else [])] for answer, end in zip(answers, ended, strict=True)]
    own = token_logprobs(lm, prompts, whole)
    base = token_logprobs(tunecli.load(given.base)[0], prompts, whole)
    texts = [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
    seen = [
        tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": text}], tokenize=False).rstrip()
        for chat, text in zip(chats, texts, strict=True)
    ]
    scores = texts_scored(given.reward, seen, special=False)[0][:, 0]
    logits, labels = texts_scored(given.judge, [text or "." for text in texts], special=True)
    positive = logits.softmax(-1)[:, labels["positive"]]
    return {
        "score": float(scores.mean()),
        "judge": float(positive.mean()),
        "kl": mean(float((mine - theirs).sum()) for mine, theirs in zip(own, base, strict=True)),
        "perplexity": math.exp(-float(torch.cat(base).mean())),
        "ended": mean(ended),
        "tokens": mean(map(len, whole)),
        "samples": [
            {
                "prompt": chat[-1]["content"],
                "answer": text,
                "score": round(float(score), 3),
                "judge": round(float(p), 3),
            }
            for chat, text, score, p in list(zip(chats, texts, scores, positive, strict=True))[:8]
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("policy", "base", "reward", "judge", "prompts"):
        parser.add_argument(name)
    parser.add_argument("out", type=Path)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    given.out.write_text(json.dumps(measure(given), indent=2, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
