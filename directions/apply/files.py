"""Directions applied to files: a few photos at a time, and the failure of one does not stop the others.

While a group of photos goes through the network, the next are read, decoded and searched for faces in processes beside,
and those before it are put together, encoded and written by a thread: each of them has a few photos at most.
"""

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, tee

from PIL import Image

from directions.apply.edit import Edit, check_budget, edit_images, keep_identity, measure_identity
from directions.apply.familiarity import is_face, judge_familiarity
from directions.apply.inversion import invert_for, join
from directions.apply.photos import alignment
from directions.apply.sheets import Sheets
from directions.apply.targets import Group, Known, Target, find_groups, find_targets
from directions.apply.wanted import EditedFace, Outcome, Wanted
from directions.figures import strength_label, strip
from directions.photo.beside import Beside, ahead
from directions.photo.composite import Patch, composite
from directions.photo.faces import Asked, Faces, Prepared, Read, from_left, largest_of, read_changed
from directions.photo.reading import Photo, to_images, to_tensor
from directions.photo.sources import Source
from directions.photo.view import views
from directions.photo.writing import to_bytes
from flowgrad.addresses import Place, StorageError, exists, read_bytes, write_bytes
from flowgrad.errors import FlowgradError
from flowgrad.files import occupied
from flowgrad.models import Model
from flowgrad.ode import Control

_PIXELS = 60_000_000  # of photos that are in memory at once, unless a single one has more
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what keeps every other photo from being written too

Reading = Callable[[Asked], Read | None]
Ended = Callable[[], Outcome]  # what became of a photo, once it is written
Edited = tuple[list[Edit], list[str | None]]  # of one photo's faces, with what is unusual about each


@dataclass(frozen=True, eq=False)
class _Job:
    """A photo that was read, and the faces that are edited."""

    target: Target
    content: bytes
    sha256: str
    photo: Photo
    faces: Faces

    @property
    def crops(self) -> tuple[Prepared, ...]:
        """The faces at the model's size."""
        return self.faces.crops


def apply_to_files(
    model: Model,
    control: Control,
    sources: Sequence[Source],
    outputs: Iterable[Place],
    wanted: Wanted,
    beside: Beside | None = None,
    sheets: Sheets | None = None,
    known: Mapping[str, Known] | None = None,
) -> Iterator[Outcome]:
    """Edit photos and write each to its output, in their order; a few photos are in memory at once.

    `beside` prepares photos while others are edited; see `process_beside`. `sheets` are drawn on the way: a skipped
    photo is edited once more for a sheet that must be drawn. known: what a manifest says of photos, by their sources;
    None if there is no manifest. What fails for one photo is its outcome; running out of memory or disk is raised, as
    the rest would fail too, and so is a store that refuses or does not answer, and a budget that cannot be kept.
    """
    if wanted.budget is not None:
        check_budget(model, wanted.budget)
    targets = find_targets(sources, outputs, wanted, sheets, known)
    first = 1 if known is None else model.batch  # alone, its result is soon there to be looked at
    groups = find_groups(targets, model.batch, first)
    writer = ThreadPoolExecutor(1)
    try:
        for outcome in _outcomes(model, control, groups, wanted, beside, writer):
            if sheets:
                sheets.add(outcome)
            yield outcome
    finally:
        writer.shutdown(cancel_futures=True)


def _outcomes(
    model: Model,
    control: Control,
    groups: Iterable[Group],
    wanted: Wanted,
    beside: Beside | None,
    writer: Executor,
) -> Iterator[Outcome]:
    """What became of the photos, each as soon as those after it are through the network too, or before."""
    align = alignment(model, wanted.align)
    read = partial(read_changed, size=model.config.size, align=align, face=wanted.face, enough=wanted.enough)
    groups, same = tee(groups)
    reading = ahead(beside, read, chain.from_iterable(group.asked() for group in same))
    written: list[Ended] = []
    for group in groups:
        for part in _parts(_entries(group, islice(reading, len(group.targets)), read, wanted), model.batch):
            edited = _finish(model, control, part, wanted, writer)
            yield from (ended() for ended in written)
            written = edited
    yield from (ended() for ended in written)


