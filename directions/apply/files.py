"""Directions applied to files: mixtures as they are written, photos a batch at a time, one failure never the end."""

import errno
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from directions.apply.edit import Edit, edit_images
from directions.apply.inversion import ANCHORED_EULER, Inversion, Inverted, sample_images
from directions.apply.steer import steer, to_control
from directions.bank.bank import SUFFIX, Bank
from directions.bank.card import is_safe
from directions.figures import contact_sheet, strength_label, strip
from directions.file.direction import Direction, read_direction
from directions.photo.composite import Patch, composite
from directions.photo.crop import Place
from directions.photo.reading import (
    SAVED_SUFFIXES,
    Align,
    Prepared,
    largest_of,
    photo_hash,
    prepare_faces_file,
    prepare_file,
    save_image,
    to_images,
    to_tensor,
)
from directions.photo.stored import copy_file, read_picture, save_picture
from directions.progress import Reporter
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import refuse_existing
from flowgrad.models import Model
from flowgrad.ode import Control, total

T = TypeVar("T")
SHEET_COLUMNS = 8


@dataclass(frozen=True)
class Part:
    """One direction of a mixture: its name or file as given, and its strength."""

    name: str
    strength: float


@dataclass(frozen=True)
class Outcome:
    """What became of a photo: the file written, or the error that kept it from being edited.

    `images` are the photo at the model's size and the edited versions, in the order of the strengths; empty on error.
    `kept`: with an identity budget, for each face its share of the strength asked for, and its distance.
    """

    photo: Path
    output: Path | None = None
    error: FlowgradError | None = None
    warning: str | None = None
    images: tuple[Image.Image, ...] = ()
    kept: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Photos:
    """Photos brought to a model's size: their files, tensor (n, 3, H, W) in [-1, 1], hashes of the files, and places.

    places: where each image lies in its photo.
    """

    paths: tuple[Path, ...]
    images: Tensor
    hashes: tuple[str, ...]
    places: tuple[Place, ...]


def parse_mixture(written: str, strength: float = 1.0) -> tuple[Part, ...]:
    """Read "smiling", "smiling:0.8" or "smiling:0.8+old:0.3"; `strength` multiplies them all.

    A path to a file is a name too. Raises UsageError for an empty name or a strength that is no finite number.
    """
    if Path(written).is_file():
        return (Part(written, check_strength(strength)),)
    return tuple(_parse_part(part, strength) for part in written.split("+"))


def _parse_part(written: str, strength: float) -> Part:
    name, colon, number = written.strip().rpartition(":")
    if not colon or number.endswith(SUFFIX):
        name, number = written.strip(), "1"
    try:
        own = float(number)
    except ValueError as error:
        raise UsageError(f"{number!r} is no strength. Write NAME:STRENGTH, for example smiling:0.8+old:0.3.") from error
    if not name or not isfinite(own):
        raise UsageError(f"{written!r} names no direction and strength. Write, for example, smiling:0.8+old:0.3.")
    return Part(name, check_strength(own * strength))


def check_strength(strength: float) -> float:
    """Return a strength that is a finite number. Raises UsageError for any other."""
    if not isfinite(strength):
        raise UsageError(f"a strength is a finite number, like 0.8 or -1; got {strength:g}")
    return strength


def load_parts(parts: Iterable[Part], bank: Bank, model: str | None = None) -> list[tuple[Direction, float]]:
    """Read the directions of a mixture from files or the bank (those of `model`), with their strengths.

    Raises UsageError for an unknown name (with the nearest) and for directions of different models.
    """
    loaded = [(_load(part.name, bank, model), part.strength) for part in parts]
    models = {direction.info.model for direction, _ in loaded}
    if len(models) > 1:
        raise UsageError(f"directions of different models cannot be added: {', '.join(sorted(models))}. Use one model.")
    return loaded


def _load(name: str, bank: Bank, model: str | None) -> Direction:
    return read_direction(Path(name).expanduser()) if name.endswith(SUFFIX) else bank.get(name, model).load()


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
        extremes = {strength * min(factors), strength * max(factors)}
        for used in sorted(extremes):
            warn_beyond_safe(direction, used, reporter)
    return total(to_control(direction, model, force) * strength for direction, strength in parts)


