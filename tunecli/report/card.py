"""Model cards: the README.md of a run directory and of merged weights, ready for the Hub.

Whatever comes from data or a configuration stands in code spans or is escaped, so that it is read as text. The
metadata are made by `huggingface_hub.ModelCardData`. Its `ModelCard.validate` asks the Hub, so nothing here calls it;
`tune push` does not have to either, as every commit of a README is checked by the Hub.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli.config.data import training_sources
from tunecli.config.peft import HEAD
from tunecli.config.run import RunConfig
from tunecli.config.stage import Task
from tunecli.data.tokens import EVERY
from tunecli.engine.checkpoint import write_atomically
from tunecli.engine.text import visible
from tunecli.models.load import PIPELINES
from tunecli.report.card_about import LIMITS, about_run, data_summary, limits_of, on_hub, validation_data
from tunecli.report.card_text import code, escaped, public, table
from tunecli.report.card_use import (
    BUILTIN,
    UNKNOWN,
    Made,
    Result,
    loadable,
    made_by,
    relation,
    result_kind,
    usage,
)

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

NAME = "README.md"
METRICS = {
    "eval/loss": "loss",
    "eval/perplexity": "perplexity",
    "eval/exact_match": "exact_match",
    "eval/choice_accuracy": "accuracy",
    "eval/rouge1": "rouge1",
    "eval/rouge2": "rouge2",
    "eval/rougeL": "rougeL",
    "eval/bleu": "bleu",
    "eval/chrf": "chrf",
    "eval/accuracy": "accuracy",
    "eval/f1": "f1",
    "eval/f1_macro": "f1",
    "eval/f1_micro": "f1",
    "eval/precision": "precision",
    "eval/recall": "recall",
    "eval/mcc": "matthews_correlation",
    "eval/mse": "mse",
    "eval/pearson": "pearsonr",
    "eval/spearman": "spearmanr",
}
"""Our name -> the Hub's, for the results in the metadata."""
USE = "How to use"


@dataclass(frozen=True, kw_only=True, slots=True)
class Merging:
    """What `tune merge` did."""

    base: str
    revision: str | None
    adapters: tuple[str, ...]
    """names or Hub ids; none for a full fine-tuning run"""
    runs: tuple[str, ...] = ()
    """where each of `adapters` comes from, as a person would say; or the full run alone"""
    weights: tuple[float, ...] = ()
    """of each of `adapters`; none: 1 each"""
    interpolation: float
    quantization: str
    """storage of the base in training: none, nf4, fp4 or int8"""
    dtype: str
    difference: float
    """largest difference of a logit"""
    largest_logit: float
    task: Task = Task.causal_lm


def write_card(
    config: RunConfig, run_dir: Path, *, data: Mapping[str, Any] | None, results: Mapping[str, float]
) -> None:
    """Write `README.md`: what was trained on what, the result, and how to load it. `data` None: it was streamed."""
    write_atomically(run_dir / NAME, run_card(config, run_dir, data=data, results=results))


def run_card(
    config: RunConfig, run_dir: Path, *, data: Mapping[str, Any] | None, results: Mapping[str, float]
) -> str:
    """The card of a run's own result."""
    kind = result_kind(config)
    adapters = [f"adapter/{name}" for name in config.peft]
    tokenizer = "adapter" if config.peft else "model"
    made, base = made_by(config, run_dir), loadable(config.model.path)
    use = _use_here(made, weights=adapters or [tokenizer], tokenizer=tokenizer, base=base)
    sections = [
        ("What it is", _what(config, made)),
        *about_run(config, run_dir, data, results),
        (USE, use),
        ("Limits", limits_of(config)),
    ]
    return _page(metadata(config, kind, results), config.recipe, sections)


def _what(config: RunConfig, made: Made) -> str:
    """A sentence about what came out."""
    base = code(public(config.model.path))
    if not config.peft:
        return f"{base}, every weight of it fine-tuned."
    names = [code(name) for name in config.peft if name != HEAD]
    several = f"{len(names)} adapters ({', '.join(names)})"
    head = " and a new head" if HEAD in config.peft else ""
    if made.alternatives:
        how = "each trained by itself for the same task" if made.column == EVERY else "each for rows of its own"
        return f"{several}{head} for {base}, {how}."
    if len(names) > 1:
        return f"{several}{head} for {base}, which work together."
    return f"An adapter ({names[0]}){head} for {base}." if names else f"A new head for {base}."


