"""Directions applied to files: a few photos at a time, and the failure of one does not stop the others."""

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, tee
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from directions.apply.edit import Edit, check_budget, edit_images, keep_identity
from directions.apply.familiarity import is_face, judge_familiarity, usual_grid
from directions.apply.inversion import (
    ANCHORED_EULER,
    Inversion,
    invert_for,
    invert_images,
    join,
    sample_images,
)
from directions.apply.outputs import Inputs, check_output
from directions.apply.sheets import Sheets
from directions.apply.steer import steer, to_control
from directions.bank.bank import Bank
from directions.bank.card import is_safe
from directions.figures import strength_label, strip
from directions.file.direction import Direction
from directions.photo.beside import ahead
from directions.photo.composite import Patch, composite
from directions.photo.crop import Place
from directions.photo.detection import FINEST
from directions.photo.faces import Faces, Prepared, largest_of, read_faces, without_a_face
from directions.photo.reading import Align, Photo, to_images, to_tensor
from directions.photo.view import VIEW_SIDE, views
from directions.photo.writing import copy_file, save_image, save_photo
from directions.progress import Reporter
from flowgrad.errors import FlowgradError, UsageError, all_of
from flowgrad.files import file_fingerprint, refuse_existing
from flowgrad.models import Model
from flowgrad.ode import Control, total

_PIXELS = 60_000_000  # of photos that are in memory at once, unless a single one has more
_SHOWN = 4 * VIEW_SIDE  # pixels along a photo's longer side that are enough for a strip around its faces
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what keeps every other photo from being written too


@dataclass(frozen=True)
class Photos:
    """Photos brought to a model's size: tensor (n, 3, H, W) in [-1, 1], their files and hashes of them, and places.

    places: where each image lies in its photo. unedited: files that were left out, as no face was found in them.
    """

    images: Tensor
    files: tuple[Path, ...]
    hashes: tuple[str, ...]
    places: tuple[Place, ...]
    unedited: tuple[Path, ...]


def mixture(
    model: Model,
    parts: Sequence[tuple[Direction, float]],
    reporter: Reporter,
    force: bool = False,
    factors: Sequence[float] = (1.0,),
) -> Control:
    """The sum of several directions as one control (M, 1, *D), which will be used at the multiples `factors`.

    Warns of strengths beyond those measured as safe. Raises FlowgradError for directions that do not fit the model.
    """
    for direction, strength in parts:
        calibration = direction.info.calibration
        for used in sorted({strength * min(factors), strength * max(factors)}):
            if calibration and not is_safe(calibration, used):
                where = "beyond the safe range of {!r} ({:g} to {:g})".format(direction.info.title, *calibration.safe)
                reporter.warn(f"strength {used:g} is {where}: faces may turn into other people, or break")
    return total(to_control(direction, model, force) * strength for direction, strength in parts)


def alignment(model: Model, align: Align) -> Align:
    """How photos are aligned for a model: never for one that was not trained on aligned faces."""
    return align if model.config.aligned_faces else "never"


def read_photos(paths: Sequence[Path], model: Model, align: Align, reporter: Reporter, whole: bool = False) -> Photos:
    """Read and prepare photos, each for its largest face; those without one are left out, and warned of.

    whole: the places are those in the photos at full size; otherwise large ones may be decoded at a reduced scale.
    Raises FlowgradError naming all that cannot be read, and if no photo has a face.
    """
    faces: dict[Path, Prepared] = {}
    lacks: dict[Path, str] = {}
    errors, enough = [], None if whole else FINEST
    for path in reporter.track(paths, "reading photos", len(paths)):
        try:
            found = read_faces(path, model.config.size, alignment(model, align), enough=enough)[1]
        except FlowgradError as error:
            errors.append(error)
            continue
        if found.crops:
            faces[path] = largest_of(found)
        else:
            lacks[path] = found.lack
    if errors:
        raise all_of(errors, f"{len(errors)} of {len(paths)} photos cannot be used")
    unknown = _unknown(model, faces)
    lacks |= dict.fromkeys(unknown, Faces().lack)
    faces = {path: face for path, face in faces.items() if path not in lacks}
    if not faces:
        errors = [FlowgradError(f"{path}: {without_a_face(lack)}") for path, lack in lacks.items()]
        raise all_of(errors, f"none of {len(paths)} photos can be used")
    for path, lack in lacks.items():
        reporter.warn(f"{path.name}: {lack}, so it is left out")
    for path, face in faces.items():
        if face.warning:
            reporter.warn(f"{path.name}: {face.warning}")
    return Photos(
        to_tensor([face.image for face in faces.values()]),
        tuple(faces),
        tuple(map(file_fingerprint, faces)),
        tuple(face.place for face in faces.values()),
        tuple(path for path in paths if path in lacks),
    )


