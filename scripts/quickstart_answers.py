"""What the model says to a few held-out reviews, with the adapter of a run switched off and on."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

import tunecli
from tunecli.config.compose import load_config

HOW_MANY = 3


def answer(lm: Any, tokenizer: Any, messages: list[dict[str, str]], *, tuned: bool) -> str:
    for module in lm.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(tuned)
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = lm.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return " ".join(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).split())


@torch.no_grad()
def main() -> None:
    run = Path(sys.argv[1])
    lm, tokenizer = tunecli.load(run)
    validation = load_config(run / "config.yaml").data.validation
    with open(str(validation), encoding="utf-8") as file:
        rows = [json.loads(line)["messages"] for line in islice(file, HOW_MANY)]
    print("\nHeld-out reviews, before and after:")
    for *question, right in rows:
        review = question[-1]["content"].split("\n")[-1]
        print(f"\n  {review[:110]}")
        print(f"    before: {answer(lm, tokenizer, question, tuned=False)}")
        print(f"    after:  {answer(lm, tokenizer, question, tuned=True)}    (people: {right['content']})")


if __name__ == "__main__":
    main()
