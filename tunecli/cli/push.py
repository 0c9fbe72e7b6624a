"""Publish a result on the Hugging Face Hub, after showing what would be uploaded and asking.

tune push outputs/sft_lora_smollm2/latest ME/NAME           the adapter or model, tokenizer, card, configuration
tune push outputs/sft_lora_smollm2/latest/merged ME/NAME    merged weights (`tune merge` first)
tune push RUN ME/NAME --dry-run                             show it, and reach for no network
tune push RUN ME/NAME --update                              one more commit to a repository that is there

The repository is private unless you say --public. Checkpoints, logs and data stay here, and paths of this machine are
taken out of what is published.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tunecli.config.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="RUN", help="a run directory, merged weights or a peft folder")
    parser.add_argument("repo", metavar="OWNER/NAME")
    parser.add_argument("--public", action="store_true", help="for everybody to see; private otherwise")
    parser.add_argument("--license", metavar="ID", help="for the card: apache-2.0, mit, llama3.1 ...")
    parser.add_argument("--base", metavar="OWNER/NAME", help="Hub id of the base model, if it lies on this disk")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch, made if it is not there")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--update", action="store_true", help="add a commit to a repository that is there already")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be uploaded")


def run(args: argparse.Namespace) -> int:
    if not sys.stderr.isatty():
        from tunecli.engine.quiet import no_foreign_bars

        no_foreign_bars()
    from tunecli.push import as_text, check_hub, prepare, publish

    upload = prepare(
        args.path,
        args.repo,
        public=args.public,
        license=args.license,
        base=args.base,
        revision=args.revision,
        message=args.message,
    )
    if args.dry_run:
        print(as_text(upload, update=args.update))
        print("nothing was uploaded (--dry-run)")
        return 0
    if not args.yes and not sys.stdin.isatty():
        raise UserError("nobody is there to ask", fix="--yes uploads without asking; --dry-run shows what")
    from huggingface_hub import HfApi

    api = HfApi()
    check_hub(upload, update=args.update, api=api)
    print(as_text(upload, update=args.update))
    if not args.yes and input("upload this? [y/N] ").strip().lower() not in ("y", "yes"):
        print("nothing was uploaded")
        return 1
    print(f"published: {publish(upload, update=args.update, api=api)}")
    return 0
