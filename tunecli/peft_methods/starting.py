"""Entries of the `peft` group that start from trained weights: `init_from`, and with `freeze` stay as they are.

A run is self-contained: what its entries start from is copied into its directory before anything else happens, and
`config.yaml` states the structure that the copies have. So it is resumed and loaded although what it began with has
moved or is gone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from tunecli.config.errors import ConfigError, Problem, UserError
from tunecli.config.model import ModelConfig
from tunecli.config.origins import stated
from tunecli.config.paths import display
from tunecli.config.peft import HEAD, PEFT_SCHEMAS, LoraConfig, PeftConfig, choosing
from tunecli.config.run import RunConfig, to_yaml
from tunecli.engine.checkpoint import write_atomically
from tunecli.models.builtin import PREFIX
from tunecli.peft_methods.saving import saved_config
from tunecli.peft_methods.source import ADAPTER, Source, find_source
from tunecli.peft_methods.switching import changes_base

FOLDER = "start"
"""In a run directory: a peft folder for each entry with `init_from`."""
WEIGHTS = "adapter_model.safetensors"
NOT_STRUCTURE = ("method", "init_from", "freeze")
PEFT_TYPES = {
    **dict.fromkeys(("houlsby", "pfeiffer", "parallel"), "BOTTLENECK"),
    **dict.fromkeys(("prompt_tuning", "p_tuning"), "VIRTUAL_TOKENS"),
    **dict.fromkeys(("prefix_tuning", "p_tuning_v2"), "PREFIX_KV"),
}
"""method -> peft's type, where that is not its name in capitals"""


AS_WELL = (("prefix_tuning", "p_tuning_v2"),)
"""A checkpoint of the first may start the second: a result keeps the prefixes alone (Liu et al., 2022, train them for
several tasks first)."""


@dataclass(frozen=True, slots=True)
class Start:
    folder: Path
    """peft folder"""
    entry: PeftConfig
    """with the structure of what is in the folder, and its path where a folder on this machine was named"""


def put_starts_in_place(config: RunConfig, run_dir: Path) -> RunConfig:
    """Copy what entries start from into `run_dir`, where that is not done yet, and write down their structure.

    Returns:
        `config` with that structure, as `config.yaml` now has it.

    Raises:
        ConfigError: all entries whose start cannot be had or does not fit, before any weight is loaded.
    """
    missing = [name for name, place in start_folders(config, run_dir).items() if not place.is_dir()]
    if not missing:
        return config
    starts = find_starts(config, missing, _stated(run_dir))
    config = replace(config, peft=config.peft | {name: start.entry for name, start in starts.items()})
    write_atomically(run_dir / "config.yaml", to_yaml(config))
    for name, start in starts.items():
        _copy(start.folder, run_dir / FOLDER / name)
    return config


def start_folders(config: RunConfig, run_dir: Path) -> dict[str, Path]:
    """Where the copies are, by entry."""
    return {name: run_dir / FOLDER / name for name, entry in config.peft.items() if entry.init_from is not None}


def head_left_behind(entries: Mapping[str, PeftConfig]) -> str | None:
    """The head's folder beside what an entry starts from, where it is there and this run trains a new one."""
    if HEAD not in entries or entries[HEAD].init_from is not None:
        return None
    starts = (Path(entry.init_from).expanduser() for entry in entries.values() if entry.init_from is not None)
    return next((display(start.parent / HEAD) for start in starts if (start.parent / HEAD / ADAPTER).is_file()), None)


def find_starts(
    config: RunConfig, names: list[str] | None = None, given: Mapping[str, str] | None = None
) -> dict[str, Start]:
    """What the entries `names` (None: all that have one) start from.

    Args:
        given: key -> what stated its value (`config.origins.stated`). None: not known, so that a value which is the
            method's default counts as not stated.

    Raises:
        ConfigError: all that is wrong with them at once.
    """
    found: dict[str, Start] = {}
    problems: list[Problem] = []
    for name, entry in config.peft.items():
        if entry.init_from is None or (names is not None and name not in names):
            continue
        try:
            found[name] = _find_start(name, config, given)
        except ConfigError as error:
            problems += error.problems
        except UserError as error:
            problems.append(Problem(error.where, error.what, error.fix))
    if problems:
        raise ConfigError(problems)
    return found


