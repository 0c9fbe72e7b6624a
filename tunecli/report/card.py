"""Model cards: the README.md of a run directory and of merged weights, ready for the Hub.

Whatever comes from data or a configuration stands in code spans or is escaped, so that it is read as text. The
metadata are made by `huggingface_hub.ModelCardData`. Its `ModelCard.validate` asks the Hub, so nothing here calls it;
`tune push` does not have to either, as every commit of a README is checked by the Hub.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli.config.data import training_sources, validation_share, validation_source
from tunecli.config.data_files import is_local
from tunecli.config.paths import display
from tunecli.config.run import RunConfig, micro_batch_tokens
from tunecli.engine.text import visible
from tunecli.report.run_files import json_lines

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

NAME = "README.md"
BUILTIN = "builtin:"
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
}
"""Our name -> the Hub's, for the results in the metadata."""
SOFTWARE = ("tunecli", "torch", "transformers", "peft", "bitsandbytes")
STAGES = {
    "sft": "supervised fine-tuning (cross-entropy on the answers)",
    "seq2seq": "text to text (cross-entropy on the targets)",
}
USE = "How to use"
UNKNOWN = "PATH/TO/"
"""Stands before the name of a base model that whoever reads the card has to find."""
OURS = "import tunecli\n\nmodel, tokenizer = tunecli.load({})"
CHAT = """\
chat = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"""


class Result(Enum):
    adapter = "adapter"
    adapters = "adapters"
    """several, in a folder each"""
    model = "model"


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


def write_card(
    config: RunConfig, run_dir: Path, *, data: Mapping[str, Any] | None, results: Mapping[str, float]
) -> None:
    """Write `README.md`: what was trained on what, the result, and how to load it. `data` None: it was streamed."""
    from tunecli.engine.checkpoint import write_atomically  # imports torch, which the rest of this module spares

    write_atomically(run_dir / NAME, run_card(config, run_dir, data=data, results=results))


def run_card(
    config: RunConfig, run_dir: Path, *, data: Mapping[str, Any] | None, results: Mapping[str, float]
) -> str:
    """The card of a run's own result."""
    methods = ", ".join(code(name) for name in config.peft)
    base = code(public(config.model.path))
    what = f"An adapter ({methods}) for {base}." if config.peft else f"{base}, every weight of it fine-tuned."
    kind = result_kind(config)
    folder = display(run_dir)
    adapters = [f"{folder}/adapter/{name}" for name in config.peft]
    tokenizer = f"{folder}/adapter" if config.peft else f"{folder}/model"
    weights = adapters or [tokenizer]
    sections = [
        ("What it is", what),
        *_about_run(config, run_dir, data, results),
        (USE, usage(kind, folder, weights=weights, tokenizer=tokenizer, base=_loadable(config.model.path))),
        ("Limits", _limits(config)),
    ]
    return _page(metadata(config, kind, results), config.recipe, sections)


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
    path = display(folder)
    sections = [("What was merged", _table(("", ""), rows))]
    if config is None or run_dir is None:
        data = ModelCardData(
            base_model=public(merging.base),
            base_model_relation="finetune",
            library_name="transformers",
            pipeline_tag="text-generation",
            tags=["tunecli", "merged"],
        )
        title, limits = folder.name, LIMITS
    else:
        sections += _about_run(config, run_dir, _data_summary(run_dir), {}, **_whose(merging))
        data = metadata(config, Result.model, {}, more_tags=["merged"])
        title, limits = config.recipe, _limits(config)
    sections += [(USE, usage(Result.model, path, weights=[path], tokenizer=path, base="")), ("Limits", limits)]
    return _page(data, title, [("What it is", what), *sections])


def sum_card(folder: Path, merging: Merging) -> str:
    """The card of several LoRAs that were added up to one."""
    from huggingface_hub import ModelCardData

    path, base = display(folder), public(merging.base)
    data = ModelCardData(
        base_model=base,
        base_model_relation=relation(Result.adapter),
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["tunecli", "lora", "merged"],
    )
    rows = [("base model", code(base)), ("sum of", ", ".join(_merged(merging)))]
    rows.append(("difference to all of them together", f"{merging.difference:.2g} at most, of a logit"))
    use = usage(Result.adapter, path, weights=[path], tokenizer=path, base=_loadable(merging.base))
    sections = [("What it is", f"One LoRA for {code(base)}, which does what several do together.")]
    sections += [("What was added up", _table(("", ""), rows)), (USE, use), ("Limits", LIMITS)]
    return _page(data, folder.name, sections)


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


