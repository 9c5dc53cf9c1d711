"""Directions applied to files: mixtures as they are written, photos a batch at a time, one failure never the end."""

import errno
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from directions.apply.edit import Edit, check_budget, edit_images, keep_identity
from directions.apply.familiarity import judge_familiarity
from directions.apply.inversion import ANCHORED_EULER, Inversion, invert_for, join, sample_images
from directions.apply.steer import steer, to_control
from directions.bank.card import is_safe
from directions.figures import contact_sheet, strength_label, strip
from directions.file.direction import Direction
from directions.photo.beside import ahead
from directions.photo.composite import Patch, composite
from directions.photo.crop import Place
from directions.photo.faces import Prepared, largest_of, read_faces
from directions.photo.reading import Align, Photo, to_images, to_tensor
from directions.photo.writing import SAVED_SUFFIXES, copy_file, save_image, save_photo
from directions.progress import Reporter
from flowgrad.errors import FlowgradError, UsageError, all_of
from flowgrad.files import file_fingerprint, refuse_existing
from flowgrad.models import Model
from flowgrad.ode import Control, total

SHEET_COLUMNS = 8
_PIXELS = 60_000_000  # of photos that are in memory at once, unless a single one has more


@dataclass(frozen=True)
class Photos:
    """Photos brought to a model's size: tensor (n, 3, H, W) in [-1, 1], hashes of the files, and places.

    places: where each image lies in its photo.
    """

    images: Tensor
    hashes: tuple[str, ...]
    places: tuple[Place, ...]


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


def read_photos(paths: Sequence[Path], model: Model, align: Align, reporter: Reporter) -> Photos:
    """Read and prepare photos that are all needed. Raises FlowgradError naming all that cannot be used."""
    faces, errors = [], []
    for path in reporter.track(paths, "reading photos", len(paths)):
        try:
            face = largest_of(read_faces(path, model.config.size, alignment(model, align))[1])
        except FlowgradError as error:
            errors.append(error)
            continue
        if face.warning:
            reporter.warn(f"{path.name}: {face.warning}")
        faces.append(face)
    if errors:
        raise all_of(errors, f"{len(errors)} of {len(paths)} photos cannot be used")
    hashes = tuple(file_fingerprint(path) for path in paths)
    return Photos(to_tensor([face.image for face in faces]), hashes, tuple(face.place for face in faces))


def output_paths(photos: Sequence[Path], folder: Path, ending: str = "", lossless: bool = False) -> list[Path]:
    """Where each photo's result goes: its own name, plus `ending`; photos of one name get their folder's before it.

    A suffix that cannot be written becomes .png, as do all with `lossless`, and that of a figure (`ending` given).
    """
    taken: dict[Path, None] = {}
    for photo in photos:
        suffix = photo.suffix if photo.suffix.lower() in SAVED_SUFFIXES and not (ending or lossless) else ".png"
        stems = [photo.stem, f"{photo.absolute().parent.name}-{photo.stem}"]
        numbered = (f"{photo.stem}-{i}" for i in range(2, len(photos) + 2))
        paths = (folder / f"{stem}{ending}{suffix}" for stem in chain(stems, numbered))
        taken[next(path for path in paths if path not in taken)] = None
    return list(taken)


def resolved(photos: Iterable[Path]) -> set[Path]:
    """Photos as `check_output` wants them."""
    return {photo.resolve() for photo in photos}


def check_output(output: Path, inputs: Collection[Path], overwrite: bool) -> None:
    """Raise UsageError for a file that may not be replaced: one of the photos (resolved) never may."""
    refuse_existing(output, overwrite)
    if output.resolve() in inputs:
        raise UsageError(f"{output} would replace one of the photos themselves. Choose another folder with --output.")


@dataclass(frozen=True)
class Wanted:
    """What shall become of photos.

    A strip of several `strengths`, or one edited photo: of its own size, or (`crop`) the model's crop. `face`: that
    one alone, counted from the left. budget: the identity budget, see `keep_identity`. inversion: of the photos, as the
    directions were trained; see `common_inversion`. sheet: whether their images are kept for a contact sheet.
    """

    strengths: tuple[float, ...] = ()
    crop: bool = False
    face: int | None = None
    align: Align = "auto"
    overwrite: bool = False
    budget: float | None = None
    inversion: Inversion = ANCHORED_EULER
    sheet: bool = False

    def __post_init__(self) -> None:
        if self.budget is not None and self.strengths:
            raise UsageError("--keep-identity chooses one strength for each photo; leave out --strengths")

    @property
    def in_place(self) -> bool:
        """Whether edits go back into the photo."""
        return not (self.strengths or self.crop)


@dataclass(frozen=True)
class Outcome:
    """What became of a photo: the file written, or the error that kept it from being edited.

    `images`, for a contact sheet, are the photo at the model's size and the edited versions, in the order of the
    strengths. `kept`: with an identity budget, for each face its share of the strength asked for, and its distance.
    """

    photo: Path
    output: Path | None = None
    error: FlowgradError | None = None
    warning: str | None = None
    images: tuple[Image.Image, ...] = ()
    kept: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, eq=False)
class _Job:
    """A photo that was read: its file, the output's, and the faces that are edited."""

    path: Path
    output: Path
    photo: Photo
    faces: tuple[Prepared, ...]


