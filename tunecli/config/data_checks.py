"""What the `data` group gets wrong although every value has the right type; see `tunecli.config.checks`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunecli.config.data import DataConfig, Mixing, Overlong, Side, SystemPolicy, training_sources, validation_share
from tunecli.config.data_files import exists, has_splits, is_local
from tunecli.config.errors import Problem
from tunecli.config.model import Attention
from tunecli.config.nearest import did_you_mean
from tunecli.config.run import RunConfig
from tunecli.config.stage import Rows, Seq2SeqConfig, StageConfig, Task, Turns

FORMATS = {
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "messages": ("messages", "tools"),
    "prompt_completion": ("prompt", "completion", "tools"),
    "sharegpt": ("conversations", "system", "tools"),
    "text": ("text",),
    "classification": ("text", "label"),
    "pair_classification": ("text", "text_pair", "label"),
    "tagging": ("tokens", "tags"),
    "seq2seq": ("source", "target"),
    "columns": (),
    "preference": ("prompt", "chosen", "rejected", "margin", "probability", "tools"),
    "scored": ("prompt", "completion", "messages", "text", "score", "tools"),
    "feedback": ("prompt", "completion", "label", "tools"),
    "prompts": ("prompt", "tools"),
}
"""The FORMATS table of `tunecli.data.formats`, which cannot be imported here (a test holds the names equal), with the
columns that each reads; `columns` reads whatever a template names."""

LABELLED = {
    Task.sequence_classification: ("classification", "pair_classification"),
    Task.token_classification: ("tagging",),
}
"""Formats whose rows have labels, by the task that they are for; all others are for causal language models."""

JUDGED = {
    Rows.judged: ("preference", "scored"),
    Rows.answers: ("preference", "scored", "messages", "sharegpt", "alpaca", "prompt_completion", "text"),
    Rows.pairs: ("preference",),
    Rows.feedback: ("feedback",),
    Rows.prompts: ("prompts",),
}
"""Formats by what rows hold, where no task of transformers' tells it."""
OF_JUDGEMENTS = ("preference", "scored", "feedback", "prompts")
"""Formats for these stages alone: what is thought of an answer, or questions."""

TEXT_TO_TEXT = ("seq2seq", "prompt_completion", "alpaca")
"""Formats of rows that an encoder-decoder reads; the first is for it alone."""

CHAT_TEMPLATES = ("alpaca", "chatml")
"""Named templates of `data.chat_template`; anything else is a path to a .jinja file."""

RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
"""What tunecli itself hands to a chat template."""

OTHER = "data.validation=FILE, or a share such as 0.05; null does without"


def data_problems(config: RunConfig) -> Iterator[Problem]:
    """Everything that is wrong with `config.data`, and with its fit to the rest."""
    data = config.data
    if problem := _source_problem(data):
        yield problem
        return
    for i, source in enumerate(training_sources(data)):
        key = f"data.mix[{i}]" if data.mix else "data"
        yield from _format(key, source.format)
        yield from _task(key, source.format, config.stage)
        yield from _columns(key, source.format, source.columns)
        yield from _path(f"{key}.path", source.path)
        if source.max_samples is not None and source.max_samples <= 0:
            yield Problem(f"{key}.max_samples", f"is {source.max_samples}", "a number greater than 0")
    yield from _mixing(data)
    yield from _validation(data)
    yield from _messages(config)
    yield from _length(data)
    yield from _judged(config)
    yield from _text_to_text(config)
    yield from _streaming(config)


def _source_problem(data: DataConfig) -> Problem | None:
    if data.path is None and not data.mix:
        return Problem("data", "neither path nor mix is set", "data.path=FILE, or data.mix=[{path:A},{path:B}]")
    if data.path is not None and data.mix:
        return Problem("data", "path and mix are both set", "data.path=null, or data.mix=[]")
    return None


