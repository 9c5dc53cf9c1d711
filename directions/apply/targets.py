"""What is known of photos before they are read: where their results go, and which are there already.

Photos go through the network together with their neighbours. So that a run which is broken off and goes on has the same
bits, a group of neighbours, which depends on the list of photos alone, is edited as a whole or not at all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from directions.apply.outputs import Inputs, check_output
from directions.apply.sheets import Sheets
from directions.apply.wanted import Outcome, Wanted
from directions.photo.faces import Asked
from directions.photo.sources import Source
from flowgrad.addresses import Place, exists
from flowgrad.errors import FlowgradError, UsageError


@dataclass(frozen=True)
class Known:
    """What an earlier run with the same options recorded of a photo: its file's SHA-256, output and error, or ""."""

    sha256: str
    output: str
    error: str


@dataclass(frozen=True)
class Target:
    """A photo, where its result goes, and what became of it if that is known before it is read.

    drawn: whether a contact sheet shows it; there: its output, which is left as it is; known: the SHA-256 that its file
    had when it was done, by the manifest.
    """

    source: Source
    output: Place
    settled: Outcome | None = None
    drawn: bool = False
    there: bool = False
    known: str = ""


@dataclass(frozen=True)
class Group:
    """Neighbours that are edited together; done: nothing is, if their files are still those that are known."""

    targets: tuple[Target, ...]

    @property
    def done(self) -> bool:
        return all(target.settled or target.known for target in self.targets)

    def asked(self) -> Iterator[Asked | None]:
        """What must be read of each; None for nothing."""
        for target in self.targets:
            yield None if target.settled else Asked(target.source, target.known if self.done else "")


def find_groups(targets: Iterable[Target], size: int, first: int) -> Iterator[Group]:
    """The targets in groups of a size, but for the first one."""
    targets = iter(targets)
    yield from (Group(group) for group in [tuple(islice(targets, first))] if group)
    while group := tuple(islice(targets, size)):
        yield Group(group)


def find_targets(
    sources: Sequence[Source],
    outputs: Iterable[Place],
    wanted: Wanted,
    sheets: Sheets | None,
    known: Mapping[str, Known] | None,
) -> Iterator[Target]:
    """The photos with what is known of each before it is read, looked up a sheet's photos at a time."""
    inputs, pairs = Inputs(sources), zip(sources, outputs, strict=True)
    if known is not None:
        yield from (_recorded(source, output, inputs, known.get(str(source))) for source, output in pairs)
    elif not sheets:
        yield from (_target(source, output, inputs, wanted) for source, output in pairs)
    else:
        for sheet in sheets.paths:
            part = list(islice(pairs, sheets.per_sheet))
            drawn = not (wanted.skip and all(map(exists, (sheet, *(output for _, output in part)))))
            yield from (_target(source, output, inputs, wanted, drawn) for source, output in part)


def _target(source: Source, output: Place, inputs: Inputs, wanted: Wanted, drawn: bool = False) -> Target:
    try:
        check_output(output, inputs, wanted.overwrite or wanted.skip)
    except UsageError as error:
        return Target(source, output, Outcome(source, error=error))
    there = wanted.skip and exists(output)
    settled = Outcome(source, output, skipped=True) if there and not drawn else None
    return Target(source, output, settled, drawn, there)


def _recorded(source: Source, output: Place, inputs: Inputs, known: Known | None) -> Target:
    """By the manifest: whether the output, if it is there, may be replaced is seen when there are bytes to compare."""
    if known and known.error:
        error = FlowgradError(f"{known.error} This is from an earlier run; --retry tries it again.")
        return Target(source, output, Outcome(source, error=error, skipped=True))
    try:
        check_output(output, inputs, overwrite=True)
    except UsageError as error:
        return Target(source, output, Outcome(source, error=error))
    if known and known.output in ("", str(output)) and (not known.output or exists(output)):
        return Target(source, output, there=True, known=known.sha256)
    return Target(source, output)