def _unknown(model: Model, faces: Mapping[Path, Prepared]) -> list[Path]:
    """The photos of the model's own size in which no face was found, and that the model does not know."""
    asked = [path for path, face in faces.items() if face.unconfirmed]
    if not asked:
        return []
    images, grid = to_tensor([faces[path].image for path in asked]), usual_grid(model, Bank.default())
    verdicts = judge_familiarity(model, join(invert_images(model, images, grid=grid)))
    return [path for path, said in zip(asked, verdicts, strict=True) if not is_face(model, faces[path], said)]


@dataclass(frozen=True)
class Wanted:
    """What shall become of photos.

    A strip of several `strengths`, or one edited photo: at the photo's own resolution, or (`crop`) the model's crop.
    `face`: that one alone, counted from the left. budget: the identity budget, see `keep_identity`. inversion: of the
    photos, as the directions were trained; see `common_inversion`. skip: photos whose output exists are left as they
    are. title: of the strips, after the photo's name. copy_unedited: photos without a face are copied to their outputs.
    """

    strengths: tuple[float, ...] = ()
    crop: bool = False
    face: int | None = None
    align: Align = "auto"
    overwrite: bool = False
    budget: float | None = None
    inversion: Inversion = ANCHORED_EULER
    skip: bool = False
    title: str = "edited"
    copy_unedited: bool = False

    def __post_init__(self) -> None:
        if self.copy_unedited and (self.crop or self.strengths):
            raise UsageError("--copy-unedited copies whole photos; leave out --crop and --strengths, or it")
        if self.skip and self.overwrite:
            raise UsageError("--skip-existing leaves files that exist, --overwrite replaces them: give one of the two")
        if self.budget is not None and self.strengths:
            raise UsageError("--keep-identity chooses one strength for each photo; leave out --strengths")

    @property
    def enough(self) -> int | None:
        """Pixels of a photo's longer side that will do: None for all it has."""
        return FINEST if self.crop else _SHOWN if self.strengths else None


@dataclass(frozen=True)
class Outcome:
    """What became of a photo: the file written, the error that kept it from being edited, or why there was nothing to.

    unedited: the latter, of a photo that was left as it is, and was copied to `output` if that was asked for.
    faces: how many were edited, and how many are too small; None where faces were not looked for.
    `images`, for a contact sheet, are the photo at the model's size and the edited versions, in the order of the
    strengths. `kept`: with an identity budget, for each face its share of the strength asked for, and its distance.
    skipped: the output was there before, and was left as it is.
    """

    photo: Path
    output: Path | None = None
    error: FlowgradError | None = None
    warning: str | None = None
    images: tuple[Image.Image, ...] = ()
    kept: tuple[tuple[float, float], ...] = ()
    skipped: bool = False
    unedited: str | None = None
    faces: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Target:
    """A photo, where its result goes, and what became of it if that is known before it is read.

    drawn: whether a contact sheet shows it; there: its output, which is left as it is.
    """

    path: Path
    output: Path
    settled: Outcome | None = None
    drawn: bool = False
    there: bool = False


@dataclass(frozen=True, eq=False)
class _Job:
    """A photo that was read, and the faces that are edited."""

    target: _Target
    photo: Photo
    faces: Faces

    @property
    def crops(self) -> tuple[Prepared, ...]:
        """The faces at the model's size."""
        return self.faces.crops


Edited = tuple[list[Edit], list[str | None]]  # of one photo's faces, with what is unusual about each
Read = tuple[Photo, Faces]


