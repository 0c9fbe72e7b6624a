"""The conversation in a terminal: reading lines, commands that begin with a slash, answers as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tunecli.chat.answering import Answer
from tunecli.chat.session import BASE, Session
from tunecli.chat.settings import changed
from tunecli.config.counted import counted
from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.config.paths import cache_dir
from tunecli.engine.text import harmless

WIDE, COLUMN = 100, 36
"""Columns of a terminal from which on answers are compared side by side, and the least that each answer gets."""
LONGEST_MOVED = 24
"""Columns of the longest word that moves to the next line; a longer one is broken."""
LONGEST_NAME = 30
"""Characters of a model's name before what is typed."""
BLOCK = '"""'
HISTORY_LINES = 2000
Read = Callable[[str], str]
"""As `input`: raises EOFError at the end and KeyboardInterrupt at Ctrl-C."""


class Wrapping:
    """Breaks lines between words, where a terminal would break words. A word may come in pieces: until it would pass
    the edge it is written as it comes; then what was written of it is taken back."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._line = ""
        """what stands in the line of the screen"""

    def add(self, piece: str) -> str:
        """What to write for the next piece of a text."""
        return "".join(map(self._next, piece)) if self._console.is_terminal else piece

    def end(self) -> None:
        """The text has ended, and so has its line."""
        self._line = ""

    def _next(self, character: str) -> str:
        if character == "\n":
            self._line = ""
            return character
        line = self._line + character
        fits = cell_len(line.expandtabs()) < self._console.width
        if fits or character == " ":
            self._line = line
            return character if fits else ""
        head, space, word = self._line.rpartition(" ")
        if not space or not head.strip() or "\t" in word or cell_len(word) > LONGEST_MOVED:
            self._line = character
            return "\n" + character
        self._line = word + character
        return f"\033[{cell_len(word)}D\033[K\n{word}{character}" if word else f"\n{character}"


class Chat:
    """What a person types, and what happens then."""

    def __init__(self, session: Session, read: Read, console: Console) -> None:
        self._session = session
        self._read = read
        self._console = console
        self._wrapping = Wrapping(console)
        self._commands: dict[str, tuple[Callable[[str], None], str, str]] = {
            "adapter": (self._adapter, "NAME", "answer with that adapter; without NAME, list them"),
            "base": (self._base, "", "answer with the base model, all adapters off"),
            "compare": (
                self._compare,
                "PROMPT",
                "answers of the base and of every adapter, outside the conversation",
            ),
            "system": (
                self._system,
                "TEXT",
                "set the system message; `none` leaves it out, without TEXT it is shown",
            ),
            "set": (self._set, "NAME=VALUE", "temperature, top_p, top_k, max_new_tokens, seed, repetition_penalty"),
            "save": (self._save, "FILE", "append the conversation to a .jsonl file that `tune run` trains on"),
            "undo": (self._undo, "", "take the last question and its answer back"),
            "reset": (self._reset, "", "forget the conversation"),
            "help": (self._help, "", "this list"),
            "quit": (self._quit, "", "end (Ctrl-D does too)"),
        }

    def run(self) -> None:
        """Until /quit or the end of the input."""
        self._welcome()
        while True:
            try:
                text = self._next()
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._note("\n(Ctrl-D or /quit ends)")
                continue
            try:
                self._act(text)
            except UserError as error:
                self._console.print(Text(harmless(str(error)), style="red"))
            except SystemExit:
                return

    def _next(self) -> str:
        """What is typed: one line; several, when each but the last ends with a backslash; or a block."""
        line = self._read(self._prompt())
        if line.strip().startswith(BLOCK):
            return self._block(line.strip().removeprefix(BLOCK))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._read("… "))
        return "\n".join(lines).strip()

    def _block(self, line: str) -> str:
        lines = []
        while not line.rstrip().endswith(BLOCK):
            lines.append(line)
            line = self._read("… ")
        lines.append(line.rstrip().removesuffix(BLOCK))
        return "\n".join(lines).strip("\n")

    def _prompt(self) -> str:
        name = harmless(_shortened(self._session.active.name))
        return f"{name}> " if len(self._session.models) > 1 else "> "

    def _act(self, text: str) -> None:
        if not text:
            return
        if not text.startswith("/") or text.startswith("//"):
            self._ask(text.removeprefix("/") if text.startswith("//") else text)
            return
        name, _, rest = text[1:].partition(" ")
        if name not in self._commands:
            hint = did_you_mean(name, self._commands).replace("did you mean ", "did you mean /")
            raise UserError(f"no command /{name}", fix=f"{hint}/help lists them; // begins a text with a slash")
        self._commands[name][0](rest.strip())

    def _ask(self, text: str) -> None:
        self._ended(self._session.ask(text, self._write))
        self._console.print()

    def _ended(self, answer: Answer) -> None:
        """What there is to say after an answer."""
        self._wrapping.end()
        self._console.print()
        if answer.ended == "length":
            most = self._session.settings.max_new_tokens
            if answer.tokens < most:
                self._note("(the model's context is full; /undo or /reset makes room)")
            else:
                self._note(f"(cut at max_new_tokens={most}; /set max_new_tokens={most * 2} allows more)")
        elif answer.ended == "stopped":
            kept = (
                "what there is of the answer stays, /undo takes it back"
                if answer.text
                else "the question is forgotten"
            )
            self._note(f"(stopped; {kept})")

    def _write(self, piece: str) -> None:
        self._console.file.write(self._wrapping.add(harmless(piece)))
        self._console.file.flush()

    def _note(self, text: str) -> None:
        self._console.print(Text(harmless(text), style="dim"))

    def _welcome(self) -> None:
        session = self._session
        self._console.print(Text.assemble(("model     ", "dim"), harmless(session.base)))
        if session.adapters:
            label = "adapter   " if len(session.adapters) == 1 else "adapters  "
            self._console.print(Text.assemble((label, "dim"), harmless(", ".join(session.adapters))))
        if len(session.adapters) > 1:
            self._note(f"{session.active.name} answers; /adapter NAME chooses another, /compare PROMPT asks them all")
        if session.active.rendering.raw:
            self._note(
                "it knows no chat turns (trained on raw text, or no chat template): it goes on with what you type"
            )
        elif session.system:
            self._show_system()
        self._note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends")

    def _adapter(self, name: str) -> None:
        if not name:
            self._list()
            return
        self._session.switch(name)
        self._note(f"{name} answers from here on")

    def _base(self, _: str) -> None:
        if BASE not in self._session.models:
            raise UserError(
                "this is a whole model, there is no adapter to switch off", fix="name an adapter or a run"
            )
        self._session.switch(BASE)
        self._note("the base model answers from here on")

    def _list(self) -> None:
        for name, model in self._session.models.items():
            mark = "●" if model is self._session.active else " "
            self._console.print(Text(f"{mark} {harmless(name)}", style="bold" if mark == "●" else ""))

    def _compare(self, prompt: str) -> None:
        if not prompt:
            raise UserError("/compare needs a prompt", fix="/compare What is the capital of France?")
        names = [name for name in (BASE, *self._session.adapters) if name in self._session.models]
        before = self._session.active.name
        with self._one_seed():
            try:
                if self._console.width >= max(WIDE, COLUMN * len(names)):
                    self._side_by_side(prompt, names)
                else:
                    self._one_below_the_other(prompt, names)
            finally:
                self._session.switch(before)

    @contextmanager
    def _one_seed(self) -> Iterator[None]:
        """Each model draws alike, so that only the weights differ."""
        settings = self._session.settings
        if settings.seed is None:
            self._session.settings = changed(settings, "seed=0")
        try:
            yield
        finally:
            self._session.settings = settings

    def _side_by_side(self, prompt: str, names: list[str]) -> None:
        table = Table(expand=True, show_lines=False, header_style="bold")
        answers = []
        for name in names or [self._session.active.name]:
            self._session.switch(name)
            with self._console.status(f"{escape(harmless(name))} answers"):
                found = self._session.ask_alone(prompt, lambda piece: None)
            table.add_column(Text(harmless(name)), ratio=1, overflow="fold")
            answers.append(Text(harmless(found.text.strip())).append(_cut(found), style="dim"))
            if found.ended == "stopped":
                break
        table.add_row(*answers)
        self._console.print(table)

    def _one_below_the_other(self, prompt: str, names: list[str]) -> None:
        for name in names or [self._session.active.name]:
            self._session.switch(name)
            self._console.print(Rule(Text(harmless(name), style="bold"), align="left", style="dim"))
            found = self._session.ask_alone(prompt, self._write)
            self._wrapping.end()
            self._console.print(Text(_cut(found), style="dim"))
            if found.ended == "stopped":
                return

    def _system(self, text: str) -> None:
        if text:
            if self._session.active.rendering.raw:
                raise UserError(
                    "this model knows no system message: it goes on with a text", fix="write it into the text"
                )
            self._session.chosen_system = "" if text == "none" else text
        self._show_system()

    def _show_system(self) -> None:
        self._note(f"system: {self._session.system}" if self._session.system else "there is no system message")

    def _set(self, words: str) -> None:
        settings = self._session.settings
        for word in words.split():
            settings = changed(settings, word)
        self._session.settings = settings
        self._note(str(settings))

    def _save(self, file: str) -> None:
        if not file:
            raise UserError("/save needs a file", fix="/save chats.jsonl")
        saved = self._session.save(Path(file).expanduser())
        self._note(f"{counted(saved.rows, 'row')} added to {file}; `tune preview {file}` shows what is trained")
        if saved.untrained:
            reasons = ", ".join(f"{number} {why}" for why, number in saved.untrained.items())
            self._note(f"not trained on: {counted(saved.untrained.total(), 'answer')} ({reasons})")

    def _undo(self, _: str) -> None:
        self._note(f"taken back: {self._session.undo()}")

    def _reset(self, _: str) -> None:
        self._session.turns.clear()
        self._note("the conversation begins anew")

    def _help(self, _: str) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, (_call, argument, text) in self._commands.items():
            table.add_row(Text(f"/{name} {argument}"), Text(text))
        self._console.print(table)
        self._note(
            f"several lines: end each but the last with a backslash, or write them between {BLOCK} and {BLOCK}"
        )

    def _quit(self, _: str) -> None:
        raise SystemExit


def _shortened(name: str) -> str:
    """For the prompt. Names differ at their beginning or at their end, so the middle goes."""
    return name if len(name) <= LONGEST_NAME else f"{name[:11]}…{name[12 - LONGEST_NAME :]}"


def _cut(answer: Answer) -> str:
    return {"end": "", "length": " (cut)", "stopped": " (stopped)"}[answer.ended]


def converse(session: Session) -> None:
    """In this terminal, with the lines of earlier sessions under the arrow keys."""
    with _history(cache_dir() / "chat_history"):
        Chat(session, input, Console(highlight=False)).run()


@contextmanager
def _history(file: Path) -> Iterator[None]:
    """The history of `input`, from `file` and back to it. Only the user may read that."""
    try:
        import readline
    except ImportError:  # Python on Windows
        yield
        return
    readline.set_auto_history(sys.stdin.isatty())
    readline.set_history_length(HISTORY_LINES)
    try:
        readline.read_history_file(file)
    except OSError:
        readline.clear_history()  # there is none yet
    try:
        yield
    finally:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            readline.write_history_file(file)
        except OSError as error:
            print(f"note: the history is not kept: {error}", file=sys.stderr)
