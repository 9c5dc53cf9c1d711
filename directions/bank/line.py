"""What a list tells of each direction: no more of a header is decoded, since banks hold thousands."""

from dataclasses import dataclass
from pathlib import Path

from directions.bank.entry import Entry, check_home, read_stamp
from directions.bank.sampler_card import asked
from directions.file.container import open_named, read_header
from directions.file.header import Summary, summarize
from directions.file.metadata import check_name
from directions.file.sampler import to_sampler_info
from flowgrad.errors import FlowgradError


@dataclass(frozen=True)
class Line:
    """A direction or a sampler of a bank, as a list tells it.

    `text` is what it asks for, or why it cannot be read; such a file is taken for a direction, as an Entry's is. `safe`
    is the range of safe strengths, None where there is none to tell.
    """

    name: str
    model: str
    kind: str
    shipped: bool
    text: str
    safe: tuple[float, float] | None


def read_line(path: Path, shipped: bool) -> Line | None:
    """Read what there is to tell of the file at `path`; None if there is none. It is read again if it is replaced.

    Of a direction, these are checked: the container, the format, the tensors, that required keys are there, and what is
    told. Other values may still be refused where it is read whole.
    """
    while (stamp := read_stamp(path)) is not None:
        kind, told = _read(path)
        if read_stamp(path) == stamp:
            return Line(path.stem, path.parent.name, kind, shipped, told.text, told.safe)
    return None


def line_of(entry: Entry) -> Line:
    """What there is to tell of an entry, which was read whole."""
    where = (entry.name, entry.model, entry.kind, entry.shipped)
    if entry.sampler:
        return Line(*where, asked(entry.sampler), None)
    if entry.info is None:
        return Line(*where, entry.error or "", None)
    calibration = entry.info.calibration
    return Line(*where, entry.info.text or entry.info.title, calibration.safe if calibration else None)


def _read(path: Path) -> tuple[str, Summary]:
    """Its kind, and what it tells, or why there is nothing valid to tell."""
    try:
        check_name(path.stem)
        with open_named(path) as file:
            header = read_header(file)
            if header.is_sampler:
                info = to_sampler_info(header)
                kind, told = "sampler", Summary(info.model, asked(info), None)
            else:
                kind, told = "direction", summarize(header)
            check_home(path, told.model)
    except FlowgradError as error:
        return "direction", Summary("", str(error), None)
    return kind, told
