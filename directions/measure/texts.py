"""The texts by which directions are measured beside each other; told before torch is imported."""

from collections.abc import Sequence

from directions.bank.bank import Entry
from directions.bank.card import target
from flowgrad.errors import UsageError
from flowgrad.guidance.contrast import Contrast


def texts_of(entries: Sequence[Entry]) -> list[Contrast]:
    """The text of each direction. Raises UsageError for fewer than two directions, or one without a text."""
    if len(entries) < 2:
        raise UsageError(f"a matrix needs two directions of one model at least; there is {len(entries)}")
    texts = []
    for entry in entries:
        if entry.info is None or not entry.info.text:
            raise UsageError(f"{entry.name!r} cannot be measured: {entry.error or 'its file names no text'}")
        texts.append(Contrast.parse(target(entry.info), ""))
    return texts