def warn_beyond_safe(direction: Direction, strength: float, reporter: Reporter) -> None:
    """Warn where a strength lies outside the range that the calibration found safe."""
    calibration = direction.info.calibration
    if calibration and not is_safe(calibration, strength):
        low, high = calibration.safe
        where = f"beyond the safe range of {direction.info.title!r} ({low:g} to {high:g})"
        reporter.warn(f"strength {strength:g} is {where}: faces may turn into other people, or break")


def alignment(model: Model, align: Align) -> Align:
    """How photos are aligned for a model: never for one that was not trained on aligned faces."""
    return align if model.config.aligned_faces else "never"


def read_photos(paths: Sequence[Path], model: Model, align: Align, reporter: Reporter) -> Photos:
    """Read and prepare photos that are all needed. Raises FlowgradError naming the first that cannot be used."""
    found = []
    for path in reporter.track(paths, "reading photos", len(paths)):
        prepared = prepare_file(path, model.config.size, alignment(model, align))
        if prepared.warning:
            reporter.warn(f"{path.name}: {prepared.warning}")
        found.append(prepared)
    hashes, places = (photo_hash(path) for path in paths), (each.place for each in found)
    return Photos(tuple(paths), to_tensor([each.image for each in found]), tuple(hashes), tuple(places))


def output_paths(photos: Sequence[Path], folder: Path, ending: str = "", lossless: bool = False) -> list[Path]:
    """Where each photo's result goes: its own name, plus `ending`; photos of one name get their folder's before it.

    A suffix that cannot be written becomes .png, as do all with `lossless`, and that of a figure (`ending` given).
    """
    taken: set[Path] = set()
    found = []
    for photo in photos:
        suffix = photo.suffix if photo.suffix.lower() in SAVED_SUFFIXES and not (ending or lossless) else ".png"
        stems = (
            photo.stem,
            f"{photo.absolute().parent.name}-{photo.stem}",
            *(f"{photo.stem}-{i}" for i in range(2, 9999)),
        )
        names = (folder / f"{stem}{ending}{suffix}" for stem in stems)
        path = next(name for name in names if name not in taken)
        taken.add(path)
        found.append(path)
    return found


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
    one alone, counted from the left. budget: the identity budget, see `directions.apply.budget`. inversion: of the
    photos, as the directions were trained; see `common_inversion`.
    """

    strengths: tuple[float, ...] = ()
    crop: bool = False
    face: int | None = None
    align: Align = "auto"
    overwrite: bool = False
    budget: float | None = None
    inversion: Inversion = ANCHORED_EULER

    def __post_init__(self) -> None:
        if self.budget is not None and self.strengths:
            raise UsageError("--keep-identity chooses one strength for each photo; leave out --strengths")

    @property
    def in_place(self) -> bool:
        """Whether edits go back into the photo."""
        return not (self.strengths or self.crop)


@dataclass(frozen=True)
class _Job:
    photo: Path
    output: Path
    faces: tuple[Prepared, ...]


def apply_to_files(
    model: Model,
    control: Control,
    photos: Sequence[Path],
    outputs: Sequence[Path],
    wanted: Wanted,
    beside: Executor | None = None,
) -> Iterator[Outcome]:
    """Edit photos and write each to its output.

    `beside` prepares photos while others are edited; see `directions.photo.reading.process_beside`.
    What fails for one photo is its outcome; running out of memory or disk is raised, as the rest would fail too.
    """
    ways = _ways_to_prepare(photos, model, wanted, beside)
    inputs = resolved(photos)
    triples = zip(photos, outputs, ways, strict=True)
    while chunk := list(islice(triples, model.batch)):
        jobs: list[_Job] = []
        for photo, output, prepare_it in chunk:
            try:
                check_output(output, inputs, wanted.overwrite)
                jobs.append(_Job(photo, output, _chosen(prepare_it(), wanted)))
            except FlowgradError as error:
                yield Outcome(photo, error=error)
        for job, edits in zip(jobs, _edit_each(model, control, jobs, wanted), strict=True):
            yield _save(job, edits, wanted)


def _ways_to_prepare(
    photos: Sequence[Path], model: Model, wanted: Wanted, beside: Executor | None
) -> list[Callable[[], tuple[Prepared, ...]]]:
    """For each photo what returns it prepared, or raises why it is not: work done here, or awaited from `beside`."""
    told = (model.config.size, alignment(model, wanted.align), wanted.face)
    here: list[Callable[[], tuple[Prepared, ...]]] = [partial(prepare_faces_file, photo, *told) for photo in photos]
    return [_begun(beside, way) for way in here] if beside else here


def _begun(beside: Executor, way: Callable[[], T]) -> Callable[[], T]:
    """What awaits work begun in another process, or does it here if that was killed: for its memory, most likely."""
    try:
        begun = beside.submit(way)
    except BrokenExecutor:  # killed before this was begun
        return way

    def await_it() -> T:
        try:
            return begun.result()
        except BrokenExecutor:
            return way()

    return await_it


def _chosen(found: tuple[Prepared, ...], wanted: Wanted) -> tuple[Prepared, ...]:
    """All faces, where they go back into the photo; else the largest, with a warning."""
    return found if wanted.in_place or len(found) == 1 else (largest_of(found),)


Edits = list[Edit] | FlowgradError


def _edit_each(model: Model, control: Control, jobs: Sequence[_Job], wanted: Wanted) -> list[Edits]:
    """The edits of each photo's faces; where the batch fails, photo by photo, so that one cannot spoil the others."""
    images = [face.image for job in jobs for face in job.faces]
    if not images:
        return []
    try:
        edits = iter(edit_images(model, control, to_tensor(images), wanted.strengths, wanted.budget, wanted.inversion))
        return [list(islice(edits, len(job.faces))) for job in jobs]
    except FlowgradError as error:
        return [error] if len(jobs) == 1 else [_edit_each(model, control, [job], wanted)[0] for job in jobs]


