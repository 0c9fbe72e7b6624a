"""Copy a shipped recipe, or an option of a group, into a file of your own; or make a recipe from another tool's file.

tune cp sft_lora_smollm2                     -> ./sft_lora_smollm2.yaml
tune cp sft_lora_smollm2 mine.yaml
tune cp model/llama_7b model/my_llama.yaml   for recipes that lie beside the folder model/
tune cp --from llama3_lora_sft.yaml          -> ./llama3_lora_sft.yaml, from a file of LLaMA-Factory or axolotl
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.config.paths import GROUPS, config_root, option_names, recipe_names, recipe_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a recipe (`tune ls`) or GROUP/OPTION (`tune ls GROUP`)")
    parser.add_argument("to", nargs="?", help="file or folder; default: the same name here")
    parser.add_argument("--from", dest="foreign", type=Path, metavar="FILE", help="LLaMA-Factory or axolotl YAML")
    parser.add_argument("--processes", type=int, metavar="N", help="with --from: GPUs that FILE was written for")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def run(args: argparse.Namespace) -> int:
    if args.foreign is not None:
        return _convert(args)
    if args.processes is not None:
        raise UserError("--processes belongs to --from", fix="tune cp --from FILE --processes N")
    if args.name is None:
        raise UserError("nothing is named", fix="tune cp NAME; `tune ls` lists the names. Or: tune cp --from FILE")
    source = _source(args.name)
    group, _, option = args.name.rpartition("/")
    target = _target(args.to, Path(group, source.name), f"tune cp {args.name}")
    if group and target.absolute().parent.name != group:
        fix = f"tune cp {args.name} {target.parent / group / target.name}"
        raise UserError(f"an option of {group} must lie in a folder named {group}", where=str(target), fix=fix)
    text = source.read_text(encoding="utf-8")
    _write(target, text.replace(f"# @package {group}.{option}", f"# @package {group}.{target.stem}"), args.force)
    if group:
        print(f"next: tune run recipe=./YOURS.yaml {group}={target.stem}   (YOURS.yaml beside the folder {group}/)")
    else:
        _print_check(target)
    return 0


def _convert(args: argparse.Namespace) -> int:
    from tunecli.foreign import convert

    if args.to is not None:
        raise UserError(f"a recipe {args.name} and --from at once", fix=f"tune cp --from {args.foreign} {args.to}")
    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes is {args.processes}", fix="the number of GPUs that FILE was written for")
    target = _target(args.name, Path(f"{args.foreign.stem}.yaml"), f"tune cp --from {args.foreign}")
    if target.exists() and args.foreign.exists() and target.samefile(args.foreign):
        fix = f"tune cp --from {args.foreign} {target.with_stem(f'{target.stem}_tune')}"
        raise UserError("the recipe would replace the file that it is made from", where=str(target), fix=fix)
    draft = convert(args.foreign, args.processes)
    _write(target, draft.text(), args.force)
    if draft.notes:
        print("\n".join(["not the same here, or without a counterpart:", *(f"- {note}" for note in draft.notes)]))
    if draft.unneeded:
        print(f"needed no counterpart: {', '.join(draft.unneeded)}")
    _print_check(target)
    return 0


def _target(to: str | None, default: Path, command: str) -> Path:
    target = default if to is None else Path(to)
    if target.is_dir():
        target = target / default.name
    if target.suffix != ".yaml":
        raise UserError(f"{target} does not end in .yaml", fix=f"{command} {target.with_suffix('.yaml')}")
    return target


def _write(target: Path, text: str, force: bool) -> None:
    if target.exists() and not force:
        raise UserError(f"{target} exists already", fix="choose another name, or replace it with --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"wrote {target}")


def _print_check(target: Path) -> None:
    print(f"next: tune check recipe={target if len(target.parts) > 1 else f'./{target}'}")


def _source(name: str) -> Path:
    group, _, option = name.rpartition("/")
    if not group and name in recipe_names():
        return recipe_root() / f"{name}.yaml"
    if group in GROUPS and option in option_names(group):
        return config_root() / group / f"{option}.yaml"
    known = [*recipe_names(), *(f"{group}/{option}" for group in GROUPS for option in option_names(group))]
    raise UserError(f"there is no recipe or option {name!r}", fix=f"{did_you_mean(name, known)}`tune ls` lists them")
