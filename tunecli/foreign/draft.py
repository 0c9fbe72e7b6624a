"""A recipe in the making, and the file that it becomes."""

from __future__ import annotations

import textwrap
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from tunecli.config.data import DataConfig, SourceConfig
from tunecli.config.model import ModelConfig
from tunecli.config.paths import config_root, option_names
from tunecli.config.peft import LoraConfig
from tunecli.config.run import RunConfig
from tunecli.config.stage import SFTConfig
from tunecli.config.train import TrainConfig

SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "peft.lora": LoraConfig,
    "stage": SFTConfig,
    "train": TrainConfig,
    "": RunConfig,
}
ALWAYS = {
    *("data.max_length", "peft.lora.r", "peft.lora.lora_alpha", "peft.lora.target_modules"),
    *("train.num_epochs", "train.max_steps", "train.global_batch_size", "train.learning_rate", "train.lr_scheduler"),
}
"""Written even where they are our defaults: what a reader looks for first."""
INLINE = ("columns", "chat_template_kwargs", "lora")
MODEL_KEYS = ("path", "revision")
DATA_KEYS = ("path", "format", "columns", "split", "subset", "revision", "validation")
"""What says which model or data set it is. It comes from the option that has it, or else stands in the body under an
option that leaves it open."""
COMMON = ("max_length", "gradient_checkpointing", "on_bad_row")
"""What else an option may set to be of use: the first two are always written, the third does no harm."""
RESET = {"data.validation"}
"""What an option that leaves the source open sets, and the other tool does not."""


@dataclass(slots=True)
class Draft:
    tool: str
    file: Path
    lora: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> value. None where the other tool says nothing and has no default."""
    sources: list[SourceConfig] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What has no counterpart, or means something else here"""
    unneeded: list[str] = field(default_factory=list)
    """Keys that have no counterpart and need none"""

    def set(self, key: str, value: Any) -> None:
        if value is not None:
            self.values[key] = value

    def set_validation(self, key: str, sources: list[SourceConfig]) -> None:
        """Make the sources of `key` the validation rows, if one source that is read as the training rows are."""
        first, *more = self.sources
        one = sources[0]
        kinds = [(source.format, source.columns, source.subset) for source in (one, first, *more)]
        same_split = one.split == (first.split if not more else "train")
        if len(sources) > 1 or kinds != kinds[:1] * len(kinds) or not (same_split or one.path == first.path):
            names = ", ".join(source.path for source in sources)
            self.notes.append(f"{key}: data.validation is one source in the format of the training rows, not {names}")
        elif not more and not same_split:
            self.set("data.validation", f"split:{one.split}")
        elif one.path in [source.path for source in self.sources]:
            self.notes.append(f"{key}: is training data too; data.validation=0.05 sets a share of it apart")
        else:
            self.set("data.validation", one.path)

    def settle_streaming(self) -> None:
        """Take back what a stream cannot do."""
        if not self.values.get("data.streaming"):
            return
        if _is_share(self.values.get("data.validation", "")):
            self.notes.append("validation: no share can be held out of a stream; data.validation=FILE or split:NAME")
            del self.values["data.validation"]
            self.values.pop("train.eval_every", None)
        if len(self.sources) > 1 and "data.mixing" not in self.values:
            self.set("data.mixing", "equal")
            self.notes.append(
                "streamed sources take turns here; give each a weight and data.mixing=weights otherwise"
            )

    def text(self) -> str:
        """The recipe: comments, defaults list, and what differs from the chosen options."""
        values = self.values | self._placed_sources()
        model, data = _option("model", "path", values, MODEL_KEYS), "mix"
        if len(self.sources) == 1:
            data = _option("data", "file", values, DATA_KEYS)
        chosen = _chosen("model", model) | _chosen("data", data)
        values |= dict.fromkeys(chosen.keys() & RESET - values.keys())
        peft = "[lora]" if self.lora else "full"
        defaults = [
            "run",
            f"model: {model}",
            f"data: {data}",
            f"peft: {peft}",
            "stage: sft",
            "launch: auto",
            "_self_",
        ]
        lines = [f"  - {entry}" for entry in defaults]
        return "\n".join([self._comment(), "defaults:", *lines, *_body(values, chosen)]) + "\n"

    def _placed_sources(self) -> dict[str, Any]:
        if len(self.sources) == 1:
            return {f"data.{key}": value for key, value in _differences(self.sources[0]).items()}
        placed: dict[str, Any] = {"data.mix": [_differences(source) for source in self.sources]}
        if not _is_share(self.values.get("data.validation", "0")):
            first = self.sources[0]  # the validation rows are read as all the training rows are
            placed |= {"data.format": first.format, "data.columns": first.columns}
        return placed

    def _comment(self) -> str:
        """What it is, and all that a reader of the other tool's file should know."""
        how = "LoRA" if self.lora else "Full fine-tuning"
        parts = [f"{how} of {self.values['model.path']}, from {self.file.name} of {self.tool} (tune cp --from)"]
        if self.notes:
            parts += ["", "Not the same here, or without a counterpart:", *(f"- {note}" for note in self.notes)]
        if self.unneeded:
            parts += ["", f"Needed no counterpart: {', '.join(self.unneeded)}"]
        return "\n".join(line for part in parts for line in _wrapped(part))