def bare_card(kind: Result, base: str | None) -> str:
    """The card of a folder that came without one and without a configuration."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=public(base) if base else None,
        base_model_relation=relation(kind) if base else None,
        library_name="transformers" if kind is Result.model else "peft",
        pipeline_tag="text-generation",
        tags=["tunecli"],
    )
    what = "A model." if kind is Result.model else f"An adapter for {code(public(base or 'an unknown base'))}."
    return _page(data, "Model", [("What it is", what), (USE, ""), ("Limits", LIMITS)])


def for_hub(
    text: str, kind: Result, repo: str, *, names: Iterable[str], license: str | None, base: str | None
) -> str:
    """The card `text` as it is published: code that loads `repo`, and metadata that hold on the Hub.

    Args:
        names: folders of several adapters.
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
        card.data.base_model_relation = relation(kind)
    use = usage(kind, repo, weights=[repo], tokenizer=repo, base=base or f"{UNKNOWN}{local}", names=list(names))
    section = re.compile(rf"^## {USE}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    body = section.sub(lambda _: f"## {USE}\n\n{use}\n\n", card.text)
    return f"---\n{card.data.to_yaml()}\n---\n{body}"


def metadata(
    config: RunConfig, kind: Result, results: Mapping[str, float], more_tags: Iterable[str] = ()
) -> ModelCardData:
    """What the Hub reads. The licence is left open: that of the base model is not known offline."""
    from huggingface_hub import EvalResult, ModelCardData

    hub_data = [source.path for source in training_sources(config.data) if _on_hub(source.path)]
    methods = dict.fromkeys(method.method for method in config.peft.values())
    name, hub_id = _validation(config)
    measured = [
        EvalResult(
            task_type="text-generation",
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
        pipeline_tag="text-generation",
        datasets=hub_data or None,
        tags=["tunecli", config.stage.name, *methods, *more_tags],
        model_name=config.recipe if measured else None,
        eval_results=measured or None,
    )


def usage(
    kind: Result, path: str, *, weights: Sequence[str], tokenizer: str, base: str, names: Sequence[str] = ()
) -> str:
    """Code that loads the result.

    Args:
        path: what `tunecli.load` takes.
        weights: what peft or transformers take: the adapters or the model.
        names: of several adapters in one repository, which then stand in a folder each.
    """
    if kind is Result.model:
        library, theirs = "transformers", _with_transformers(_string(weights[0]), tokenizer)
    else:
        arguments = [f"{_string(weights[0])}, subfolder={_string(name)}" for name in names]
        library, theirs = "peft", _with_peft(arguments or [_string(each) for each in weights], tokenizer, base)
    # Several adapters are in subfolders, where only peft looks for them.
    ours = f"{_python(OURS.format(_string(path)))}\n\nor with {library} alone:\n\n" if not names else ""
    return f"{ours}{_python(theirs)}\n\nand then, where the model has a chat template:\n\n{_python(CHAT)}"


def _with_transformers(weights: str, tokenizer: str, before: str = "") -> str:
    """`weights`: an expression. `before`: lines that it needs."""
    return (
        f"from transformers import AutoModelForCausalLM, AutoTokenizer\n\n{before}"
        f"tokenizer = AutoTokenizer.from_pretrained({_string(tokenizer)})\n"
        f"model = AutoModelForCausalLM.from_pretrained({weights})"
    )


def _with_peft(adapters: Sequence[str], tokenizer: str, base: str) -> str:
    """`adapters`: arguments for each of them, in Python."""
    known = "" if not base.startswith(UNKNOWN) else "  # it was a local folder: put in where you have it"
    lines = [
        "from peft import PeftModel",
        _with_transformers("base", tokenizer, f"base = {_string(base)}{known}\n"),
        f"model = PeftModel.from_pretrained(model, {adapters[0]})",
    ]
    more = [f"adapter_{number}" for number in range(2, len(adapters) + 1)]
    lines += [
        f"model.load_adapter({each}, adapter_name={_string(name)})"
        for each, name in zip(adapters[1:], more, strict=True)
    ]
    if more:
        lines.append(f"model.base_model.set_adapter({json.dumps(['default', *more])})")
    return "\n".join(lines)


def result_kind(config: RunConfig) -> Result:
    if not config.peft:
        return Result.model
    return Result.adapter if len(config.peft) == 1 else Result.adapters


def relation(kind: Result) -> str:
    """How the Hub calls what we made of the base model."""
    return "finetune" if kind is Result.model else "adapter"


def public(path: str) -> str:
    """A Hub id as it is; of a path on this machine only its last part, since cards are published."""
    return Path(path).name if path.startswith(("/", "~", "./", "../")) else path


def _loadable(path: str) -> str:
    """What transformers load the base by; for one that is a folder on this machine, a place to fill in."""
    return UNKNOWN + public(path).removeprefix(BUILTIN) if path.startswith(BUILTIN) or is_local(path) else path


def code(text: str) -> str:
    """`text` as a code span, inside which neither Markdown nor HTML means anything. Also in tables."""
    line = visible(text.replace("\n", " ")).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def escaped(text: str) -> str:
    """`text` as plain words of Markdown."""
    line = visible(text.replace("\n", " ")).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|#~$!])|(?<!\w)_|_(?!\w)", lambda match: "\\" + match[0], line)


def _about_run(
    config: RunConfig,
    run_dir: Path,
    data: Mapping[str, Any] | None,
    results: Mapping[str, float],
    *,
    made: str = "How it was made",
    of: str = "",
) -> list[tuple[str, str]]:
    """The sections that say how it was trained and what came out. `made`: the first one's title. `of`: whose results
    these are."""
    sections = [(made, _table(("", ""), _recipe(config, run_dir, data)))]
    before, after = _evaluations(run_dir)
    after = after | dict(results)
    if after:
        rows = [(code(name), _number(before.get(name)), _number(value)) for name, value in after.items()]
        table = _table(("metric", "before training", "after"), rows)
        note = "`eval/…` is measured on the validation data, `loss` is that of the last logged training step."
        sections.append((f"Results{of}", f"{table}\n\n{note}"))
    return sections


def _recipe(config: RunConfig, run_dir: Path, data: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    train, model = config.train, config.model
    environment = _json(run_dir / "environment.json")
    last = _last_step(run_dir)
    revision = f", revision {code(model.revision)}" if model.revision else ""
    quantized = "" if model.quantization.value == "none" else f", in {model.quantization.value}"
    sources = ", ".join(code(public(source.path)) for source in training_sources(config.data))
    counts = f"{data['examples']:,} examples, {data['trained_tokens']:,} trained tokens" if data else "streamed"
    cut = f"{train.micro_batch_size} examples" if train.micro_batch_size else f"{micro_batch_tokens(config)} tokens"
    steps = last.get("step") or train.max_steps
    length = f"{steps} steps" if steps else f"{train.num_epochs:g} passes"
    rows = [
        ("recipe", code(config.recipe)),
        ("base model", f"{code(public(model.path))}{revision}{quantized}"),
        ("stage", STAGES.get(config.stage.name, escaped(config.stage.name))),
        ("method", "; ".join(_method(name, method) for name, method in config.peft.items()) or "full fine-tuning"),
        ("training data", f"{sources}: {counts}"),
    ]
    if config.data.validation is not None:
        rows.append(("validation data", code(_validation(config)[0])))
    if steps:
        rows.append(("examples seen", _seen(steps * train.global_batch_size, data)))
    rows += [
        ("longest example", f"{config.data.max_length} tokens"),
        ("length", f"{length} of {train.global_batch_size} examples, in micro-batches of up to {cut}"),
        ("optimizer", f"{train.optimizer.value}, weight decay {train.weight_decay:g}"),
        ("gradient norm", f"clipped at {train.max_grad_norm:g}" if train.max_grad_norm else "not clipped"),
        ("learning rate", f"{train.learning_rate:g}, {train.lr_scheduler.value}, warm-up {train.warmup_steps:g}"),
        ("precision", train.precision.value),
        ("seed", str(config.seed)),
    ]
    if hardware := environment.get("hardware"):
        rows.append(("hardware", _hardware(hardware, config.launch.num_processes or 1)))
    if "seconds" in last:
        minutes, seconds = divmod(round(last["seconds"]), 60)
        rows.append(("time", f"{minutes} min {seconds} s"))
    if packages := environment.get("packages"):
        rows.append(("software", ", ".join(f"{name} {packages[name]}" for name in SOFTWARE if name in packages)))
    return rows


def _seen(number: int, data: Mapping[str, Any] | None) -> str:
    """How much of the training data the steps went through."""
    if not data or not data["examples"]:
        return f"{number:,}"
    share = number / data["examples"]
    if share > 1:
        return f"{number:,} ({share:.3g} passes over them)"
    return f"{number:,} ({f'{share:.0%}' if share >= 0.01 else f'{share:.2%}'} of them)"


STARTING = ("method", "init_from", "freeze")


def _method(name: str, method: Any) -> str:
    values = {field.name: getattr(method, field.name) for field in fields(method) if field.name not in STARTING}
    if method.init_from is not None:
        values |= {"init_from": public(method.init_from), "freeze": method.freeze}
    shown = ", ".join(f"{key} {_setting(value)}" for key, value in values.items())
    label = method.method if name == method.method else f"{code(name)} ({method.method})"
    return f"{label}: {shown}" if shown else label


def _setting(value: Any) -> str:
    return code(", ".join(map(str, value))) if isinstance(value, list) else escaped(str(value))


def _hardware(hardware: Mapping[str, Any], processes: int) -> str:
    machine = (
        ", ".join(gpu["name"] for gpu in hardware.get("gpus", [])) or f"{hardware['cores']} cores, {hardware['cpu']}"
    )
    return f"{escaped(machine)}; {processes} process{'es' if processes > 1 else ''}"


def _validation(config: RunConfig) -> tuple[str, str | None]:
    """Name of the validation data, and their Hub id if they are from there."""
    share, source = validation_share(config.data), validation_source(config.data)
    if source is not None:
        return f"{public(source.path)} (split {source.split})", source.path if _on_hub(source.path) else None
    training = training_sources(config.data)
    name = ", ".join(public(source.path) for source in training)
    only = training[0].path if len(training) == 1 and _on_hub(training[0].path) else None
    return f"{share or 0:g} of the rows of {name}, held out", only


LIMITS = (
    "It knows what its base model knows and repeats its mistakes and biases. Nothing here says how it does on other "
    "kinds of questions than those it was measured on, or that its answers are true or harmless. The licences of the "
    "base model and of the data apply to it."
)


def _limits(config: RunConfig) -> str:
    if config.data.validation is None:
        return f"{LIMITS} It was trained without validation data."
    return f"{LIMITS} The results hold for questions like those of the validation data."


def _evaluations(run_dir: Path) -> tuple[dict[str, float], dict[str, float]]:
    """What was measured before the first step, and what last."""
    lines = [line for line in json_lines(run_dir / "metrics.jsonl") if any(name.startswith("eval/") for name in line)]
    values = [{name: value for name, value in line.items() if name.startswith("eval/")} for line in lines]
    before = values[0] if lines and lines[0].get("step") == 0 else {}
    return before, values[-1] if values else {}


def _step(line: Mapping[str, Any]) -> int:
    return line["step"]


def _last_step(run_dir: Path) -> dict[str, Any]:
    """The last training line of metrics.jsonl."""
    return max((line for line in json_lines(run_dir / "metrics.jsonl") if "loss" in line), key=_step, default={})


def _data_summary(run_dir: Path) -> dict[str, Any] | None:
    """Counts of the training data; None if they were streamed."""
    return _json(run_dir / "environment.json").get("data", {}).get("train")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _on_hub(path: str) -> bool:
    return not path.startswith("builtin:") and not is_local(path)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _string(text: str) -> str:
    """A Python literal on one line, without anything invisible."""
    return json.dumps(text)


def _python(text: str) -> str:
    return f"```python\n{text}\n```"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _page(data: ModelCardData, title: str, sections: Iterable[tuple[str, str]]) -> str:
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections)
    return f"---\n{data.to_yaml()}\n---\n\n# {escaped(title)}\n\nMade with tunecli.\n\n{body}\n"