def _save(job: _Job, edits: Edits, wanted: Wanted) -> Outcome:
    if isinstance(edits, FlowgradError):
        return Outcome(job.photo, error=FlowgradError(f"{job.photo}: {edits}"))
    versions = to_images(edits[0].after)
    try:
        _write(job, edits, versions, wanted)
    except FlowgradError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOSPC:
            raise
        return Outcome(job.photo, error=error)
    told = [*(face.warning for face in job.faces), *(edit.verdict for edit in edits)]
    warning = "; ".join(dict.fromkeys(text for text in told if text))
    kept = tuple((edit.share, edit.distance) for edit in edits if edit.distance is not None)
    return Outcome(job.photo, job.output, None, warning or None, (job.faces[0].image, *versions), kept)


def _write(job: _Job, edits: Sequence[Edit], versions: Sequence[Image.Image], wanted: Wanted) -> None:
    """Write a strip, a crop, the photo with its edits, or (where nothing was changed) the file itself."""
    if wanted.strengths:
        labels = [strength_label(s) for s in wanted.strengths]
        save_image(strip(versions, labels, job.photo.name), job.output, wanted.overwrite)
    elif wanted.crop:
        save_image(versions[0], job.output, wanted.overwrite)
    else:
        pairs = zip(edits, job.faces, strict=True)
        write_composite(
            job.photo, job.output, [Patch(e.difference(), face.place) for e, face in pairs], wanted.overwrite
        )


def write_composite(photo: Path, output: Path, patches: Sequence[Patch], overwrite: bool = False) -> None:
    """Write a photo with patches added; byte for byte the same file where they change nothing and the kind stays."""
    if photo.suffix.lower() == output.suffix.lower() and all(patch.is_empty for patch in patches):
        copy_file(photo, output, overwrite)
        return
    picture = read_picture(photo)
    save_picture(composite(picture.pixels, patches), picture, output, overwrite)


def save_sheet(
    outcomes: Sequence[Outcome], strengths: Sequence[float], title: str, path: Path, overwrite: bool = False
) -> Path | None:
    """Draw each photo that was edited, and beside it its edits. Returns the path, None if there is no photo."""
    edited = [outcome for outcome in outcomes if outcome.images]
    if not edited:
        return None
    each = len(edited[0].images)
    after = [strength_label(s) for s in strengths] or ["edited"]
    labels = [label for outcome in edited for label in (outcome.photo.name, *after)]
    images = [image for outcome in edited for image in outcome.images]
    return save_image(contact_sheet(images, labels, each * max(1, SHEET_COLUMNS // each), title), path, overwrite)


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
        for image in to_images(_steered(model, batch, control)):
            yield save_image(image, next(names), overwrite), image


def _steered(model: Model, batch: Inverted, control: Control | None) -> Tensor:
    return batch.images if control is None else steer(model, batch, control)