def _stated(run_dir: Path) -> dict[str, str] | None:
    file = run_dir / "origins.json"
    return stated(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def _find_start(name: str, config: RunConfig, given: Mapping[str, str] | None) -> Start:
    key, entry = f"peft.{name}.init_from", config.peft[name]
    assert entry.init_from is not None
    try:
        source = find_source(entry.init_from)
    except UserError as error:
        named = entry.init_from in error.what
        raise UserError(
            error.what if named else f"{entry.init_from}: {error.what}", where=key, fix=error.fix
        ) from error
    if not (source.adapters or source.run or entry.init_from.startswith(PREFIX) or Path(source.path).exists()):
        fix = "the path of a run directory or a peft folder, or the id of an adapter on the Hub"
        raise UserError(f"there is no adapter {entry.init_from}, here or on the Hub", where=key, fix=fix)
    if not source.adapters:
        raise UserError(
            f"{entry.init_from} is a whole model, no adapter", where=key, fix=f"model.path={entry.init_from}"
        )
    _check_base(key, source, config.model)
    folder = _choose(name, source, config.peft)
    _check_folder(key, folder)
    _check_method(name, config.peft, folder, source)
    followed = _followed(name, entry, folder, source, given)
    named = str(folder) if Path(source.path).expanduser().exists() else source.path
    return Start(folder, replace(followed, init_from=named))


def _check_base(key: str, source: Source, model: ModelConfig) -> None:
    """Raises UserError when it belongs to another base, or was trained on one in another quantisation."""
    here = Source("", model, adapters=source.adapters)
    if source.base_key[:2] != here.base_key[:2]:
        there = source.base
        revision = f" model.revision={there.revision}" if there.revision else ""
        raise UserError(
            f"{source.path} belongs to the base model {there.path}, not to this run's {model.path}",
            where=key,
            fix=f"model.path={there.path}{revision}, or what was trained on {model.path}",
        )
    if source.run is not None and source.base_key != here.base_key:
        kind = source.base.quantization.value
        raise UserError(
            f"{source.path} was trained with model.quantization={kind}, this run has {model.quantization.value}",
            where=key,
            fix=f"model.quantization={kind}",
        )


def _choose(name: str, source: Source, entries: Mapping[str, PeftConfig]) -> Path:
    """The folder that was named; of a run or a folder of folders, the only one or that of the entry's own name."""
    folders = {folder.name: folder for folder in source.adapters}
    others = [each for each in folders if each != name and each != HEAD]
    if (Path(source.path).expanduser() / ADAPTER).is_file() or len(folders) == 1:
        return source.adapters[0]
    if name in folders:
        _check_that_none_is_lost(name, source, folders, entries)
        return folders[name]
    if len(others) == 1:
        return folders[others[0]]
    alike = [each for each in others if _method_of(folders[each], source) == entries[name].method]
    raise UserError(
        f"{source.path} holds several adapters, and none is called {name}: {', '.join(folders)}",
        where=f"peft.{name}.init_from",
        fix=f"name one of them: peft.{name}.init_from={display(folders[[*alike, *others][0]])}, say",
    )


def _check_that_none_is_lost(
    name: str, source: Source, folders: Mapping[str, Path], entries: Mapping[str, PeftConfig]
) -> None:
    """Raises UserError where others were trained together with it, and no entry takes them: they are on in what the
    path names, and would not be here. A head may be left: it is for labels that may be others."""
    starts = {each: Path(entry.init_from).expanduser() for each, entry in entries.items() if entry.init_from}
    places = {start.resolve() for start in starts.values()}
    taken = {each for each in starts if entries[each].init_from == source.path} | {HEAD}
    taken |= {each for each, folder in folders.items() if folder.resolve() in places}
    if source.one_for_each_row or not (lost := [each for each in folders if each not in taken]):
        return
    raise UserError(
        f"{source.path} trained {', '.join(folders)} together, and {', '.join(lost)} would be left out",
        where=f"peft.{name}.init_from",
        fix=f"peft.{name}.init_from={display(folders[name])} takes this one alone; {_taking(lost, source, entries)}",
    )


def _taking(lost: list[str], source: Source, entries: Mapping[str, PeftConfig]) -> str:
    """How entries take what would be lost too."""
    known = {} if source.run is None else source.run.peft
    if not all(each in known for each in lost):
        return f"or an entry of peft for each of them, with init_from={source.path}"
    methods = {each: entry.method for each, entry in entries.items()} | {each: known[each].method for each in lost}
    starts = [f"peft.{each}.init_from={source.path}" for each in lost]
    return f"to take them too: {' '.join([*choosing(methods), *starts])}"


def _check_folder(key: str, folder: Path) -> None:
    """Raises UserError for what could be loaded, but not trained or frozen as an entry of its own."""
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"there is no {WEIGHTS} in {folder}", where=key, fix="save the adapter as safetensors")
    saved = saved_config(folder)
    if changes_base(saved) or getattr(saved, "modules_to_save", None):
        raise UserError(
            f"{folder} holds weights of the base model too (its bias, init_lora_weights or modules_to_save says so)",
            where=key,
            fix="tune merge it into the base, and name the merged model: model.path=...",
        )


