"""How all our pages are rendered and written."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tunecli.config.counted import counted
from tunecli.config.errors import UserError
from tunecli.engine.questions import question_of
from tunecli.engine.text import visible
from tunecli.report import numbers


def render(template: str, *, package: str = "tunecli.report", **values: Any) -> str:
    """A template of `package`, which may use those of this package too. What data hold is escaped; the filters
    `visible` and `lines` show what acts unseen."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("tunecli.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": visible,
        "lines": lambda text: visible(text).replace("⏎\n", "\n"),
        "breakable": _breakable,
        "percent": "{:.1%}".format,
        "count": "{:,}".format,
        "counted": counted,
        "number": numbers.shown,
        "difference": numbers.difference,
        "unit": numbers.unit_of,
        "value": numbers.in_words,
        "short_hash": numbers.short_hash,
        "question": question_of,
    }
    return environment.get_template(template).render(values)


def _breakable(name: str) -> Markup:
    """May go on in the next line after a dot, a slash or an underscore."""
    return Markup(re.sub(r"([./_])(?=\w)", r"\1<wbr>", str(escape(visible(name)))))


def write_page(page: str, path: Path) -> None:
    """A reader sees the old page or the new one.

    Raises:
        UserError: the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        beside.write_text(page, encoding="utf-8", errors="backslashreplace")
        beside.replace(path)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(path), fix="another path") from None
