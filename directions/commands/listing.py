"""What is in a bank, a line for each: plain text, since a table of Rich takes longer than reading a thousand files."""

from collections.abc import Iterable, Sequence
from unicodedata import combining, east_asian_width

from directions.bank.bank import Entry
from directions.bank.sampler_card import asked

HEAD = ("name", "model", "safe", "from", "text")


def bank_lines(entries: Iterable[Entry]) -> str:
    """A head, and for each entry its name, model, safe range, origin and text, or why it cannot be read."""
    return aligned([HEAD, *map(_row, entries)])


def _row(entry: Entry) -> Sequence[str]:
    where = (entry.name, entry.model), "flowgrad" if entry.shipped else "you"
    if entry.sampler:
        return *where[0], "", where[1], f"sampler: {asked(entry.sampler)}"
    info = entry.info
    if info is None:
        return *where[0], "", where[1], entry.error or ""
    safe = "{:g} to {:g}".format(*info.calibration.safe) if info.calibration else ""
    return *where[0], safe, where[1], " ".join((info.text or info.title).split())


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