def _format(key: str, name: str) -> Iterator[Problem]:
    module, _, function = name.removeprefix("custom:").partition(":")
    if name.startswith("custom:"):
        if not module or not function:
            fix = f"{key}.format=custom:package.module:function"
            yield Problem(f"{key}.format", f"{name!r} does not name a module and a function", fix)
    elif name not in ("auto", *FORMATS):
        fix = f"{did_you_mean(name, FORMATS)}formats: auto, {', '.join(FORMATS)}, custom:package.module:function"
        yield Problem(f"{key}.format", f"there is no format {name!r}", fix)


def formats_for(task: Task | Rows) -> tuple[str, ...]:
    """Formats of rows that a model for `task` can learn from, or that hold these rows."""
    if isinstance(task, Rows):
        return JUDGED[task]
    if task is Task.seq2seq_lm:
        return TEXT_TO_TEXT
    if task in LABELLED:
        return LABELLED[task]
    if task is Task.masked_lm:
        return ("text",)
    others = {"seq2seq", *(name for names in LABELLED.values() for name in names), *OF_JUDGEMENTS}
    return tuple(name for name in FORMATS if name not in others)


def _task(key: str, format: str, stage: StageConfig) -> Iterator[Problem]:
    known = formats_for(stage.reads)
    if format in FORMATS and format not in known:
        what = f"is {format}, whose rows stage={stage.name} cannot learn from"
        fix = f"{key}.format={' or '.join(known)}, or another stage: tune ls stage"
        yield Problem(f"{key}.format", what, fix)


def _columns(key: str, format: str, columns: dict[str, str]) -> Iterator[Problem]:
    known = FORMATS.get(format)
    for column in columns:
        if known and column not in known:
            fix = f"{did_you_mean(column, known)}the format reads {', '.join(known)}"
            yield Problem(f"{key}.columns.{column}", f"format {format} has no such column", fix)


def _path(key: str, path: str) -> Iterator[Problem]:
    if not is_local(path) or exists(path):
        return
    fix = f"{key}=PATH of what exists (relative paths start at {Path.cwd()})"
    if path.startswith("assets/"):
        fix = "python scripts/fetch_assets.py"
    yield Problem(key, f"{path} does not exist", fix)


def _idle(key: str, other: str, fix: str) -> Problem:
    return Problem(key, f"has no meaning for {other}", fix)


def _mixing(data: DataConfig) -> Iterator[Problem]:
    chosen = f"mixing={data.mixing.value}"
    if data.mixing is not Mixing.proportional and not data.mix:
        yield _idle("data.mixing", "one source", "data.mixing=proportional, or data.mix=[...]")
    if data.mixing is not Mixing.temperature and data.mixing_temperature != 2.0:
        yield _idle("data.mixing_temperature", chosen, "data.mixing=temperature")
    if not data.mixing_temperature > 0:
        yield Problem("data.mixing_temperature", f"is {data.mixing_temperature}", "a number greater than 0")
    for i, source in enumerate(data.mix):
        key = f"data.mix[{i}].weight"
        if source.weight is None and data.mixing is Mixing.weights:
            yield Problem(key, "is missing", "give each entry one, as in {path: a.jsonl, weight: 2}")
        if source.weight is not None and data.mixing is not Mixing.weights:
            yield _idle(key, chosen, "data.mixing=weights")
        if source.weight is not None and not 0 < source.weight < float("inf"):
            yield Problem(key, f"is {source.weight}", "a number greater than 0")


def _validation(data: DataConfig) -> Iterator[Problem]:
    share, name = validation_share(data), data.validation
    if name is None:
        return
    if not name.strip():
        yield Problem("data.validation", "is empty", OTHER)
    elif share is not None:
        if not 0 < share < 1:
            yield Problem("data.validation", f"is {name}", "a share between 0 and 1, a file, or split:NAME")
        elif data.streaming:
            fix = "data.validation=FILE or split:NAME, or data.streaming=false"
            yield Problem("data.validation", "a share of rows cannot be held out while they stream", fix)
    elif name.startswith("split:"):
        if data.path is None:
            yield Problem("data.validation", "data.mix has no splits of its own", OTHER)
        elif not has_splits(data.path):
            yield Problem("data.validation", f"{data.path} has no splits", OTHER)
    elif is_local(name) and not exists(name):
        fetch = "python scripts/fetch_assets.py, or " if name.startswith("assets/") else ""
        yield Problem("data.validation", f"{name} does not exist", fetch + OTHER)


