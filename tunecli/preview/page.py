"""A preview as one HTML page that loads nothing, in light and dark, for a desk and for a phone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunecli.preview import Preview
from tunecli.preview.examples import Example, Gap, Piece, shortened
from tunecli.preview.terminal import labels_line, most_frequent, summary_lines, tag_after
from tunecli.report import html

ROOM = 4000
"""Characters at either end of a run of tokens that the page shows."""
LABEL, BARS, COUNT, ROW = 84, 230, 56, 20
"""Widths of the histogram's parts and height of one of its bars, in units of its view box."""


@dataclass(frozen=True, slots=True)
class HistogramBar:
    label: str
    examples: int
    y: int
    width: float
    marked: bool
    """whether `max_length` falls into it"""


def write_page(preview: Preview, path: Path, *, full: bool) -> None:
    """Write the page to `path`.

    Raises:
        UserError: the file cannot be written.
    """
    page = html.render(
        "page.html.jinja",
        package="tunecli.preview",
        preview=preview,
        stats=preview.statistics,
        summary=summary_lines(preview),
        examples=[(example, _pieces(example, full)) for example in preview.examples],
        bars=_bars(preview),
        chart={"label": LABEL, "bars": BARS, "width": LABEL + BARS + COUNT, "row": ROW},
        languages=most_frequent(preview.languages),
        labels=most_frequent(preview.labels),
        label_total=sum(preview.labels.values()),
        tag_after=tag_after,
        labels_line=labels_line,
        sampled=sum(preview.languages.values()),
    )
    html.write_page(page, path)


def _pieces(example: Example, full: bool) -> list[Piece | Gap]:
    return list(shortened(example.pieces, None if full else ROOM))


def _bars(preview: Preview) -> list[HistogramBar]:
    bins = preview.statistics.histogram
    most = max(each.examples for each in bins)
    return [
        HistogramBar(
            label=f"{each.low:,}–{each.high:,}" if each.low < each.high else f"{each.low:,}",
            examples=each.examples,
            y=i * ROW,
            width=max(BARS * each.examples / most, 1.0 if each.examples else 0.0),
            marked=each.low <= preview.max_length <= each.high,
        )
        for i, each in enumerate(bins)
    ]
