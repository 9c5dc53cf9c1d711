"""What is said of photos as they are edited, and how the command ends."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from directions.commands.errors import failed
from directions.commands.terminal import Listing, Terminal, wrote
from flowgrad.files import printable

if TYPE_CHECKING:
    from pathlib import Path

    from directions.apply.wanted import Outcome
    from flowgrad.addresses import Place


def report(
    outcomes: "Iterable[Outcome]", count: int, folder: "Place", sheets: "list[Path]", terminal: Terminal, kept: bool
) -> None:
    """Say at once what became of each photo; exit with 1 if any failed, or if none has a face: nothing was done.

    sheets: the contact sheets that are drawn on the way; kept: whether there is an identity budget. The error of a
    single photo is raised.
    """
    counted, unedited = Counter[str](), []
    with Listing(terminal.quiet, "files") as listing:
        for outcome in outcomes:
            if outcome.error and count == 1:
                raise outcome.error
            if outcome.warning:
                terminal.warn(f"{printable(outcome.photo.name)}: {outcome.warning}")
            if outcome.error:
                failed(printable(str(outcome.error)))
            if outcome.unedited:
                unedited.append(str(outcome.photo))
            counted[_fate(outcome)] += 1
            budget = _kept(outcome) if kept else ""
            listing.add(_as_json(outcome, kept), _left(outcome), _faces(outcome), budget, _wrote(outcome))
        listing.end(
            {"unedited": unedited, "contact_sheets": sheets},
            wrote(*sheets),
            _count(counted, count, folder) if count > 1 else "",
        )
    if counted["left"] == count:
        from directions.photo.faces import NO_FACE_REMEDY

        raise failed(f"no photo was edited. {NO_FACE_REMEDY}")
    if counted["failed"]:
        raise typer.Exit(1)


def _fate(outcome: "Outcome") -> str:
    if outcome.error:
        return "failed"
    return "skipped" if outcome.skipped else "written" if outcome.output else "left"


def _as_json(outcome: "Outcome", kept: bool) -> dict[str, object]:
    error = outcome.error and str(outcome.error)
    result: dict[str, object] = {"photo": str(outcome.photo), "output": outcome.output, "error": error}
    result |= {"warning": outcome.warning, "skipped": outcome.skipped, "unedited": outcome.unedited}
    if outcome.faces:
        result["faces"] = dict(zip(("edited", "too_small"), outcome.faces, strict=True))
    if kept and outcome.edited:
        result["identity"] = [{"share": face.share, "distance": face.distance} for face in outcome.edited]
    return result


def _left(outcome: "Outcome") -> str:
    """That a photo was left as it is, and why."""
    return f"{printable(outcome.photo.name)}: {outcome.unedited}, so it stays as it is" if outcome.unedited else ""


def _faces(outcome: "Outcome") -> str:
    """How many faces were edited, unless it is the only one: "3 faces edited, 1 too small"."""
    edited, too_small = outcome.faces or (0, 0)
    if not edited or edited + too_small == 1:
        return ""
    small = f", {too_small} too small" if too_small else ""
    return f"{printable(outcome.photo.name)}: {edited} {'face' if edited == 1 else 'faces'} edited{small}"


def _kept(outcome: "Outcome") -> str:
    """What the identity budget left of the strength asked for, face by face."""
    faces = (f"{face.share:.0%} of the strength, identity distance {face.distance:.2f}" for face in outcome.edited)
    return f"{printable(outcome.photo.name)}: {'; '.join(faces)}" if outcome.edited else ""


def _wrote(outcome: "Outcome") -> str:
    if outcome.error or not outcome.output:
        return ""
    return f"skipped {printable(str(outcome.output))}: it exists already" if outcome.skipped else wrote(outcome.output)


def _count(counted: "Counter[str]", count: int, folder: "Place") -> str:
    words = {"skipped": "skipped", "left": "left as they are", "failed": "failed"}
    others = "".join(f", {counted[what]} {told}" for what, told in words.items() if counted[what])
    return f"{counted['written']} of {count} photos written to {folder}{others}"