def _entries(
    group: Group, reading: Iterator[Callable[[], Read | None]], read: Reading, wanted: Wanted
) -> Iterator[_Job | Outcome]:
    """A photo to edit, or what became of it without that, for each of a group."""
    if group.done:
        unchanged = [_is_unchanged(awaited) for awaited in reading]
        if all(unchanged):
            yield from (target.settled or _skipped(target) for target in group.targets)
            return
        reading = (partial(read, Asked(target.source)) for target in group.targets)
    for target, awaited in zip(group.targets, reading, strict=True):
        yield target.settled or _job(target, awaited, wanted)


def _is_unchanged(awaited: Callable[[], Read | None]) -> bool:
    try:
        return awaited() is None
    except FlowgradError:  # read again with its group, it will say so
        return False


def _skipped(target: Target) -> Outcome:
    return Outcome(target.source, target.output, skipped=True)


def _job(target: Target, awaited: Callable[[], Read | None], wanted: Wanted) -> _Job | Outcome:
    try:
        read = awaited()
    except FlowgradError as error:
        return Outcome(target.source, error=error)
    assert read
    if target.known and target.known != read.sha256:
        target = replace(target, there=False)
    faces = replace(read.faces, crops=(largest_of(read.faces),)) if wanted.crop and read.faces.crops else read.faces
    return _Job(target, read.content, read.sha256, read.photo, faces)


def _parts(entries: Iterable[_Job | Outcome], batch: int) -> Iterator[list[_Job | Outcome]]:
    """A group in parts, so that neither faces nor pixels are too many at once."""
    part: list[_Job | Outcome] = []
    for entry in entries:
        part.append(entry)
        jobs = [entry for entry in part if isinstance(entry, _Job)]
        pixels = sum(job.photo.pixels.width * job.photo.pixels.height for job in jobs)
        if not jobs or sum(len(job.crops) for job in jobs) >= batch or pixels >= _PIXELS:
            yield part
            part = []
    if part:
        yield part


def _finish(
    model: Model, control: Control, part: Sequence[_Job | Outcome], wanted: Wanted, writer: Executor
) -> list[Ended]:
    """Edit the faces of a part of a group, and begin to write its photos."""
    edited = _edit_each(model, control, [entry for entry in part if isinstance(entry, _Job)], wanted)
    ended: list[Ended] = []
    for entry in part:
        if isinstance(entry, Outcome):
            ended.append(partial(_as_it_is, entry))
        else:
            ended.append(writer.submit(_save, model, entry, next(edited), wanted).result)
    return ended


def _as_it_is(outcome: Outcome) -> Outcome:
    return outcome


def _edit_each(
    model: Model, control: Control, jobs: Sequence[_Job], wanted: Wanted
) -> Iterator[Edited | FlowgradError]:
    """Edit the faces of photos; where the batch fails, photo by photo, so that one spoils no other."""
    try:
        yield from _edit(model, control, jobs, wanted)
    except FlowgradError as error:
        if len(jobs) == 1:
            yield FlowgradError(f"{jobs[0].target.source}: {error}")
            return
        for job in jobs:
            yield from _edit_each(model, control, [job], wanted)


def _edit(model: Model, control: Control, jobs: Sequence[_Job], wanted: Wanted) -> list[Edited]:
    crops = [crop for job in jobs for crop in job.crops]
    if not crops:
        return [([], []) for _ in jobs]
    images = to_tensor([crop.image for crop in crops])
    inverted = join(invert_for(model, images, control, wanted.inversion))
    verdicts = iter(judge_familiarity(model, inverted))
    if wanted.budget is not None:
        edits = iter(keep_identity(model, control, inverted, wanted.budget))
    else:
        edits = iter(edit_images(model, control, inverted, wanted.strengths or (1.0,)))
        if wanted.recorded and not wanted.strengths:
            edits = iter(measure_identity(model, list(edits)))
    return [(list(islice(edits, len(job.crops))), list(islice(verdicts, len(job.crops)))) for job in jobs]