def merged_card(config: RunConfig | None, run_dir: Path | None, folder: Path, merging: Merging) -> str:
    """The card of merged weights in `folder`. `config`, `run_dir`: of the run that they come from, if it is known."""
    from huggingface_hub import ModelCardData

    share = "" if merging.interpolation == 1 else f", at a share of {merging.interpolation:g} between base and tuned"
    adapters = ", ".join(code(name) for name in dict.fromkeys(merging.adapters))
    source = f"{adapters} merged into it" if adapters else "averaged with a model fine-tuned from it"
    what = f"{code(public(merging.base))} with {source}{share}: plain weights, no adapter needed."
    if not adapters:
        what = f"{code(public(merging.base))}, {source}{share}."
    base = f"{code(public(merging.base))}" + (f", revision {code(merging.revision)}" if merging.revision else "")
    if merging.quantization == "none":
        quantized = "no"
    else:
        quantized = f"{merging.quantization} in training; merged into the dequantised weights"
    size = f"{merging.difference:.2g} at most, of logits up to {merging.largest_logit:.3g} in size"
    rows = [
        ("base model", base),
        ("merged", ", ".join(_merged(merging))),
        ("interpolation", f"{merging.interpolation:g} (0 is the base, 1 the tuned model)"),
        ("quantised base", quantized),
        ("weights", merging.dtype),
        ("difference to the unmerged model", size),
    ]
    sections = [("What was merged", table(("", ""), rows))]
    if config is None or run_dir is None:
        data = ModelCardData(
            base_model=public(merging.base),
            base_model_relation="finetune",
            library_name="transformers",
            pipeline_tag=PIPELINES[merging.task],
            tags=["tunecli", "merged"],
        )
        title, limits, made = folder.name, LIMITS, Made(kind=Result.model, task=merging.task)
    else:
        sections += about_run(config, run_dir, data_summary(run_dir), {}, **_whose(merging))
        data = metadata(config, Result.model, {}, more_tags=["merged"])
        title, limits, made = config.recipe, limits_of(config), made_by(config, run_dir, Result.model)
    sections += [(USE, _use_here(made)), ("Limits", limits)]
    return _page(data, title, [("What it is", what), *sections])


def sum_card(folder: Path, merging: Merging) -> str:
    """The card of several LoRAs that were added up to one."""
    from huggingface_hub import ModelCardData

    base = public(merging.base)
    data = ModelCardData(
        base_model=base,
        base_model_relation=relation(Result.adapter),
        library_name="peft",
        pipeline_tag=PIPELINES[merging.task],
        tags=["tunecli", "lora", "merged"],
    )
    rows = [("base model", code(base)), ("sum of", ", ".join(_merged(merging)))]
    rows.append(("difference to all of them together", f"{merging.difference:.2g} at most, of a logit"))
    made = Made(kind=Result.adapter, task=merging.task, methods={"lora": "lora"}, revision=merging.revision)
    use = _use_here(made, base=loadable(merging.base))
    sections = [("What it is", f"One LoRA for {code(base)}, which does what several do together.")]
    sections += [("What was added up", table(("", ""), rows)), (USE, use), ("Limits", LIMITS)]
    return _page(data, folder.name, sections)


def _use_here(made: Made, *, weights: Sequence[str] = (".",), tokenizer: str = ".", base: str = "") -> str:
    """Code for the folder that the card lies in, which may be moved and given away."""
    use = usage(made, ".", weights=weights, tokenizer=tokenizer, base=base)
    return f"In the folder that this file lies in:\n\n{use}"


