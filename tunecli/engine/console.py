"""What a person sees of a run: a live line in a terminal, plain lines elsewhere, and the same lines in `log.txt`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from tunecli.engine.questions import question_of
from tunecli.engine.text import visible

BAR = 20
NARROW_BAR = 10
"""Below `WIDE` columns."""
WIDE = 100
DROPPED = ("norm", "memory", "lr", "speed", "eta")
"""Parts of the live line that go, in this order, until it fits the terminal."""
SHARES = ("exact_match", "choice_accuracy")
"""Results that read best in percent."""
SHOWN_SAMPLES = 3
JUDGED = ("score", "kl")
"""What may be known of a sample's answer."""


class Display:
    """Prints on the main process only; other ranks get `Display(enabled=False)`, which does nothing."""

    def __init__(self, *, enabled: bool = True, log_file: Path | None = None) -> None:
        self.enabled = enabled
        self.console = Console(highlight=False, soft_wrap=True)
        self.log_file = log_file if enabled else None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._live = "starting"

    def note(self, text: str, style: str = "") -> None:
        """A line that stays."""
        if not self.enabled:
            return
        shown = _wrapped(text, self.console.width) if self.console.is_terminal else text
        self.console.print(Text(shown, style=style))
        self._to_file(text)

    def start(self, *, step: int, num_steps: int) -> None:
        if not self.enabled or not self.console.is_terminal or self.console.is_dumb_terminal:
            return
        self._progress = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=self._bar_width()),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=self.console,
        )
        self._task = self._progress.add_task(self._live, total=num_steps, completed=step)
        self._progress.start()

    def training(self, record: Mapping[str, Any], num_steps: int) -> None:
        """One logged training step."""
        if not self.enabled:
            return
        parts = _parts(record, num_steps)
        plain = f"step {record['step']}/{num_steps}  {'  '.join(parts.values())}"
        if self._progress is None or self._task is None:
            self.note(plain)
            return
        taken = len("step ") + 2 * len(str(num_steps)) + len("/ ") + self._bar_width() + len(" ")
        self._live = "  ".join(fitting(parts, self.console.width - taken))
        self._progress.update(self._task, completed=record["step"], description=self._live)
        self._to_file(plain)

    def evaluating(self, done: float) -> None:
        """How far a running evaluation is, in the live line; 1 brings back what stood there."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=self._live if done == 1 else f"evaluating {done:.0%}")

    def evaluation(self, record: Mapping[str, Any], num_steps: int) -> None:
        self.evaluating(1)
        parts = [result(name.removeprefix("eval/"), value) for name, value in record.items() if name != "step"]
        self.note(f"step {record['step']}/{num_steps}  validation  {'  '.join(parts)}", style="cyan")

    def samples(self, step: int, num_steps: int, samples: Sequence[Mapping[str, str]]) -> None:
        """The first of them, one line for the prompt and one for the answer, cut to the width of the terminal."""
        shown = [_sample(sample, self.console.width) for sample in samples[:SHOWN_SAMPLES]]
        if shown:
            self.note("\n".join([f"step {step}/{num_steps}  samples", *shown]), style="cyan")

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _bar_width(self) -> int:
        return BAR if self.console.width >= WIDE else NARROW_BAR

    def _to_file(self, text: str) -> None:
        if self.log_file is not None:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(text + "\n")


def fitting(parts: Mapping[str, str], width: int) -> list[str]:
    """The parts that fit into `width` columns, two blanks between them; the first one stays in any case."""
    left = dict(parts)
    for name in DROPPED:
        if sum(map(len, left.values())) + 2 * (len(left) - 1) <= width:
            break
        left.pop(name, None)
    return list(left.values())


def result(name: str, value: float) -> str:
    """One result of an evaluation, as in `exact match 87.5%`."""
    shown = f"{value:.1%}" if name in SHARES else f"{value:.4g}" if name == "perplexity" else f"{value:.4f}"
    return f"{name.replace('_', ' ') if name in SHARES else name} {shown}"


def _wrapped(text: str, width: int) -> str:
    """Lines break between words; a path that is wider stays one piece, to be copied."""
    wrapper = TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrapper.fill(line) for line in text.split("\n"))


def _parts(record: Mapping[str, Any], num_steps: int) -> dict[str, str]:
    """With four digits of steps they fit a line of 79 columns; metrics.jsonl has every digit."""
    return {
        "loss": f"loss {_digits(record['loss'], 4)}",
        "lr": f"lr {_scientific(record['learning_rate'])}",
        "norm": f"norm {_digits(record['grad_norm'], 2)}",
        "speed": _speed(record["tokens_per_second"]),
        "memory": f"{_digits(record['memory_peak_bytes'] / 1e9, 1)}GB",
        "eta": _eta((num_steps - record["step"]) * record["seconds_per_step"]),
    }


def _eta(left: float) -> str:
    minutes, seconds = divmod(int(left), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 10:
        return f"eta {hours}h"
    return f"eta {hours}h{minutes:02d}" if hours else f"eta {minutes}:{seconds:02d}"


def _digits(number: float, decimals: int) -> str:
    """One decimal less for every digit from the second on before the point."""
    return f"{number:.{max(0, decimals - len(str(int(abs(number)))) + 1)}f}" if isfinite(number) else str(number)


def _scientific(number: float) -> str:
    """As 3.0e-4."""
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _speed(tokens_per_second: float) -> str:
    many = tokens_per_second >= 10_000
    return f"{tokens_per_second / 1000:.0f}k tok/s" if many else f"{tokens_per_second:.0f} tok/s"


def _sample(sample: Mapping[str, str], width: int) -> str:
    expected = f"   (expected: {_elided(_one_line(sample['expected']), width // 3)})" if "expected" in sample else ""
    judged = "  ".join(f"{name} {sample[name]}" for name in JUDGED if name in sample)
    behind = f"{expected}   ({judged})" if judged else expected
    answer = _elided(_one_line(sample["answer"]), width - len("    -> ") - cell_len(behind))
    return f"  {_elided(_one_line(question_of(sample['prompt'])), width - 2)}\n    -> {answer}{behind}"


def _one_line(text: str) -> str:
    return visible(text.strip()).replace("\n", "")


def _elided(text: str, width: int) -> str:
    line = Text(text)
    line.truncate(width, overflow="ellipsis")
    return line.plain
