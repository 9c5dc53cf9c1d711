"""What shall become of photos, and what became of each."""

from dataclasses import dataclass

from PIL import Image

from directions.apply.inversion import ANCHORED_EULER, Inversion
from directions.photo.detection import FINEST
from directions.photo.reading import Align
from directions.photo.sources import Source
from directions.photo.view import VIEW_SIDE
from flowgrad.addresses import Place
from flowgrad.errors import FlowgradError

_SHOWN = 4 * VIEW_SIDE  # pixels along a photo's longer side that are enough for a strip around its faces


@dataclass(frozen=True)
class Wanted:
    """What shall become of photos.

    A strip of several `strengths`, or one edited photo: at the photo's own resolution, or (`crop`) the model's crop.
    `face`: that one alone, counted from the left. budget: the identity budget, see `keep_identity`. inversion: of the
    photos, as the directions were trained; see `common_inversion`. skip: photos whose output exists are left as they
    are. title: of the strips, after the photo's name. copy_unedited: photos without a face are copied to their outputs.
    recorded: a manifest is kept, for which identity is measured, and an output that is there already, with the very
    bytes that would be written, is taken for one of a run that ended before it was recorded.
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
    recorded: bool = False

    @property
    def enough(self) -> int | None:
        """Pixels of a photo's longer side that will do: None for all it has."""
        return FINEST if self.crop else _SHOWN if self.strengths else None


@dataclass(frozen=True)
class EditedFace:
    """What became of a face: its share of the strength asked for, its identity distance where that was measured, and
    what is unusual about it, if anything is."""

    share: float
    distance: float | None
    verdict: str | None


@dataclass(frozen=True)
class Outcome:
    """What became of a photo: the file written, the error that kept it from being edited, or why there was nothing to.

    unedited: the latter, of a photo that was left as it is, and was copied to `output` if that was asked for.
    faces: how many were edited, and how many are too small; None where faces were not looked for.
    `images`, for a contact sheet, are the photo at the model's size and the edited versions, in the order of the
    strengths. `edited`: face by face, the largest first. skipped: it was settled before, and was left as it is.
    sha256: of the photo's file, "" if that was not read.
    """

    photo: Source
    output: Place | None = None
    error: FlowgradError | None = None
    warning: str | None = None
    images: tuple[Image.Image, ...] = ()
    edited: tuple[EditedFace, ...] = ()
    skipped: bool = False
    unedited: str | None = None
    faces: tuple[int, int] | None = None
    sha256: str = ""