def _wrapped(text: str) -> list[str]:
    indent = "#   " if text.startswith("- ") else "# "
    return textwrap.wrap(
        text, 118, initial_indent="# ", subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or ["#"]


def _option(group: str, otherwise: str, values: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The shipped option that identifies the same thing as `values` do, else `otherwise`."""
    wanted = _identity(group, {key: values.get(f"{group}.{key}") for key in keys}, keys)
    for name in option_names(group):
        option = {key.partition(".")[2]: value for key, value in _chosen(group, name).items()}
        if option.keys() <= {*keys, *COMMON} and _identity(group, option, keys) == wanted:
            return name
    return otherwise


def _chosen(group: str, name: str) -> dict[str, Any]:
    """Dotted key -> what a shipped option sets."""
    option = yaml.safe_load((config_root() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return {f"{group}.{key}": value for key, value in option.items() if key != "defaults"}


def _identity(group: str, values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, str]:
    """As text, since a share stands as a number in an option's file."""
    schema = {field.name: field for field in fields(SECTIONS[group])}
    return {key: str(values[key] if values.get(key) is not None else _default(schema[key])) for key in keys}


def _differences(source: SourceConfig) -> dict[str, Any]:
    found = {key.name: getattr(source, key.name) for key in fields(SourceConfig)}
    return {key.name: found[key.name] for key in fields(SourceConfig) if found[key.name] != _default(key)}


def _body(values: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    """YAML lines of the values that differ from the options' (`chosen`) and from the schemas' defaults."""
    body: dict[str, Any] = {}
    for section, schema in SECTIONS.items():
        for key in fields(schema):
            name = f"{section}.{key.name}".lstrip(".")
            if name not in values:
                continue
            if name in ALWAYS or values[name] != chosen.get(name, _default(key)):
                _put(body, name.split("."), values[name])
    text = yaml.dump(_styled(body), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text.splitlines()


def _is_share(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _put(body: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        body = body.setdefault(part, {})
    body[path[-1]] = value


def _default(key: Field[Any]) -> Any:
    value = key.default_factory() if key.default_factory is not NO_DEFAULT else key.default
    return value.value if isinstance(value, Enum) else None if value == "???" else value


class _Inline(dict[str, Any]):
    """Written as `{key: value}`"""


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


_Dumper.add_representer(
    _Inline, lambda dumper, value: dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=True)
)
_Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", value, flow_style=not any(isinstance(entry, dict) for entry in value)
    ),
)


def _styled(body: dict[str, Any]) -> dict[str, Any]:
    """Sections as blocks; what stands below them on one line each, where that fits."""
    return {key: _styled_value(key, value) for key, value in body.items()}


def _styled_value(key: str, value: Any) -> Any:
    if key == "mix":
        return [_Inline(entry) for entry in value]
    if isinstance(value, dict):
        return _Inline(value) if key in INLINE and len(str(value)) <= 100 else _styled(value)
    return value