def _save(model: Model, job: _Job, edited: Edited | FlowgradError, wanted: Wanted) -> Outcome:
    """Write a strip, a crop, or the photo with its edits, unless it is there, or there is nothing to edit."""
    target = job.target
    if isinstance(edited, FlowgradError):
        return Outcome(target.source, error=edited, sha256=job.sha256)
    edits, verdicts = edited
    if not all(is_face(model, crop, verdict) for crop, verdict in zip(job.crops, verdicts, strict=True)):
        job, edits, verdicts = replace(job, faces=Faces()), [], []
    crops = tuple(to_images(edits[0].after)) if edits and (wanted.crop or target.drawn) else ()
    written = bool(edits) or wanted.copy_unedited
    if written and not target.there:
        try:
            _write(target.output, _encoded(job, edits, crops, wanted), wanted)
        except StorageError:
            raise
        except FlowgradError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _LASTING:
                again = "The same command" if wanted.recorded else "The same command with --skip-existing"
                raise FlowgradError(f"{error} {again} then goes on.") from error.__cause__
            return Outcome(target.source, error=error, sha256=job.sha256)
    return Outcome(
        target.source,
        target.output if written else None,
        warning=_warning(job.crops, verdicts),
        images=(job.crops[0].image, *crops) if edits and target.drawn else (),
        edited=tuple(EditedFace(e.share, e.distance, verdict) for e, verdict in zip(edits, verdicts, strict=True)),
        skipped=target.there,
        unedited=None if edits else job.faces.lack,
        faces=(len(edits), job.faces.too_small) if job.faces.searched else None,
        sha256=job.sha256,
    )


def _warning(crops: Sequence[Prepared], verdicts: Sequence[str | None]) -> str | None:
    """What the user may want to know of a photo's faces; of several it says which, counted from the left."""
    said = []
    for number, i in enumerate(from_left([crop.place for crop in crops]), 1):
        which = f"face {number}: " if len(crops) > 1 else ""
        said += [which + text for text in (crops[i].warning, verdicts[i]) if text]
    return "; ".join(said) or None


def _write(output: Place, content: bytes, wanted: Wanted) -> None:
    """Write a result. Where its bytes are there already, the run that wrote them ended before it was recorded."""
    if not wanted.overwrite and exists(output):
        if not (wanted.recorded and read_bytes(output) == content):
            raise occupied(output)
        return
    write_bytes(output, content)


def _encoded(job: _Job, edits: Sequence[Edit], crops: Sequence[Image.Image], wanted: Wanted) -> bytes:
    source, suffix = job.target.source, Source(job.target.output).suffix
    if wanted.strengths:
        versions = [_patches(job, edits, k) for k in range(len(wanted.strengths))]
        images = crops if wanted.crop else views(job.photo.pixels, versions)
        labels = [strength_label(strength) for strength in wanted.strengths]
        picture = strip(images, labels, f"{source.name}: {wanted.title}")
        return to_bytes(picture, Photo(picture), suffix)
    if wanted.crop:
        return to_bytes(crops[0], Photo(crops[0]), suffix)
    return composed(job.content, source.suffix, job.photo, _patches(job, edits), suffix)


def _patches(job: _Job, edits: Sequence[Edit], k: int = 0) -> list[Patch]:
    """What the k-th strength changes in each face."""
    return [Patch(edit.difference(k), crop.place) for edit, crop in zip(edits, job.crops, strict=True)]


def composed(content: bytes, kind: str, photo: Photo, patches: Sequence[Patch], suffix: str) -> bytes:
    """A photo with patches added, as a file whose name ends with `suffix`.

    These are the bytes of the photo's own file, whose name ends with `kind`, where nothing is changed and it is of that
    kind too.
    """
    if kind.lower() == suffix.lower() and all(patch.is_empty for patch in patches):
        return content
    return to_bytes(composite(photo.pixels, patches), photo, suffix)