def _check_method(name: str, entries: Mapping[str, PeftConfig], folder: Path, source: Source) -> None:
    """Raises UserError when the checkpoint is of another method than the entry."""
    entry, saved = entries[name], _method_of(folder, source)
    if saved in (entry.method, PEFT_TYPES.get(entry.method, "")) or (saved, entry.method) in AS_WELL:
        return
    if saved not in PEFT_SCHEMAS:
        fix = f"the folder of an adapter that {entry.method} trained"
    elif name != entry.method or saved in entries:
        fix = f"+peft@peft.{name}={saved} where {entry.method} is chosen for it, or an adapter of {entry.method}"
    else:
        methods = {
            saved if each == name else each: saved if each == name else entries[each].method for each in entries
        }
        start = f"peft.{saved}.init_from={entry.init_from}"
        fix = f"{' '.join([*choosing(methods), start])} trains it on; or init_from an adapter of {entry.method}"
    raise UserError(
        f"is {folder}, an adapter of the method {saved}, and this entry is {entry.method}",
        where=f"peft.{name}.init_from",
        fix=fix,
    )


def _method_of(folder: Path, source: Source) -> str:
    """Our name of it where we trained it, else peft's."""
    if source.run is not None and folder.name in source.run.peft:
        return source.run.peft[folder.name].method
    peft_type: str = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["peft_type"]
    return peft_type if peft_type in PEFT_TYPES.values() else peft_type.lower()


def _followed(
    name: str, entry: PeftConfig, folder: Path, source: Source, given: Mapping[str, str] | None
) -> PeftConfig:
    """`entry` with the structure of the checkpoint.

    Raises:
        ConfigError: the entry states something else.
    """
    if source.run is not None and not _saved_in_another_form(source.run.peft[folder.name]):
        saved = source.run.peft[folder.name]
        there: Mapping[str, Any] = {field.name: getattr(saved, field.name) for field in fields(saved)}
    else:
        there = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    own = [field for field in fields(entry) if field.name not in NOT_STRUCTURE]
    stated_here = [field for field in own if _is_stated(f"peft.{name}.{field.name}", entry, field, given)]
    problems = [problem for field in stated_here if (problem := _differs(name, entry, field, there, source, given))]
    if problems:
        raise ConfigError(problems)
    return replace(entry, **{field.name: _typed(field, there, entry) for field in own})


def _is_stated(key: str, entry: PeftConfig, field: Field[Any], given: Mapping[str, str] | None) -> bool:
    return getattr(entry, field.name) != _default(field) if given is None else key in given


def _saved_in_another_form(entry: PeftConfig) -> bool:
    """PiSSA and OLoRA take a part of the base, and are saved as a LoRA of twice the rank on the whole of it."""
    return isinstance(entry, LoraConfig) and entry.init_lora_weights.changes_base


def _differs(
    name: str,
    entry: PeftConfig,
    field: Field[Any],
    there: Mapping[str, Any],
    source: Source,
    given: Mapping[str, str] | None,
) -> Problem | None:
    """Of a field that is stated."""
    asked, key = getattr(entry, field.name), f"peft.{name}.{field.name}"
    where = f" ({given[key]})" if given else ""
    if field.name not in there:
        if asked == _default(field):
            return None
        what = f"is {_shown(asked)}{where}, but {source.path} decides it and does not say"
        return Problem(key, what, f"{key}={_shown(_default(field))}, which leaves it to init_from")
    saved = _typed(field, there, entry)
    if saved == asked or (isinstance(asked, list) and _same_names(asked, saved)):
        return None
    what = f"is {_shown(asked)}{where}, but {source.path} was trained with {_shown(saved)}"
    return Problem(key, what, f"{key}={_shown(saved)}, as init_from decides it")


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def _typed(field: Field[Any], there: Mapping[str, Any], entry: PeftConfig) -> Any:
    """The checkpoint's value in our type; the entry's own where the checkpoint says nothing that we know."""
    own, saved = getattr(entry, field.name), there.get(field.name)
    if saved is None or isinstance(saved, Enum):
        return own if field.name not in there else saved
    if isinstance(own, Enum):
        known = {member.value: member for member in type(own)}
        return known.get(saved, own) if isinstance(saved, str) else own
    return [saved] if isinstance(own, list) and isinstance(saved, str) else saved


def _same_names(stated: list[str], saved: list[str]) -> bool:
    """Whether the ends of names that were stated are those of the layers that were adapted."""
    return all(any(_ends(layer, end) for end in stated) for layer in saved) and all(
        any(_ends(layer, end) for layer in saved) for end in stated
    )


def _ends(layer: str, end: str) -> bool:
    return f".{layer}".endswith(f".{end}")


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _copy(folder: Path, place: Path) -> None:
    """All of it or nothing, whenever the run is killed."""
    beside = place.with_name(f".{place.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name in (ADAPTER, WEIGHTS):
        shutil.copyfile(folder / name, beside / name)
    beside.rename(place)
