"""Photos read all at once, each for its largest face: what trainings, evaluations and single edits start from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from directions.apply.familiarity import is_face, judge_familiarity, usual_grid
from directions.apply.inversion import invert_images, join
from directions.bank.bank import Bank
from directions.photo.crop import Place
from directions.photo.detection import FINEST
from directions.photo.faces import Faces, Prepared, largest_of, read_faces, without_a_face
from directions.photo.reading import Align, to_tensor
from directions.photo.sources import Source
from directions.progress import Reporter
from flowgrad.errors import FlowgradError, all_of
from flowgrad.files import FINGERPRINT
from flowgrad.models import Model


@dataclass(frozen=True)
class Photos:
    """Photos brought to a model's size: tensor (n, 3, H, W) in [-1, 1], where they are, hashes of them, and places.

    places: where each image lies in its photo. unedited: sources that were left out, as no face was found in them.
    """

    images: Tensor
    sources: tuple[Source, ...]
    hashes: tuple[str, ...]
    places: tuple[Place, ...]
    unedited: tuple[Source, ...]


def alignment(model: Model, align: Align) -> Align:
    """How photos are aligned for a model: never for one that was not trained on aligned faces."""
    return align if model.config.aligned_faces else "never"


def read_photos(
    sources: Sequence[Source], model: Model, bank: Bank, align: Align, reporter: Reporter, whole: bool = False
) -> Photos:
    """Read and prepare photos, each for its largest face; those without one are left out, and warned of.

    bank: see `usual_grid`; whole: the places are those in the photos at full size; otherwise large ones may be decoded
    at a reduced scale.
    Raises FlowgradError naming all that cannot be read, and if no photo has a face.
    """
    faces: dict[Source, Prepared] = {}
    hashes: dict[Source, str] = {}
    lacks: dict[Source, str] = {}
    errors, enough = [], None if whole else FINEST
    for source in reporter.track(sources, "reading photos", len(sources)):
        try:
            read = read_faces(source, model.config.size, alignment(model, align), enough=enough)
        except FlowgradError as error:
            errors.append(error)
            continue
        hashes[source] = read.sha256[:FINGERPRINT]
        if read.faces.crops:
            faces[source] = largest_of(read.faces)
        else:
            lacks[source] = read.faces.lack
    if errors:
        raise all_of(errors, f"{len(errors)} of {len(sources)} photos cannot be used")
    lacks |= dict.fromkeys(_unknown(model, bank, faces), Faces().lack)
    faces = {source: face for source, face in faces.items() if source not in lacks}
    if not faces:
        errors = [FlowgradError(f"{source}: {without_a_face(lack)}") for source, lack in lacks.items()]
        raise all_of(errors, f"none of {len(sources)} photos can be used")
    for source, lack in lacks.items():
        reporter.warn(f"{source.name}: {lack}, so it is left out")
    for source, face in faces.items():
        if face.warning:
            reporter.warn(f"{source.name}: {face.warning}")
    return Photos(
        to_tensor([face.image for face in faces.values()]),
        tuple(faces),
        tuple(hashes[source] for source in faces),
        tuple(face.place for face in faces.values()),
        tuple(source for source in sources if source in lacks),
    )


def _unknown(model: Model, bank: Bank, faces: Mapping[Source, Prepared]) -> list[Source]:
    """The photos of the model's own size in which no face was found, and that the model does not know."""
    asked = [source for source, face in faces.items() if face.unconfirmed]
    if not asked:
        return []
    images, grid = to_tensor([faces[source].image for source in asked]), usual_grid(model, bank)
    verdicts = judge_familiarity(model, join(invert_images(model, images, grid=grid)))
    return [source for source, said in zip(asked, verdicts, strict=True) if not is_face(model, faces[source], said)]