def apply_to_files(
    model: Model,
    control: Control,
    photos: Sequence[Path],
    outputs: Iterable[Path],
    wanted: Wanted,
    beside: Executor | None = None,
    sheets: Sheets | None = None,
) -> Iterator[Outcome]:
    """Edit photos and write each to its output, in their order; a few photos are in memory at once.

    `beside` prepares photos while others are edited; see `process_beside`. `sheets` are drawn on the way: a skipped
    photo is edited once more for a sheet that must be drawn. What fails for one photo is its outcome; running out of
    memory or disk is raised, as the rest would fail too, and so is a budget that cannot be kept.
    """
    if wanted.budget is not None:
        check_budget(model, wanted.budget)
    for outcome in _outcomes(model, control, _targets(photos, outputs, wanted, sheets), wanted, beside):
        if sheets:
            sheets.add(outcome)
        yield outcome


def _targets(
    photos: Sequence[Path], outputs: Iterable[Path], wanted: Wanted, sheets: Sheets | None
) -> Iterator[_Target]:
    """The photos with what is known of each before it is read, looked up a sheet's photos at a time."""
    inputs, pairs = Inputs(photos), zip(photos, outputs, strict=True)
    if not sheets:
        yield from (_target(path, output, inputs, wanted) for path, output in pairs)
        return
    for sheet in sheets.paths:
        part = list(islice(pairs, sheets.per_sheet))
        drawn = not (wanted.skip and all(path.exists() for path in (sheet, *(output for _, output in part))))
        yield from (_target(path, output, inputs, wanted, drawn) for path, output in part)


def _target(path: Path, output: Path, inputs: Inputs, wanted: Wanted, drawn: bool = False) -> _Target:
    try:
        check_output(output, inputs, wanted.overwrite or wanted.skip)
    except UsageError as error:
        return _Target(path, output, Outcome(path, error=error))
    there = wanted.skip and output.exists()
    settled = Outcome(path, output, skipped=True) if there and not drawn else None
    return _Target(path, output, settled, drawn, there)


def _outcomes(
    model: Model, control: Control, targets: Iterable[_Target], wanted: Wanted, beside: Executor | None
) -> Iterator[Outcome]:
    align = alignment(model, wanted.align)
    read = partial(read_faces, size=model.config.size, align=align, face=wanted.face, enough=wanted.enough)
    targets, same = tee(targets)
    waiting: list[_Job | Outcome] = []
    batch = 1  # so that the first result is soon there to be looked at
    for target, awaited in zip(targets, ahead(beside, read, (_to_read(target) for target in same)), strict=True):
        waiting.append(_job(target, awaited, wanted))
        if _is_full(waiting, batch):
            yield from _finish(model, control, waiting, wanted)
            waiting, batch = [], model.batch
    yield from _finish(model, control, waiting, wanted)


def _to_read(target: _Target) -> Path | None:
    return None if target.settled else target.path


def _job(target: _Target, awaited: Callable[[], Read | None], wanted: Wanted) -> _Job | Outcome:
    """A photo to edit, or what became of it without that."""
    try:
        read = awaited()
    except FlowgradError as error:
        return Outcome(target.path, error=error)
    if target.settled:
        return target.settled
    assert read
    photo, faces = read
    return _Job(target, photo, replace(faces, crops=(largest_of(faces),)) if wanted.crop and faces.crops else faces)


def _is_full(waiting: Sequence[_Job | Outcome], batch: int) -> bool:
    """Whether there is enough to edit; what needs no editing waits for the photos before it, but not for long."""
    jobs = [entry for entry in waiting if isinstance(entry, _Job)]
    pixels = sum(job.photo.pixels.width * job.photo.pixels.height for job in jobs)
    return not jobs or len(waiting) >= 2 * batch or sum(len(job.crops) for job in jobs) >= batch or pixels >= _PIXELS


def _finish(model: Model, control: Control, waiting: Sequence[_Job | Outcome], wanted: Wanted) -> Iterator[Outcome]:
    """Edit the faces of photos that wait for it and write the photos, in their order."""
    edited = _edit_each(model, control, [job for job in waiting if isinstance(job, _Job)], wanted)
    for entry in waiting:
        yield entry if isinstance(entry, Outcome) else _save(model, entry, next(edited), wanted)


