"""Copy a shipped recipe, or an option of a group, into a file of your own.

tune cp sft_lora_smollm2                     -> ./sft_lora_smollm2.yaml
tune cp sft_lora_smollm2 mine.yaml
tune cp model/llama_7b model/my_llama.yaml   for recipes that lie beside the folder model/
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.config.paths import GROUPS, config_root, option_names, recipe_names, recipe_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a recipe (`tune ls`) or GROUP/OPTION (`tune ls GROUP`)")
    parser.add_argument("to", nargs="?", type=Path, help="file or folder; default: the same name here")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def run(args: argparse.Namespace) -> int:
    source = _source(args.name)
    group, _, option = args.name.rpartition("/")
    target: Path = args.to or Path(group, source.name)
    if target.is_dir():
        target = target / source.name
    if target.suffix != ".yaml":
        raise UserError(f"{target} does not end in .yaml", fix=f"tune cp {args.name} {target.with_suffix('.yaml')}")
    if group and target.absolute().parent.name != group:
        fix = f"tune cp {args.name} {target.parent / group / target.name}"
        raise UserError(f"an option of {group} must lie in a folder named {group}", where=str(target), fix=fix)
    if target.exists() and not args.force:
        raise UserError(f"{target} exists already", fix="choose another name, or replace it with --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    text = source.read_text(encoding="utf-8")
    target.write_text(
        text.replace(f"# @package {group}.{option}", f"# @package {group}.{target.stem}"), encoding="utf-8"
    )
    print(f"wrote {target}")
    if group:
        print(f"next: tune run recipe=./YOURS.yaml {group}={target.stem}   (YOURS.yaml beside the folder {group}/)")
    else:
        print(f"next: tune check recipe={target if len(target.parts) > 1 else f'./{target}'}")
    return 0


def _source(name: str) -> Path:
    group, _, option = name.rpartition("/")
    if not group and name in recipe_names():
        return recipe_root() / f"{name}.yaml"
    if group in GROUPS and option in option_names(group):
        return config_root() / group / f"{option}.yaml"
    known = [*recipe_names(), *(f"{group}/{option}" for group in GROUPS for option in option_names(group))]
    raise UserError(f"there is no recipe or option {name!r}", fix=f"{did_you_mean(name, known)}`tune ls` lists them")
