"""A conversation with one of several models: a base, and adapters that are switched on in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedModel

from tunecli.assembly.data import encoding_of
from tunecli.chat.answering import Answer, Piece, answer
from tunecli.chat.rendering import Message, Rendering
from tunecli.chat.saving import Saved, Saver, Turn
from tunecli.chat.settings import Settings
from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.config.stage import Task
from tunecli.data.prompts import formats_of, trained_on_raw_text
from tunecli.data.tokens import Encoding
from tunecli.engine.run_names import names_of
from tunecli.peft_methods.loading import base_task, load_base, tokenizer_of
from tunecli.peft_methods.source import Source, find_source
from tunecli.peft_methods.switching import add_adapter, switch_to
from tunecli.peft_methods.token_ids import places_in_saved

BASE = "base"


@dataclass(frozen=True, slots=True)
class Model:
    """One way in which the loaded weights answer."""

    name: str
    rendering: Rendering
    adapters: list[str]
    """peft's names of what is on; none for the base"""


@dataclass(slots=True)
class Session:
    lm: PreTrainedModel
    base: str
    """path of the base, as the user or the run names it"""
    models: dict[str, Model]
    """by name: the adapters in their order, then the base; or a whole model alone"""
    active: Model
    settings: Settings = field(default_factory=Settings)
    turns: list[Turn] = field(default_factory=list)
    chosen_system: str | None = None
    """None: as trained; empty: no system message"""
    _saver: Saver = field(default_factory=Saver)

    @property
    def messages(self) -> list[Message]:
        """The conversation without the system message; an answer follows each question."""
        return [message for turn in self.turns for message in turn.messages]

    @property
    def adapters(self) -> list[str]:
        return [name for name, model in self.models.items() if model.adapters]

    @property
    def system(self) -> str:
        return (self.active.rendering.system or "") if self.chosen_system is None else self.chosen_system

    def switch(self, name: str) -> None:
        """Raises UserError when there is no such adapter."""
        if name not in self.models:
            raise UserError(
                f"no adapter {name!r}", fix=f"{did_you_mean(name, self.models)}there are: {', '.join(self.models)}"
            )
        self.active = self.models[name]
        switch_to(self.lm, self.active.adapters)

    def ask(self, text: str, show: Piece) -> Answer:
        """The active model's answer to `text` after the conversation so far, which both become a part of."""
        question = {"role": "user", "content": text}
        found = self._answer([*self.messages, question], show)
        if found.text or found.ended != "stopped":
            self.turns.append(Turn(text, found, self.system))
        return found

    def ask_alone(self, text: str, show: Piece) -> Answer:
        """The active model's answer to `text` alone, after the system message; the conversation stays as it is."""
        return self._answer([{"role": "user", "content": text}], show)

    def undo(self) -> str:
        """Take the last question and its answer back; gives the question. Raises UserError."""
        if not self.turns:
            raise UserError("there is nothing to take back", fix="type a question first")
        return self.turns.pop().question

    def save(self, file: Path) -> Saved:
        """Append the conversation to a .jsonl file, in the form that `tune run data.path=FILE` trains on: one row;
        for texts without turns, one for each.

        Raises:
            UserError: there is no whole answer, nothing is new, or the file cannot be written.
        """
        return self._saver.save(self.turns, file, raw=self.active.rendering.raw)

    def _start(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        return self.active.rendering.ids([*self._start(), *messages])

    def _answer(self, messages: list[Message], show: Piece) -> Answer:
        return answer(self.lm, self.active.rendering, self.prompt_ids(messages), self.settings, show)


def open_session(paths: list[str], settings: Settings, system: str | None) -> Session:
    """Load what `paths` name: one model, or adapters over one base, of which the first is switched on.

    Raises:
        UserError: something is not there, or the adapters belong to different bases.
    """
    sources = [each for path in paths for each in _one_by_one(find_source(path))]
    for source in sources:
        _check_answers(source)
    names = ["base-adapter" if name == BASE else name for name in names_of([source.path for source in sources])]
    _check_one_base(sources)
    leading = next((source for source in sources if source.adapters), sources[0])
    lm = load_base(leading)
    models = {}
    for number, (name, source) in enumerate(zip(names, sources, strict=True)):
        if source.adapters:
            models[name] = _add(lm, name, source, number)
    first = next(iter(models.values()), None)
    if first is None:
        models[names[0]] = Model(names[0], rendering_of(sources[0]), [])
    else:
        # The same prompt without virtual tokens, so that only what was trained differs.
        models[BASE] = Model(BASE, first.rendering.without_virtual_tokens(), [])
    session = Session(lm, leading.base.path, models, next(iter(models.values())), settings, chosen_system=system)
    session.switch(session.active.name)
    return session


def _one_by_one(source: Source) -> list[Source]:
    """Adapters that are for different rows, each by itself."""
    if not source.one_for_each_row:
        return [source]
    return [replace(source, path=str(folder), adapters=[folder]) for folder in source.adapters]


def _check_one_base(sources: list[Source]) -> None:
    first = next((source for source in sources if source.adapters), sources[0])
    for source in sources:
        same = source.base_key == first.base_key if source.adapters else source.base_key[:2] == first.base_key[:2]
        if not same:
            raise UserError(
                f"{first.path} and {source.path} cannot be in one model: "
                f"{_described(first)} and {_described(source)}",
                fix="name adapters of one base model, or chat with each on its own",
            )


def _described(source: Source) -> str:
    base = source.base
    form = f" in {base.quantization.value}" if base.quantization.value != "none" else ""
    revision = f" at {base.revision}" if base.revision else ""
    return f"base {base.path}{revision}{form}" if source.adapters else f"the model {base.path}"


def _add(lm: PreTrainedModel, name: str, source: Source, number: int) -> Model:
    adapters = []
    for folder in source.adapters:
        adapters.append(f"tune_{number}_{len(adapters)}")
        add_adapter(lm, folder, adapters[-1])
    lm.eval()
    return Model(name, rendering_of(source), adapters)


def _check_answers(source: Source) -> None:
    """Raises UserError for what gives labels instead of answers."""
    task = base_task(source)
    if task.has_labels or task is Task.masked_lm:
        gives = "labels" if task.has_labels else "words for gaps"
        what = f"is a model for {task.value.replace('_', ' ')}: it gives {gives}, no answers"
        raise UserError(what, where=source.path, fix="tunecli.load loads it")


def rendering_of(source: Source) -> Rendering:
    tokenizer = tokenizer_of(source)
    virtual = places_in_saved(source.adapters, tokenizer)
    task = base_task(source)
    plain = bool(virtual["template"]) or task is not Task.causal_lm
    if source.run is None or source.run_dir is None:
        return Rendering(tokenizer, Encoding(task=task, **virtual), raw=plain)
    plain = plain or source.run.stage.reads is not Task.causal_lm
    raw = plain or trained_on_raw_text(source.run.data, formats_of(source.run, source.run_dir))
    return Rendering(tokenizer, replace(encoding_of(source.run, tokenizer), **virtual), raw=raw)
