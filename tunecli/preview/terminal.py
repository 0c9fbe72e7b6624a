"""A preview as text in a terminal, or in a file or pipe without colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tunecli.config.counted import counted
from tunecli.data.statistics import Bin
from tunecli.engine.text import visible
from tunecli.preview import Preview
from tunecli.preview.examples import Example, Gap, Piece, shortened

TRAINED, PROMPT, GAP = "green", "dim", "yellow"
OUTSIDE = "O"
"""The tag of a word that is nothing, which is not shown."""
SPECIAL = " reverse"
"""Added to the style of the token."""
ROOM = 480
"""Characters at either end of a run of tokens that a terminal shows: about seven lines."""
EIGHTHS = " ▏▎▍▌▋▊▉█"
LANGUAGES = 8
BAR = 40
"""Columns of the longest bar, at most."""


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        raise  # `tune preview ... | head` is no failure, which rich would make of it


def show(preview: Preview, *, full: bool, tokens: bool, console: Console | None = None) -> None:
    """Print `preview`. `full`: no text loses its middle. `tokens`: a table of tokens in place of each text."""
    console = console or _Terminal(highlight=False)
    plain = not console.is_terminal or console.no_color or console.color_system is None
    for note in preview.notes:
        console.print(Text(f"note: {visible(note)}", style="yellow"))
    room = None if full else ROOM
    if preview.examples:
        console.print(_legend(plain, tokens))
    for example in preview.examples:
        pieces = list(shortened(example.pieces, room))
        console.print(Group(*_header(example), _token_table(pieces) if tokens else _text(pieces, plain), ""))
    console.print(Group(*_statistics(preview, console.width)))


def _legend(plain: bool, tokens: bool) -> Text:
    if tokens:
        return Text("the rows marked with ✓ are trained\n", style="dim")
    if plain:
        return Text("⟦trained⟧ prompt <special> ⏎ line break ⇥ tab\n")
    return Text.assemble(
        ("trained", TRAINED),
        "  ",
        ("prompt", PROMPT),
        "  ",
        ("special", TRAINED + SPECIAL),
        " ",
        ("special", PROMPT + SPECIAL),
        ("  ⏎ line break  ⇥ tab\n", "dim"),
    )


def _header(example: Example) -> Iterator[RenderableType]:
    yield Rule(Text(visible(example.origin), style="bold"), align="left", style="dim", characters="─")
    share = f"{example.trained_tokens:,} trained ({example.trained_tokens / example.tokens:.1%})"
    yield Text.assemble(
        f"{counted(example.tokens, 'token')}, ",
        (labels_line(example), TRAINED) if example.labels else share,
        (f", {example.judgement}" if example.judgement else "", TRAINED),
        f", adapter {visible(example.adapter)}" if example.adapter else "",
        f", columns {visible(example.columns)}" if example.columns else "",
        (", truncated" if example.truncated else "", "bold yellow"),
        style="dim",
    )


def labels_line(example: Example) -> str:
    return f"label{'' if len(example.labels) == 1 else 's'} {', '.join(map(visible, example.labels))}"


def _text(pieces: list[Piece | Gap], plain: bool) -> Text:
    text = Text(overflow="fold")
    for trained, run in groupby(pieces, key=lambda piece: piece.trained):
        parts = list(run)
        if heading := heading_of(parts[0]):
            text.append("\n" if text else "")
            text.append(f"── {heading}\n", "bold")
        text.append("⟦" if trained and plain else "")
        # Escapes between the tokens of an emoji would take it apart, so that what looks the same is one span.
        for style, styled in groupby(map(_styled, parts), key=lambda styled: styled[1]):
            text.append("".join(part for part, _ in styled), style)
        text.append("⟧" if trained and plain else "")
    text.rstrip()
    return text


def _styled(piece: Piece | Gap) -> tuple[str, str]:
    if isinstance(piece, Gap):
        return f" … {counted(piece.tokens, 'token')} … ", GAP
    style = TRAINED if piece.trained else PROMPT
    return visible(piece.text) + tag_after(piece), style + SPECIAL if piece.special else style


def heading_of(piece: Piece | Gap) -> str:
    return piece.heading if isinstance(piece, Piece) else ""


def tag_after(piece: Piece) -> str:
    return f"/{visible(piece.tag)}" if piece.tag and piece.tag != OUTSIDE else ""


def _token_table(pieces: list[Piece | Gap]) -> Table:
    table = _table("position", "id", "text", "trained")
    table.columns[2].justify = "left"
    position = 0
    for piece in pieces:
        if isinstance(piece, Gap):
            table.add_row("…", "", Text(_styled(piece)[0].strip(), GAP), "")
            position += piece.tokens
            continue
        if piece.heading:
            table.add_row("", "", Text(piece.heading, "bold"), "")
        for i, token in enumerate(piece.ids):
            # A character that is spread over several tokens stands with the last of them.
            last = i == len(piece.ids) - 1
            text = Text(_quoted(piece.text), _styled(piece)[1]) if last else Text("part of the next", "dim")
            table.add_row(f"{position:,}", str(token), text, "✓" if piece.trained else "")
            position += 1
    return table


def _quoted(text: str) -> str:
    return "'" + visible(text).replace("\n", "") + "'"


def _statistics(preview: Preview, width: int) -> Iterator[RenderableType]:
    stats = preview.statistics
    names = ", ".join(visible(path) for path in preview.data)
    yield Rule(Text(f"{preview.part} data: {names}", style="bold"), align="left", style="dim")
    yield _summary(preview)
    yield Text("\nlengths in tokens", style="bold")
    lengths = stats.lengths
    marked = any(each.low <= preview.max_length <= each.high for each in stats.histogram)
    yield Text(
        f"min {lengths.min:,}   median {lengths.median:,}   90% {lengths.p90:,}   99% {lengths.p99:,}   "
        f"max {lengths.max:,}" + ("" if marked else f"   (max_length {preview.max_length:,})")
    )
    yield _histogram(stats.histogram, preview.max_length, width)
    if len(stats.sources) > 1:
        yield from _titled("sources", _sources(preview))
        yield Text("drawn: share of the examples in training; learned: share of its trained tokens", style="dim")
    yield from _titled("longest", _longest(preview))
    if stats.most_repeated:
        yield from _titled("most repeated rows", _repeated(preview))
    if preview.left_out:
        yield from _titled("rows left out", _left_out(preview))
    if preview.found:
        yield from _titled("worth a look", _found(preview))


def _summary(preview: Preview) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary_lines(preview):
        warned = name in ("truncated", "left out", "duplicates") and not value.startswith("0")
        table.add_row(name, Text(value, style="yellow" if warned else ""))
    return table


def summary_lines(preview: Preview) -> list[tuple[str, str]]:
    """Name and value of what is said about a data set as a whole."""
    stats = preview.statistics
    split = f", {stats.split_rows:,} of them split into several examples" if stats.split_rows else ""
    left_out = ", ".join(f"{count:,} {why}" for why, count in stats.left_out.items())
    lines = [
        ("recipe", f"{preview.recipe}, tokenizer of {preview.model}"),
        ("format", ", ".join(preview.formats)),
        ("rows", f"{stats.rows:,} read{split}"),
        ("examples", f"{stats.examples:,}"),
        ("tokens", f"{stats.tokens:,}"),
        ("trained", trained_line(preview)),
        *([("labels", language_line(preview.labels))] if preview.labels else []),
        ("truncated", f"{counted(stats.truncated, 'example')} ({stats.truncated / stats.examples:.1%})"),
        ("left out", left_out or "0 rows"),
        ("duplicates", f"{counted(stats.duplicates, 'row')} with the content of an earlier one"),
        ("languages", language_line(preview.languages)),
    ]
    return [(name, visible(value)) for name, value in lines]


def trained_line(preview: Preview) -> str:
    stats = preview.statistics
    if all(example.labels for example in preview.examples) and preview.labels:
        return "the label of each text"
    if all(name.startswith("prompts") for name in preview.formats):
        return "nothing of it: the model is to write the answers"
    return f"{counted(stats.trained_tokens, 'token')} ({stats.trained_tokens / stats.tokens:.1%})"


def language_line(languages: dict[str, int]) -> str:
    total = sum(languages.values())
    return ", ".join(f"{name} {count / total:.1%}" for name, count in most_frequent(languages))


def most_frequent(languages: dict[str, int]) -> list[tuple[str, int]]:
    """The first LANGUAGES, and the others together."""
    named, others = list(languages.items())[:LANGUAGES], list(languages.values())[LANGUAGES:]
    return [*named, ("others", sum(others))] if others else named


def _histogram(bins: list[Bin], max_length: int, width: int) -> Table:
    longest = min(BAR, width - 40)
    most = max(each.examples for each in bins)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="green")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="yellow")
    for each in bins:
        mark = f"← max_length {max_length:,}" if each.low <= max_length <= each.high else ""
        range_text = f"{each.low:,}–{each.high:,}" if each.low < each.high else f"{each.low:,}"
        table.add_row(range_text, bar(each.examples / most, longest), f"{each.examples:,}", mark)
    return table


def bar(share: float, columns: int) -> str:
    """A bar in eighths of a column; anything that is not zero can be seen."""
    eighths = math.ceil(share * columns * 8)
    return EIGHTHS[8] * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")


def _sources(preview: Preview) -> Table:
    table = _table("", "rows", "examples", "tokens", "trained", "drawn", "learned")
    table.columns[0].justify = "left"
    for source in preview.statistics.sources:
        counts = (source.rows, source.examples, source.tokens, source.trained_tokens)
        table.add_row(
            Text(visible(source.name), overflow="fold"),
            *(f"{count:,}" for count in counts),
            f"{source.drawn:.1%}",
            f"{source.learned:.1%}",
        )
    return table


def _longest(preview: Preview) -> Table:
    table = Table.grid(padding=(0, 2))
    for example in preview.statistics.longest:
        cut = Text(" truncated", style="yellow") if example.truncated else Text()
        table.add_row(f"{example.tokens:,}", Text(visible(example.origin), overflow="fold") + cut)
    table.columns[0].justify = "right"
    return table


def _repeated(preview: Preview) -> Table:
    table = Table.grid(padding=(0, 2))
    for each in preview.statistics.most_repeated:
        table.add_row(f"{each.rows:,}×", Text(visible(each.origin), overflow="fold"))
    table.columns[0].justify = "right"
    return table


def _left_out(preview: Preview) -> Group:
    lines: list[RenderableType] = []
    for why, rows in preview.left_out.items():
        lines.append(Text(f"{visible(why)}: {counted(preview.statistics.left_out[why], 'row')}", style="yellow"))
        lines += [_indented(f"{row['source']} row {row['row']}: {row['what']}") for row in rows]
        if more := preview.statistics.left_out[why] - len(rows):
            lines.append(_indented(f"and {more:,} more"))
    return Group(*lines)


def _found(preview: Preview) -> Group:
    lines: list[RenderableType] = []
    for kind, (count, places) in preview.found.items():
        lines.append(Text(f"{visible(kind)}: {counted(count, 'row')}", style="yellow"))
        lines.append(_indented(", ".join(places)))
    return Group(*lines)


def _indented(text: str) -> Padding:
    return Padding(Text(visible(text), overflow="fold"), (0, 0, 0, 2), expand=False)


def _titled(title: str, body: RenderableType) -> Iterable[RenderableType]:
    return (Text(f"\n{title}", style="bold"), body)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table
