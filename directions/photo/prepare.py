"""Photos at a model's size: their faces cut out as the model's own photos are, or the whole photo resized."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from directions.photo import faces
from directions.photo.crop import Place
from directions.photo.reading import Align, Photo, read_photo
from flowgrad.errors import FlowgradError, UsageError

_MISSING_EXTRA = "not aligned, its centre was taken: finding faces needs pip install 'flowgrad[faces]'"


@dataclass(frozen=True)
class Prepared:
    """A face, or a photo, at the model's size: `image` (size x size, RGB), and where it lies in the photo.

    `warning` says what the user may want to know, or is None.
    """

    image: Image.Image
    place: Place
    warning: str | None = None


def read_faces(
    path: Path, size: int, align: Align = "auto", face: int | None = None
) -> tuple[Photo, tuple[Prepared, ...]]:
    """Read a photo and prepare its faces. Raises FlowgradError, which names the file."""
    photo = read_photo(path)
    try:
        return photo, prepare_faces(photo.rgb, size, align, face)
    except FlowgradError as error:
        raise type(error)(f"{path}: {error}") from error


def prepare(photo: Image.Image, size: int, align: Align = "auto") -> Prepared:
    """Bring an RGB photo to `size` x `size` as the model's own photos are: its largest face, if it has several.

    "always" cuts it out as dlib's aligned chips are, and raises FlowgradError if there is none.
    "never" resizes a square photo and crops any other to its central square. "auto" aligns unless the photo is
    aligned already, and falls back to "never" with a warning if there is no face or the extra `faces` is missing.
    """
    return largest_of(prepare_faces(photo, size, align))


def largest_of(found: Sequence[Prepared]) -> Prepared:
    """The largest of a photo's faces, which says so if there are others."""
    if len(found) == 1:
        return found[0]
    warnings = filter(None, (f"{len(found)} faces found, the largest was taken", found[0].warning))
    return replace(found[0], warning="; ".join(warnings))


def prepare_faces(
    photo: Image.Image, size: int, align: Align = "auto", face: int | None = None
) -> tuple[Prepared, ...]:
    """Every face of an RGB photo as `prepare` does it, the largest first; or `face` alone, counted from the left.

    A photo without one, or that is not looked at for faces, is one image. Raises UsageError for a face that is not
    there, FlowgradError as `prepare`.
    """
    if align == "never" or (align == "auto" and not faces.available()):
        if face is not None:
            needs = "a model of faces, --align other than never, and pip install 'flowgrad[faces]'"
            raise UsageError(f"--face {face} needs {needs}. Otherwise leave it out.")
        missing = align == "auto" and photo.width != photo.height
        return (_fit(photo, size, _MISSING_EXTRA if missing else None),)
    boxes = faces.find_faces(photo)
    if face is not None:
        if not 1 <= face <= len(boxes):
            raise UsageError(f"--face {face} is not there (faces found: {len(boxes)}). Count them from the left, from 1 on.")
        boxes = [sorted(boxes, key=lambda box: box[0] + box[2])[face - 1]]
    if not boxes and align == "always":
        raise FlowgradError("no face found. Use a photo with a larger, frontal face, or --align never.")
    if not boxes:
        return (_fit(photo, size, "no face found, so it was not aligned"),)
    if align == "auto" and faces.is_aligned(photo, boxes[0]):
        return (_fit(photo, size, faces.oddity(faces.look(photo, boxes[0]), photo.width, size)),)
    return tuple(_aligned(faces.look(photo, box), size) for box in boxes)


def _aligned(face: faces.Face, size: int) -> Prepared:
    chip, place = faces.cut_out(face, max(faces.CHIP_SIZE, size))
    return Prepared(_resize(chip, size), place, faces.oddity(face, place.side, size))


def _fit(photo: Image.Image, size: int, warning: str | None) -> Prepared:
    """The central square of a photo, which of a square one is all of it."""
    place = Place.centre(*photo.size)
    return Prepared(_resize(photo.crop(place.box(*photo.size)), size), place, warning)


def _resize(image: Image.Image, size: int) -> Image.Image:
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)
