"""What is in a bank, a line for each: plain text, since a table of Rich takes longer than reading a thousand files."""

from collections.abc import Iterable, Sequence
from unicodedata import combining, east_asian_width

from directions.bank.line import Line

HEAD = ("name", "model", "safe", "from", "text")


def bank_lines(lines: Iterable[Line]) -> str:
    """A head, and for each entry its name, model, safe range, origin and text, or why it cannot be read."""
    return aligned([HEAD, *map(_row, lines)])


def _row(line: Line) -> Sequence[str]:
    safe = "{:g} to {:g}".format(*line.safe) if line.safe else ""
    what = "sampler: " if line.kind == "sampler" else ""
    return line.name, line.model, safe, "flowgrad" if line.shipped else "you", what + " ".join(line.text.split())


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of one length as lines whose columns stand below one another; the last column is as long as it is."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)][:-1]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    *cells, last = row
    return "".join(cell + " " * (width - _width(cell) + 2) for cell, width in zip(cells, widths, strict=True)) + last


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(c) else 1 + (east_asian_width(c) in "WF") for c in text)
