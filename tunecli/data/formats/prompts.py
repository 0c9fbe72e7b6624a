"""`prompts`: questions alone, as a text or as messages, which a model is to answer. All other columns of the row are
kept for what judges the answer."""

from __future__ import annotations

import json
from typing import Any

from tunecli.data.examples import Prompt, Unusable
from tunecli.data.formats import fields
from tunecli.data.formats.turns import read_tools, read_turns


def convert(values: dict[str, Any]) -> Prompt:
    prompt = fields.required(values, "prompt")
    # Through JSON, as they are stored: rows from the cache and from a stream are to be the same.
    columns = json.loads(json.dumps({name: v for name, v in values.items() if name != "prompt"}, default=str))
    tools = read_tools(values.get("tools"))
    found = Prompt(read_turns(prompt, "prompt") if isinstance(prompt, list) else prompt, columns, tools)
    check(found)
    return found


def check(prompt: Prompt) -> None:
    """Raise Unusable where there is nothing to answer."""
    if isinstance(prompt.text, str):
        if not prompt.text.strip():
            raise Unusable("column 'prompt' is blank", "fill it in, or remove the row")
        return
    if not isinstance(prompt.text, list):
        fix = 'write a text, or [{"role": "user", "content": "..."}]'
        raise Unusable(f"column 'prompt' holds {prompt.text!r:.60}, neither text nor messages", fix)
    if prompt.text[-1]["role"] == "assistant":
        raise Unusable("the prompt ends with an assistant turn", "remove that turn: the model is to write it")
    if prompt.text[0]["role"] == "assistant":
        raise Unusable("the prompt begins with an assistant turn, which answers nothing", "begin with a user turn")
