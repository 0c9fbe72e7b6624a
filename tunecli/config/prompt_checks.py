"""What methods with virtual tokens get wrong, and their fit to the data."""

from __future__ import annotations

from collections.abc import Iterator

from tunecli.config.data import training_sources
from tunecli.config.errors import Problem
from tunecli.config.peft import PromptInit, PromptTuningConfig, PTuningConfig
from tunecli.config.run import RunConfig
from tunecli.config.stage import Seq2SeqConfig, SFTConfig, Turns, VerbalizeConfig
from tunecli.config.template import Field, Template, Virtual, Words, parse_template
from tunecli.config.virtual import virtual_ids

COLUMNS = "columns"
"""The format whose rows a template writes."""
CUSTOM = "custom:"


def prompt_problems(config: RunConfig) -> Iterator[Problem]:
    templates: dict[str, Template] = {}
    for name, method in config.peft.items():
        if isinstance(method, PromptTuningConfig):
            yield from _start(f"peft.{name}", method)
        if isinstance(method, PTuningConfig):
            try:
                templates[name] = parse_template(method.template)
            except ValueError as error:
                yield Problem(f"peft.{name}.template", str(error), '"{v20} {prompt} {completion}" fits every format')
                return
    if len(templates) > 1 and config.data.adapter_column is None:
        first, *others = templates
        fix = f"keep {first}; prompt_tuning in place of {' and '.join(others)} puts its tokens in front of the input"
        yield Problem("peft", f"{' and '.join(templates)} each have a template, and a text is written by one", fix)
        return
    for name, template in templates.items():
        yield from _template(f"peft.{name}.template", template, config)
    if not isinstance(config.stage, Seq2SeqConfig):
        yield from _columns_without_template(config, templates)
    yield from _length(config)


def _start(key: str, method: PromptTuningConfig) -> Iterator[Problem]:
    if method.init is PromptInit.text and not method.init_text:
        yield Problem(f"{key}.init_text", "is not set", f"\"{key}.init_text='Classify this review:'\"")
    if method.init is PromptInit.labels and not method.init_labels:
        yield Problem(f"{key}.init_labels", "is empty", f"{key}.init_labels=[positive,negative]")
    if len(method.init_labels) > method.num_virtual_tokens:
        count = len(method.init_labels)
        yield Problem(
            f"{key}.init_labels",
            f"are {count}, and there are {method.num_virtual_tokens} virtual tokens",
            f"{key}.num_virtual_tokens={count}",
        )


def _template(key: str, template: Template, config: RunConfig) -> Iterator[Problem]:
    if isinstance(config.stage, Seq2SeqConfig):
        yield from _for_encoder_decoders(key, template)
        return
    if isinstance(config.stage, VerbalizeConfig):
        if template.columns or template.has_mask:
            what = "names columns or {mask}, and here stage.templates say what is written"
            yield Problem(key, what, '"{v20} {prompt} {completion}", the gap being {completion}')
        return
    if template.has_mask:
        fix = "{label} at the end, which causal models answer with"
        yield Problem(
            key, f"{{mask}} is for masked language models, and stage {config.stage.name} trains others", fix
        )
    if template.columns and config.data.adapter_column is not None:
        yield Problem(key, "names columns, and each row has a template of its own", '"{v20} {prompt} {completion}"')
    elif template.columns and not all(map(_gives_columns, _formats(config))):
        names = ", ".join(template.columns)
        yield Problem(
            key, f"names columns of rows ({names}), which data.format must leave alone", "data.format=columns"
        )
    if template.columns and isinstance(config.stage, SFTConfig) and config.stage.train_on_prompt:
        key, fix = "stage.train_on_prompt", "stage.train_on_prompt=false"
        yield Problem(key, "is true, and of a template only {label} is trained", fix)
    if not template.columns and _between(template) and config.stage.task.has_labels:
        yield Problem(
            key,
            "has something behind {prompt}, where a classifier has no {completion}",
            '"{v20} {prompt} {completion}"',
        )
    elif not template.columns and _between(template) and not _last_answer_only(config):
        yield Problem(
            key, "has something in front of {completion}, which is the last answer of several", "stage.turns=last"
        )


def _for_encoder_decoders(key: str, template: Template) -> Iterator[Problem]:
    """The prompt is what the encoder reads, with everything that stands around it; the completion is the target."""
    if template.has_mask or template.columns:
        named = "{mask}" if template.has_mask else ", ".join(f"{{{name}}}" for name in template.columns)
        fix = '"{v20} {prompt} {completion}"; data.columns.source can write a source from several columns'
        yield Problem(key, f"has {named}, and an encoder-decoder reads a source and writes a target", fix)


def _formats(config: RunConfig) -> set[str]:
    data = config.data
    return {source.format for source in training_sources(data)} if data.path or data.mix else set()


def _gives_columns(format: str) -> bool:
    """Functions of the user's own may."""
    return format == COLUMNS or format.startswith(CUSTOM)


def _between(template: Template) -> bool:
    """Whether virtual tokens or words stand between the prompt and the completion."""
    after = template.pieces[template.pieces.index(Field("prompt")) + 1 : -1]
    return any(isinstance(piece, Virtual) or (isinstance(piece, Words) and piece.text.strip()) for piece in after)


def _last_answer_only(config: RunConfig) -> bool:
    return isinstance(config.stage, SFTConfig) and config.stage.turns is Turns.last


def _columns_without_template(config: RunConfig, templates: dict[str, Template]) -> Iterator[Problem]:
    if COLUMNS in _formats(config) and not any(template.columns for template in templates.values()):
        fix = "peft=p_tuning with peft.p_tuning.template='{v3} {text} It was {v2} {label}', or another data.format"
        yield Problem("data.format", "columns are written by a template, and there is none that names any", fix)


def _length(config: RunConfig) -> Iterator[Problem]:
    count = sum(map(len, virtual_ids(config.peft).values()))
    if count >= config.data.max_length:
        yield Problem(
            "data.max_length",
            f"is {config.data.max_length}, and {count} virtual tokens alone fill it",
            f"data.max_length={config.data.max_length + count}",
        )