Edited = tuple[list[Edit], list[str | None]]  # of one photo's faces, with what is unusual about each


def apply_to_files(
    model: Model,
    control: Control,
    photos: Sequence[Path],
    outputs: Sequence[Path],
    wanted: Wanted,
    beside: Executor | None = None,
) -> Iterator[Outcome]:
    """Edit photos and write each to its output; a few photos are in memory at once.

    `beside` prepares photos while others are edited; see `process_beside`. What fails for one photo is its outcome;
    running out of memory or disk is raised, as the rest would fail too, and so is a budget that cannot be kept.
    """
    if wanted.budget is not None:
        check_budget(model, wanted.budget)
    inputs, jobs = resolved(photos), []
    read = partial(read_faces, size=model.config.size, align=alignment(model, wanted.align), face=wanted.face)
    for path, output, awaited in zip(photos, outputs, ahead(beside, read, photos), strict=True):
        try:
            check_output(output, inputs, wanted.overwrite)
            photo, faces = awaited()
        except FlowgradError as error:
            yield Outcome(path, error=error)
            continue
        jobs.append(_Job(path, output, photo, faces if wanted.in_place else (largest_of(faces),)))
        if _is_full(jobs, model.batch):
            yield from _finish(model, control, jobs, wanted)
            jobs = []
    if jobs:
        yield from _finish(model, control, jobs, wanted)


def _is_full(jobs: Sequence[_Job], batch: int) -> bool:
    pixels = sum(job.photo.pixels.width * job.photo.pixels.height for job in jobs)
    return sum(len(job.faces) for job in jobs) >= batch or pixels >= _PIXELS


def _finish(model: Model, control: Control, jobs: Sequence[_Job], wanted: Wanted) -> Iterator[Outcome]:
    """Edit the faces of photos and write them; where the batch fails, photo by photo, so that one spoils no other."""
    try:
        edited = _edit(model, control, jobs, wanted)
    except FlowgradError as error:
        if len(jobs) == 1:
            yield Outcome(jobs[0].path, error=FlowgradError(f"{jobs[0].path}: {error}"))
        else:
            for job in jobs:
                yield from _finish(model, control, [job], wanted)
        return
    for job, (edits, verdicts) in zip(jobs, edited, strict=True):
        yield _save(job, edits, verdicts, wanted)


def _edit(model: Model, control: Control, jobs: Sequence[_Job], wanted: Wanted) -> list[Edited]:
    images = to_tensor([face.image for job in jobs for face in job.faces])
    inverted = join(invert_for(model, images, control, wanted.inversion))
    verdicts = iter(judge_familiarity(model, inverted))
    if wanted.budget is not None:
        edits = iter(keep_identity(model, control, inverted, wanted.budget))
    else:
        edits = iter(edit_images(model, control, inverted, wanted.strengths or (1.0,)))
    return [(list(islice(edits, len(job.faces))), list(islice(verdicts, len(job.faces)))) for job in jobs]


def _save(job: _Job, edits: Sequence[Edit], verdicts: Sequence[str | None], wanted: Wanted) -> Outcome:
    """Write a strip, a crop, or the photo with its edits."""
    images = () if wanted.in_place and not wanted.sheet else tuple(to_images(edits[0].after))
    try:
        if wanted.strengths:
            labels = [strength_label(strength) for strength in wanted.strengths]
            save_image(strip(images, labels, job.path.name), job.output, wanted.overwrite)
        elif wanted.crop:
            save_image(images[0], job.output, wanted.overwrite)
        else:
            patches = [Patch(edit.difference(), face.place) for edit, face in zip(edits, job.faces, strict=True)]
            write_composite(job.path, job.photo, patches, job.output, wanted.overwrite)
    except FlowgradError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOSPC:
            raise
        return Outcome(job.path, error=error)
    warnings = dict.fromkeys(filter(None, (*(face.warning for face in job.faces), *verdicts)))
    kept = tuple((edit.share, edit.distance) for edit in edits if edit.distance is not None)
    shown = (job.faces[0].image, *images) if wanted.sheet else ()
    return Outcome(job.path, job.output, None, "; ".join(warnings) or None, shown, kept)


def write_composite(path: Path, photo: Photo, patches: Sequence[Patch], output: Path, overwrite: bool = False) -> None:
    """Write the photo of a file with patches added; the same bytes where they change nothing and the kind stays."""
    if path.suffix.lower() == output.suffix.lower() and all(patch.is_empty for patch in patches):
        copy_file(path, output, overwrite)
    else:
        save_photo(composite(photo.pixels, patches), photo, output, overwrite)


def save_sheet(
    outcomes: Sequence[Outcome], strengths: Sequence[float], title: str, path: Path, overwrite: bool = False
) -> Path | None:
    """Draw each photo that was edited, and beside it its edits. Returns the path, None if there is no photo."""
    edited = [outcome for outcome in outcomes if outcome.images]
    if not edited:
        return None
    width = len(edited[0].images)
    after = [strength_label(s) for s in strengths] or ["edited"]
    labels = [label for outcome in edited for label in (outcome.photo.name, *after)]
    images = [image for outcome in edited for image in outcome.images]
    return save_image(contact_sheet(images, labels, width * max(1, SHEET_COLUMNS // width), title), path, overwrite)


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
