"""Put adapters into the weights of their base: a plain model that needs no peft.

tune merge outputs/sft_lora_smollm2/latest                         -> its folder merged/
tune merge outputs/sft_lora_smollm2/latest model --dtype float16   as a folder of your own, in another dtype
tune merge RUN --interpolate 0.5                                   half way between base and tuned model
tune merge RUN both --with OTHER_RUN                               two adapters of one base, their updates added
tune merge RUN mix --with OTHER_RUN --weights 0.7 0.3              their updates weighted, and added
tune merge RUN less --with OTHER_RUN --weights 1 -1                one taken away from the other
tune merge RUN mix --with OTHER_RUN --weights 0.7 0.3 --as-adapter the same as one LoRA, not as a model

Reads run directories and standard peft folders. The written model is compared with the unmerged one: status 1 if its
logits differ by more than rounding explains, and nothing is left behind. Runs on a 4-bit or 8-bit base are merged
into the dequantised weights.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from textwrap import TextWrapper

LABEL = len("difference   ")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from tunecli.config.model import DType

    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory or a peft folder")
    parser.add_argument("to", type=Path, nargs="?", metavar="TO", help="folder to write; default: RUN/merged")
    parser.add_argument(
        "--with", dest="others", type=Path, action="append", default=[], metavar="RUN", help="one more"
    )
    dtypes = [dtype.value for dtype in DType]
    parser.add_argument("--dtype", choices=dtypes, default="auto", help="of the weights; auto: as in training")
    parser.add_argument(
        "--interpolate", type=float, default=1.0, metavar="X", help="0 is the base, 1 the tuned model"
    )
    parser.add_argument(
        "--weights", type=float, nargs="+", metavar="X", help="of RUN and each --with; LoRA only, may be negative"
    )
    parser.add_argument("--as-adapter", action="store_true", help="write the sum of LoRAs as one LoRA")
    parser.add_argument("--max-shard-size", type=_size, default="5GB", metavar="SIZE", help="of a file (default 5GB)")
    parser.add_argument("--base", metavar="MODEL", help="the base, if not the one that the adapter names")
    parser.add_argument("--force", action="store_true", help="replace a model that is in TO already")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def run(args: argparse.Namespace) -> int:
    if args.json or not sys.stderr.isatty():
        from tunecli.engine.quiet import no_foreign_bars

        no_foreign_bars()
    from tunecli.config.model import DType
    from tunecli.merge import as_text, merge

    merged = merge(
        [args.run, *args.others],
        args.to,
        dtype=DType(args.dtype),
        interpolation=args.interpolate,
        max_shard_size=args.max_shard_size,
        base=args.base,
        weights=args.weights,
        as_adapter=args.as_adapter,
        force=args.force,
        say=lambda text: print(text, file=sys.stderr, flush=True),
        show_progress=sys.stderr.isatty() and not args.json,
    )
    print(json.dumps(merged.as_json(), indent=2) if args.json else _wrapped(as_text(merged)))
    return 0


def _wrapped(text: str) -> str:
    """For a terminal: lines break between words and go on below what they say, as a label stands before it. A pipe
    gets whole lines."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    wrapper = TextWrapper(width, subsequent_indent=LABEL * " ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrapper.fill(line) for line in text.splitlines())


def _size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*([KMGT]B)", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5GB or 500MB")
    return text