def _edit_each(
    model: Model, control: Control, jobs: Sequence[_Job], wanted: Wanted
) -> Iterator[Edited | FlowgradError]:
    """Edit the faces of photos; where the batch fails, photo by photo, so that one spoils no other."""
    try:
        yield from _edit(model, control, jobs, wanted)
    except FlowgradError as error:
        if len(jobs) == 1:
            yield FlowgradError(f"{jobs[0].target.path}: {error}")
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
    return [(list(islice(edits, len(job.crops))), list(islice(verdicts, len(job.crops)))) for job in jobs]


def _save(model: Model, job: _Job, edited: Edited | FlowgradError, wanted: Wanted) -> Outcome:
    """Write a strip, a crop, or the photo with its edits, unless it is there, or there is nothing to edit."""
    target = job.target
    if isinstance(edited, FlowgradError):
        return Outcome(target.path, error=edited)
    edits, verdicts = edited
    if not all(is_face(model, crop, verdict) for crop, verdict in zip(job.crops, verdicts, strict=True)):
        job, edits, verdicts = replace(job, faces=Faces()), [], []
    crops = tuple(to_images(edits[0].after)) if edits and (wanted.crop or target.drawn) else ()
    written = bool(edits) or wanted.copy_unedited
    if written and not target.there:
        try:
            _write(job, edits, crops, wanted)
        except FlowgradError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _LASTING:
                raise FlowgradError(f"{error} The same command with --skip-existing then goes on.") from error.__cause__
            return Outcome(target.path, error=error)
    warnings = dict.fromkeys(filter(None, (*(crop.warning for crop in job.crops), *verdicts)))
    return Outcome(
        target.path,
        target.output if written else None,
        warning="; ".join(warnings) or None,
        images=(job.crops[0].image, *crops) if edits and target.drawn else (),
        kept=tuple((edit.share, edit.distance) for edit in edits if edit.distance is not None),
        skipped=target.there,
        unedited=None if edits else job.faces.lack,
        faces=(len(edits), job.faces.too_small) if job.faces.searched else None,
    )


def _write(job: _Job, edits: Sequence[Edit], crops: Sequence[Image.Image], wanted: Wanted) -> None:
    path, output = job.target.path, job.target.output
    if wanted.strengths:
        versions = [_patches(job, edits, k) for k in range(len(wanted.strengths))]
        images = crops if wanted.crop else views(job.photo.pixels, versions)
        labels = [strength_label(strength) for strength in wanted.strengths]
        save_image(strip(images, labels, f"{path.name}: {wanted.title}"), output, wanted.overwrite)
    elif wanted.crop:
        save_image(crops[0], output, wanted.overwrite)
    else:
        write_composite(path, job.photo, _patches(job, edits), output, wanted.overwrite)


def _patches(job: _Job, edits: Sequence[Edit], k: int = 0) -> list[Patch]:
    """What the k-th strength changes in each face."""
    return [Patch(edit.difference(k), crop.place) for edit, crop in zip(edits, job.crops, strict=True)]


def write_composite(path: Path, photo: Photo, patches: Sequence[Patch], output: Path, overwrite: bool = False) -> None:
    """Write the photo of a file with patches added; the same bytes where they change nothing and the kind stays."""
    if path.suffix.lower() == output.suffix.lower() and all(patch.is_empty for patch in patches):
        copy_file(path, output, overwrite)
    else:
        save_photo(composite(photo.pixels, patches), photo, output, overwrite)


@torch.no_grad()
def sample_to_files(
    model: Model, count: int, seed: int, control: Control | None, folder: Path, overwrite: bool = False
) -> Iterator[tuple[Path, Image.Image]]:
    """Make new images, steered by a control if there is one, and write each as `sample-<seed>-<i>.png`.

    Image i of a seed is the same whatever `count` is. Raises UsageError for a file that exists.
    """
    outputs = [folder / f"sample-{seed}-{i:05d}.png" for i in range(count)]
    for output in outputs:
        refuse_existing(output, overwrite)
    names = iter(outputs)
    for batch in sample_images(model, count, seed):
        for image in to_images(batch.images if control is None else steer(model, batch, control)):
            yield save_image(image, next(names), overwrite), image
