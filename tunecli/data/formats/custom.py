"""`custom:package.module:function`: a function of the user's own from a row's values to an example."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import lru_cache
from typing import Any

from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.data.examples import (
    Columns,
    Example,
    Feedback,
    Messages,
    Pair,
    Prompt,
    PromptCompletion,
    Scored,
    Text,
    Unusable,
)
from tunecli.data.formats.judged import check_pair
from tunecli.data.formats.prompts import check as check_prompt
from tunecli.data.formats.turns import check_order, read_tools, read_turns

PREFIX = "custom:"


@lru_cache
def load(name: str) -> Callable[[dict[str, Any]], Any]:
    """The function that `custom:package.module:function` names. Modules in the current directory are found."""
    module_name, _, function_name = name.removeprefix(PREFIX).partition(":")
    if not module_name or not function_name:
        raise _error(f"{name!r} names no function", "write custom:package.module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        fix = f"check the name; modules are looked up in {os.getcwd()} and among the installed packages"
        raise _error(f"{module_name} cannot be imported: {_described(error)}", fix) from error
    if getattr(module, "__file__", None) is None:
        raise _error(f"{module_name} is no file of Python code", "name a module with a function of your own")
    function = getattr(module, function_name, None)
    if function is None:
        names = [each for each, value in vars(module).items() if callable(value)]
        raise _error(
            f"{module_name} ({module.__file__}) has no {function_name!r}",
            f"{did_you_mean(function_name, names)}define it, or correct data.format",
        )
    if not callable(function):
        raise _error(f"{function_name} in {module.__file__} is no function", "name a function of one row")
    return function


def file_of(name: str) -> str:
    """The file of the module that `custom:package.module:function` names."""
    load(name)
    return str(sys.modules[name.removeprefix(PREFIX).partition(":")[0]].__file__)


def call(name: str, values: dict[str, Any]) -> Example | dict[str, Any]:
    """What the user's function makes of a row. Raises Unusable with the line of the user's code that failed."""
    try:
        found = load(name)(values)
    except (UserError, Unusable):
        raise
    except Exception as error:
        raise Unusable(f"{name} raises {_described(error)}", "mend the function, or the row") from error
    if isinstance(found, Messages):
        found = replace(found, messages=read_turns(found.messages, "messages"), tools=read_tools(found.tools))
        check_order(found)
    elif isinstance(found, Pair):
        check_pair(found)
    elif isinstance(found, Prompt):
        check_prompt(found)
    elif not (isinstance(found, dict | Scored | Feedback) or _is_text(found)):
        raise Unusable(
            f"{name} returns {found!r:.60}",
            "return one of tunecli.data.examples, or a dict with the columns of a format, such as messages",
        )
    return found


def _is_text(found: Any) -> bool:
    if isinstance(found, Columns):
        return all(isinstance(text, str) for text in found.values.values())
    return isinstance(found, PromptCompletion | Text) and all(isinstance(text, str) for text in astuple(found))


def _described(error: Exception) -> str:
    """The exception and the last line of its traceback that is neither the library's nor an installed package's."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if "site-packages" not in frame.filename and "<frozen" not in frame.filename]
    own = [frame for frame in own if not frame.filename.startswith(os.path.dirname(os.__file__))]
    own = own or frames[-1:]
    place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def _error(what: str, fix: str) -> UserError:
    return UserError(what, where="data.format", fix=fix)
