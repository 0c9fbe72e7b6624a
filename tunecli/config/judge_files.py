"""What judges are asked, from YAML: templates of questions, and constitutions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunecli.config.errors import UserError
from tunecli.config.judge import LanguageJudgeConfig, Mode
from tunecli.config.paths import judging_file

USUAL = {Mode.pairwise: "pairwise", Mode.principles: "principles", Mode.score: "score"}
"""mode -> the template where none is named"""
CONSTITUTION = "helpful_harmless"
CHOICES = {Mode.score: tuple(str(number) for number in range(1, 11))}
"""mode -> possible verdicts, where they are not the two answers"""
PLACES = {
    Mode.pairwise: ("{prompt}", "{first}", "{second}"),
    Mode.principles: ("{principle}", "{first}", "{second}"),
    Mode.score: ("{answer}",),
}
"""mode -> what has to stand in what is asked, but for {prompt}"""
TEXTS = ("preamble", "ask", "reason", "verdict")


@dataclass(frozen=True, slots=True)
class Example:
    """One that is judged already."""

    values: dict[str, str]
    """place -> text"""
    reason: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Template:
    preamble: str
    """what comes first"""
    body: str
    """what is to be judged, with places in braces"""
    ask: str
    """asks for the verdict alone"""
    reason: str
    """asks for reasons, and then the verdict"""
    verdict: str
    """what a verdict begins with"""
    choices: tuple[str, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Principle:
    compare: str
    """asks which response is better"""
    critique: str
    """asks what is wrong with a response"""
    revise: str
    """asks for a better one"""


def choices_of(mode: Mode) -> tuple[str, ...]:
    """The possible verdicts."""
    return CHOICES.get(mode, ("1", "2"))


def template_of(judge: LanguageJudgeConfig) -> Template:
    """
    Raises:
        UserError: the file cannot be read, lacks something, or has fewer examples than are to be shown.
    """
    mode = judge.mode
    path = judging_file("templates", judge.template or USUAL[mode])
    values = _read(path)
    body = "answer" if mode is Mode.score else "pair"
    for key in (*TEXTS, body):
        if not isinstance(values.get(key), str) or not values[key].strip():
            raise _wrong(path, f"has no text {key!r}", f"`{key}: ...`, as in the shipped templates")
    for place in PLACES[mode]:
        if place not in values[body] and place != "{prompt}":
            raise _wrong(path, f"{body!r} has no {place}", f"put {place} where that text is to stand")
    if unknown := values.keys() - {*TEXTS, "pair", "answer", "examples"}:
        raise _wrong(path, f"has {', '.join(sorted(map(str, unknown)))}", f"keys: {', '.join(TEXTS)}, pair, answer")
    choices = choices_of(mode)
    examples = tuple(_example(path, each, body, choices) for each in values.get("examples") or [])
    if judge.num_examples > len(examples):
        what = f"is {judge.num_examples}, and {path.name} has {len(examples)}"
        raise UserError(what, where="judge.num_examples", fix=f"judge.num_examples={len(examples)}, or add examples")
    texts = {key: values[key].strip() for key in TEXTS}
    return Template(body=values[body].rstrip("\n"), choices=choices, examples=examples[: judge.num_examples], **texts)


def constitution_of(name: str | None) -> tuple[Principle, ...]:
    """
    Args:
        name: of a shipped one, or a file; None: the usual one.

    Raises:
        UserError: the file cannot be read, or a principle lacks something.
    """
    path = judging_file("constitutions", name or CONSTITUTION)
    entries = _read(path).get("principles")
    if not isinstance(entries, list) or not entries:
        raise _wrong(path, "has no principles", "principles: [{compare: ..., critique: ..., revise: ...}]")
    return tuple(_principle(path, number, entry) for number, entry in enumerate(entries, start=1))


def _principle(path: Path, number: int, entry: Any) -> Principle:
    names = Principle.__slots__
    given = entry if isinstance(entry, dict) else {}
    if wrong := [name for name in names if not isinstance(given.get(name), str) or not given[name].strip()]:
        raise _wrong(path, f"principle {number} has no {wrong[0]!r}", f"each has {', '.join(names)}")
    return Principle(**{name: given[name].strip() for name in names})


def _example(path: Path, entry: Any, body: str, choices: tuple[str, ...]) -> Example:
    places = ("prompt", "first", "second") if body == "pair" else ("prompt", "answer")
    given = {key: str(value) for key, value in entry.items()} if isinstance(entry, dict) else {}
    if given.get("verdict") not in choices or not {*places[1:], "reason"} <= given.keys():
        fix = f"each has {', '.join(places)}, reason, and as verdict one of {', '.join(choices)}"
        raise _wrong(path, "has an example that is not complete", fix)
    values = {"principle": "", **{place: given.get(place, "") for place in places}}
    return Example(values, given["reason"], given["verdict"])


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _wrong(path, f"cannot be read: {str(error).splitlines()[0]}", "mend the file") from None
    if not isinstance(found, dict):
        raise _wrong(path, "is not a mapping of keys to values", "write `key: value` lines")
    return found


def _wrong(path: Path, what: str, fix: str) -> UserError:
    return UserError(what, where=str(path), fix=fix)