def _messages(config: RunConfig) -> Iterator[Problem]:
    data, stage = config.data, config.stage
    template = data.chat_template
    if template is not None and template not in CHAT_TEMPLATES and not Path(template).expanduser().is_file():
        fix = f"{' or '.join(CHAT_TEMPLATES)}, or the path of a .jinja file; null is the tokenizer's own"
        yield Problem("data.chat_template", f"{template!r} is neither a template's name nor a file", fix)
    for name in data.chat_template_kwargs:
        if name in RESERVED:
            yield Problem(f"data.chat_template_kwargs.{name}", "is set by tunecli itself", "leave it out")
    writes, chosen = data.system in (SystemPolicy.add, SystemPolicy.replace), f"system={data.system.value}"
    if writes and not data.system_prompt:
        yield Problem("data.system_prompt", f"is empty, but {chosen} needs it", "data.system_prompt='You are ...'")
    if data.system_prompt and not writes:
        yield _idle("data.system_prompt", chosen, "data.system=add, or data.system=replace")
    if getattr(stage, "train_on_prompt", False) and getattr(stage, "turns", Turns.all) is Turns.last:
        yield _idle("stage.turns", "train_on_prompt=true, which learns every token", "choose one of the two")


def _length(data: DataConfig) -> Iterator[Problem]:
    if data.truncation_side is Side.left and data.overlong is not Overlong.truncate:
        yield _idle("data.truncation_side", f"overlong={data.overlong.value}", "data.overlong=truncate")


def _judged(config: RunConfig) -> Iterator[Problem]:
    if isinstance(config.stage.reads, Rows) and config.data.overlong is Overlong.split:
        what = f"is split, and stage={config.stage.name} takes an answer or a question as a whole"
        yield Problem("data.overlong", what, "data.overlong=truncate or drop")


def _text_to_text(config: RunConfig) -> Iterator[Problem]:
    """What an encoder-decoder, its sources and its targets have no use for."""
    data, stage = config.data, config.stage
    if stage.task is Task.seq2seq_lm and config.model.attention is Attention.packed:
        fix = "model.attention=auto"
        yield Problem("model.attention", "is packed, and encoder-decoders read padded rows", fix)
    if not isinstance(stage, Seq2SeqConfig):
        return
    if stage.max_target_length < 2:
        yield Problem("stage.max_target_length", f"is {stage.max_target_length}", "2 or more")
    if data.overlong is Overlong.split:
        fix = "data.overlong=truncate or drop"
        yield Problem("data.overlong", "is split, and a piece of a source has no target of its own", fix)
    if data.chat_template is not None:
        yield _idle("data.chat_template", "stage=seq2seq, which reads plain text", "data.chat_template=null")
    if data.system in (SystemPolicy.add, SystemPolicy.replace):
        fix = "data.system=keep; write it into the text with data.columns.source='...{column}'"
        yield _idle("data.system", "stage=seq2seq, which reads plain text", fix)


def _streaming(config: RunConfig) -> Iterator[Problem]:
    data = config.data
    if not data.streaming:
        return
    if config.train.max_steps is None:
        fix = "train.max_steps=NUMBER, or data.streaming=false"
        yield Problem("train.max_steps", "is empty, and the length of a stream is not known", fix)
    if data.mix and data.mixing in (Mixing.proportional, Mixing.temperature):
        what = f"{data.mixing.value} needs the sizes of the sources, which streams do not have"
        yield Problem("data.mixing", what, "data.mixing=equal, or weights with a weight for each entry")
    if data.num_workers is not None:
        yield _idle("data.num_workers", "streaming=true", "data.num_workers=null")
