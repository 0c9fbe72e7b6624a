"""The code in a model card that loads the result and asks it something."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum

from tunecli.config.data_files import is_local
from tunecli.config.run import RunConfig
from tunecli.config.stage import Task
from tunecli.report.card_text import public, python, string

BUILTIN = "builtin:"
GENERATION, CLASSIFICATION, TAGGING = "text-generation", "text-classification", "token-classification"
PIPELINES = {
    Task.causal_lm: GENERATION,
    Task.sequence_classification: CLASSIFICATION,
    Task.token_classification: TAGGING,
}
"""What the Hub calls a model for each task."""
CLASSES = {
    GENERATION: "AutoModelForCausalLM",
    CLASSIFICATION: "AutoModelForSequenceClassification",
    TAGGING: "AutoModelForTokenClassification",
}
UNKNOWN = "PATH/TO/"
"""Stands before the name of a base model that whoever reads the card has to find."""
OURS = "import tunecli\n\nmodel, tokenizer = tunecli.load({})"
CHAT = """\
chat = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"""


CLASSIFY = """\
inputs = tokenizer("A text.", return_tensors="pt")
logits = model(**inputs).logits[0]
if model.config.problem_type == "regression":
    print(logits.item())
elif model.config.problem_type == "multi_label_classification":
    print([model.config.id2label[i] for i in (logits > 0).nonzero()[:, 0].tolist()])
else:
    print(model.config.id2label[logits.argmax().item()])"""
TAG = """\
words = "Ada lives in New York .".split()
inputs = tokenizer(" ".join(words), return_tensors="pt")
labels = [model.config.id2label[i] for i in model(**inputs).logits[0].argmax(-1).tolist()]
print(list(zip(tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]), labels)))  # a word's is that of its first"""
ASKING = {
    GENERATION: f"and then, where the model has a chat template:\n\n{python(CHAT)}",
    CLASSIFICATION: f"and then:\n\n{python(CLASSIFY)}",
    TAGGING: f"and then:\n\n{python(TAG)}",
}
PUBLISHED = """\
import tunecli
from huggingface_hub import snapshot_download

model, tokenizer = tunecli.load(snapshot_download({}))"""
OF_FILES = "`tune predict {} FILE` labels every row of a file."


class Result(Enum):
    adapter = "adapter"
    adapters = "adapters"
    """several, in a folder each"""
    model = "model"


def usage(
    kind: Result,
    path: str,
    *,
    weights: Sequence[str],
    tokenizer: str,
    base: str,
    names: Sequence[str] = (),
    pipeline: str = GENERATION,
    published: bool = False,
) -> str:
    """Code that loads the result.

    Args:
        path: what `tunecli.load` takes.
        weights: what peft or transformers take: the adapters or the model.
        names: of several adapters in one repository, which then stand in a folder each.
        pipeline: what the Hub calls a model for this task.
        published: `path` is a repository on the Hub.
    """
    asking = ASKING.get(pipeline, ASKING[GENERATION])
    if pipeline in (CLASSIFICATION, TAGGING) and kind is not Result.model:
        # The trained head is an adapter of ours, which peft alone does not know.
        load = PUBLISHED if published else OURS
        files = "" if published else f"\n\n{OF_FILES.format(path)}"
        return f"{python(load.format(string(path)))}\n\n{asking}{files}"
    if kind is Result.model:
        library, theirs = "transformers", _with_transformers(string(weights[0]), tokenizer, pipeline=pipeline)
    else:
        arguments = [f"{string(weights[0])}, subfolder={string(name)}" for name in names]
        library, theirs = "peft", _with_peft(arguments or [string(each) for each in weights], tokenizer, base)
    # Several adapters are in subfolders, where only peft looks for them.
    ours = f"{python(OURS.format(string(path)))}\n\nor with {library} alone:\n\n" if not names else ""
    return f"{ours}{python(theirs)}\n\n{asking}"


def _with_transformers(weights: str, tokenizer: str, before: str = "", *, pipeline: str = GENERATION) -> str:
    """`weights`: an expression. `before`: lines that it needs."""
    name = CLASSES.get(pipeline, CLASSES[GENERATION])
    return (
        f"from transformers import {name}, AutoTokenizer\n\n{before}"
        f"tokenizer = AutoTokenizer.from_pretrained({string(tokenizer)})\n"
        f"model = {name}.from_pretrained({weights})"
    )


def _with_peft(adapters: Sequence[str], tokenizer: str, base: str) -> str:
    """`adapters`: arguments for each of them, in Python."""
    known = "" if not base.startswith(UNKNOWN) else "  # it was a local folder: put in where you have it"
    lines = [
        "from peft import PeftModel",
        _with_transformers("base", tokenizer, f"base = {string(base)}{known}\n"),
        f"model = PeftModel.from_pretrained(model, {adapters[0]})",
    ]
    more = [f"adapter_{number}" for number in range(2, len(adapters) + 1)]
    lines += [
        f"model.load_adapter({each}, adapter_name={string(name)})"
        for each, name in zip(adapters[1:], more, strict=True)
    ]
    if more:
        lines.append(f"model.base_model.set_adapter({json.dumps(['default', *more])})")
    return "\n".join(lines)


def pipeline_of(config: RunConfig) -> str:
    return PIPELINES.get(config.stage.task, GENERATION)


def result_kind(config: RunConfig) -> Result:
    if not config.peft:
        return Result.model
    return Result.adapter if len(config.peft) == 1 else Result.adapters


def relation(kind: Result) -> str:
    """How the Hub calls what we made of the base model."""
    return "finetune" if kind is Result.model else "adapter"


def loadable(path: str) -> str:
    """What transformers load the base by; for one that is a folder on this machine, a place to fill in."""
    return UNKNOWN + public(path).removeprefix(BUILTIN) if path.startswith(BUILTIN) or is_local(path) else path