def _merged(merging: Merging) -> list[str]:
    """Each adapter, or the full fine-tuning run, and where it comes from."""
    if not merging.adapters:
        return [f"a full fine-tuning run{''.join(f', {run}' for run in merging.runs)}"]
    runs = merging.runs or ("",) * len(merging.adapters)
    times = [f"{weight:g} times " for weight in merging.weights] or [""] * len(runs)
    each = zip(times, merging.adapters, runs, strict=True)
    return [factor + code(name) + (f" of {run}" if run else "") for factor, name, run in each]


def _whose(merging: Merging) -> dict[str, str]:
    """Titles of the sections about the first run, whose numbers are not those of the merged model."""
    if not merging.adapters:
        return {"of": " of the model before averaging"}
    if len(set(merging.runs)) > 1:
        return {"made": f"How {merging.runs[0]} was made", "of": f" of {merging.runs[0]}, unmerged"}
    return {"of": " of the unmerged model"}


def run_label(run_dir: Path, recipe: str) -> str:
    """A run as a card names it: folder and recipe."""
    return f"{code(run_dir.resolve().name)} (recipe {code(recipe)})"


def bare_card(made: Made, base: str | None) -> str:
    """The card of a folder that came without one and without a configuration."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=public(base) if base else None,
        base_model_relation=relation(made.kind) if base else None,
        library_name="transformers" if made.kind is Result.model else "peft",
        pipeline_tag=PIPELINES[made.task],
        tags=["tunecli"],
    )
    what = "A model." if made.kind is Result.model else f"An adapter for {code(public(base or 'an unknown base'))}."
    return _page(data, "Model", [("What it is", what), (USE, ""), ("Limits", LIMITS)])


def for_hub(text: str, made: Made, repo: str, *, license: str | None, base: str | None) -> str:
    """The card `text` as it is published: code that loads `repo`, and metadata that hold on the Hub.

    Args:
        base: Hub id of the base model; None takes the field out, as a local name would point at somebody's model.
    """
    from huggingface_hub import ModelCard

    card = ModelCard(text)
    card.data.license = license or card.data.license
    local = card.data.base_model if isinstance(card.data.base_model, str) else "BASE_MODEL"
    card.data.base_model = base
    if base is None:
        card.data.base_model_relation = None
    elif getattr(card.data, "base_model_relation", None) is None:
        card.data.base_model_relation = relation(made.kind)
    named = base or (local if local.startswith(BUILTIN) else f"{UNKNOWN}{local}")
    use = usage(made, repo, weights=[repo], tokenizer=repo, base=named, published=True)
    section = re.compile(rf"^## {USE}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    body = section.sub(lambda _: f"## {USE}\n\n{use}\n\n", card.text)
    return f"---\n{card.data.to_yaml()}\n---\n{body}"


def metadata(
    config: RunConfig, kind: Result, results: Mapping[str, float], more_tags: Iterable[str] = ()
) -> ModelCardData:
    """What the Hub reads. The licence is left open: that of the base model is not known offline."""
    from huggingface_hub import EvalResult, ModelCardData

    hub_data = [source.path for source in training_sources(config.data) if on_hub(source.path)]
    methods = dict.fromkeys(method.method for name, method in config.peft.items() if name != HEAD)
    name, hub_id = validation_data(config)
    measured = [
        EvalResult(
            task_type=PIPELINES[config.stage.task],
            dataset_type=hub_id or "private",
            dataset_name=visible(name),
            metric_type=METRICS[metric],
            metric_value=round(float(value), 6),
        )
        for metric, value in results.items()
        if metric in METRICS and math.isfinite(value)
    ]
    return ModelCardData(
        base_model=public(config.model.path),
        base_model_relation=relation(kind),
        library_name="transformers" if kind is Result.model else "peft",
        pipeline_tag=PIPELINES[config.stage.task],
        datasets=hub_data or None,
        tags=["tunecli", config.stage.name, *methods, *more_tags],
        model_name=config.recipe if measured else None,
        eval_results=measured or None,
    )


def _page(data: ModelCardData, title: str, sections: Iterable[tuple[str, str]]) -> str:
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections)
    return f"---\n{data.to_yaml()}\n---\n\n# {escaped(title)}\n\nMade with tunecli.\n\n{body}\n"
