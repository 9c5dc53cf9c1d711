"""What the page of `flowgrad ui` does, without the page: photos kept in memory, edited at once, and trained on.

A photo is decoded from the bytes that were sent, inverted once, and forgotten when newer ones need the room; nothing
of it is written to disk. What is kept are those bytes and a small copy that edits are shown on; at full size there is
one photo at a time. Directions are named by what the bank lists, never by a path.
"""

import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

from PIL import Image

from directions.apply.edit import Edit, check_budget, edit_images, keep_identity
from directions.apply.familiarity import is_face, judge_familiarity, usual_grid
from directions.apply.identity import compares_faces
from directions.apply.illustration import add_illustrated
from directions.apply.inversion import ANCHORED_EULER, Inversion, Inverted, invert_images, join, sample_images
from directions.apply.photos import alignment
from directions.apply.steer import steer, to_control
from directions.bank.bank import Bank, Entry
from directions.bank.mixture import check_strength
from directions.file.metadata import check_name
from directions.page.shelf import Shelf, Subject
from directions.photo.composite import Patch, composite
from directions.photo.crop import Place
from directions.photo.detection import FINEST
from directions.photo.faces import Faces, from_left, largest_of, prepare_faces
from directions.photo.reading import Align, Photo, read_photo, to_images, to_tensor
from directions.photo.writing import to_bytes
from directions.train.calibration import finish, held_out
from directions.train.recipe import load_recipe
from directions.train.task import Task
from directions.train.training import train
from flowgrad.errors import UsageError
from flowgrad.models import Model
from flowgrad.ode import Control, total

UPLOAD_LIMIT = 40 << 20  # bytes of a photo
KEPT = 12  # photos in memory
TRAINING_PHOTOS = 20
SHOWN_PHOTOS = 4  # before and after a training
KEPT_FACES = 1000  # to train on, of the model's size
SHOWN_SIDE = 900  # pixels
CHOSEN = 4  # directions that are mixed at once
STRIP = (-1.0, -0.5, 0.0, 0.5, 1.0)


@dataclass(frozen=True)
class View:
    """A photo edited, as it is shown: the picture, and how many faces were changed.

    kept: with an identity budget, the share of the strength that each face took, and its distance, from the left.
    """

    image: Image.Image
    changed: int = 0
    kept: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Download:
    """A photo edited at its full size, as a file: its name, "jpeg" or "png" or another format's name, and bytes."""

    name: str
    kind: str
    content: bytes


@dataclass(frozen=True, eq=False)
class Progress:
    """A training after an evaluation: losses so far, photos before and after, and at the end the direction's entry."""

    losses: tuple[float, ...]
    before: list[Image.Image]
    after: list[Image.Image]
    entry: Entry | None = None


class Studio:
    """One model, one bank, and the photos that the page is working on.

    options: what a command line must say to find both again, as ("--bank", "mine"); see `command`. precision: at which
    the model was loaded, see `flowgrad.models.load_model`.
    """

    def __init__(self, model: Model, bank: Bank, options: Sequence[str] = (), precision: str = "auto") -> None:
        self.model, self.bank, self.options, self.precision = model, bank, tuple(options), precision
        self.subjects: Shelf[Subject] = Shelf(KEPT)
        self.uploads: Shelf[Image.Image] = Shelf(KEPT_FACES)
        self.decoding = Lock()  # for whatever has a photo at full size in memory
        self._loaded = lru_cache(maxsize=32)(self._load)

    @property
    def keeps_identity(self) -> bool:
        """Whether an identity budget can be kept: faces can be told apart, and the model's images are faces."""
        return compares_faces(self.model)

    # --- browse ---

    def entries(self) -> tuple[Entry, ...]:
        """The directions of the model."""
        return self.bank.list(self.model.name)

    def names(self) -> list[str]:
        """The directions that can be applied."""
        return [entry.name for entry in self.entries() if entry.info]

    def safe_range(self, name: str) -> str:
        """Between which strengths faces stay themselves, as a text; "" where that was not measured."""
        info = self.bank.get(check_name(name), self.model.name).info
        return "safe from {:g} to {:g}".format(*info.calibration.safe) if info and info.calibration else ""

    # --- try ---

    def command(self, name: str, mixture: Mapping[str, float], limit: float | None = None) -> str:
        """The command line that does to a photo what the page did."""
        written = "+".join(f"{direction}:{strength:g}" for direction, strength in mixture.items() if strength)
        budget = ("--keep-identity", f"{limit:g}") if limit is not None else ()
        return shlex.join(["flowgrad", "apply-direction", written, name, *budget, *self.options]) if written else ""

    def receive(self, name: str, content: bytes) -> str:
        """Decode, align and invert a photo that was sent; its token. Raises FlowgradError for what is no photo."""
        return self._receive(name, content, "auto")

    def _receive(self, name: str, content: bytes, align: Align) -> str:
        with self.decoding:
            rgb = _decoded(name, content).rgb
            faces = prepare_faces(rgb, self.model.config.size, alignment(self.model, align))
            size = rgb.size
            rgb.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        faces, inverted, verdicts = self._inverted(faces)
        places = tuple(crop.place.scaled(rgb.width / size[0], rgb.height / size[1]) for crop in faces.crops)
        notes = _notes([crop.warning for crop in faces.crops], verdicts, from_left(places))
        if faces.crops and faces.too_small:
            notes = (*notes, f"{faces.too_small} more {'is' if faces.too_small == 1 else 'are'} too small to be edited")
        if not faces.crops:
            notes = (f"{faces.lack}, so it stays as it is",)
        return self.subjects.add(Subject(_base(name), content, rgb, faces.crops, places, inverted, size, notes))

    def _inverted(self, faces: Faces) -> tuple[Faces, Inverted | None, list[str | None]]:
        """Faces without what the model does not take for one, inverted, with what is unusual about each."""
        if not faces.crops:
            return faces, None, []
        images = to_tensor([crop.image for crop in faces.crops])
        inverted = join(invert_images(self.model, images, grid=usual_grid(self.model, self.bank)))
        verdicts = judge_familiarity(self.model, inverted)
        if all(is_face(self.model, crop, said) for crop, said in zip(faces.crops, verdicts, strict=True)):
            return faces, inverted, verdicts
        return Faces(), None, []

    def sample(self, seed: int) -> str:
        """A new image of the model, as a photo; its token."""
        (image,) = to_images(join(sample_images(self.model, 1, seed)).images)
        return self._receive(f"sample-{seed}.png", to_bytes(image, Photo(image), ".png"), "never")

    def edit(self, token: str, mixture: Mapping[str, float], limit: float | None = None) -> View:
        """A photo with directions at strengths, as it is shown: one forward pass, or a few within an identity budget.

        Raises UsageError for wrong names.
        """
        subject = self.subjects.get(token)
        edits = self._edits(subject, mixture, limit)
        patches = _patches(edits, subject.places)
        measured = [(edits[i].share, edits[i].distance) for i in from_left(subject.places)] if edits else []
        kept = tuple((share, distance) for share, distance in measured if distance is not None)
        return View(composite(subject.small, patches), sum(not patch.is_empty for patch in patches), kept)

    def download(self, token: str, mixture: Mapping[str, float], limit: float | None = None) -> Download:
        """The same at the photo's full size, as a file of its kind; the very file that was sent if nothing changes."""
        subject = self.subjects.get(token)
        patches = _patches(self._edits(subject, mixture, limit), [face.place for face in subject.faces])
        with self.decoding:
            photo = _decoded(subject.name, subject.content)
            kind = photo.kind.lower()
            if all(patch.is_empty for patch in patches):
                return Download(subject.name, kind, subject.content)
            kind = kind if kind == "jpeg" else "png"
            return Download(subject.name, kind, to_bytes(composite(photo.pixels, patches), photo, f".{kind}"))

    def strip(self, token: str, mixture: Mapping[str, float]) -> list[Image.Image]:
        """The largest face at multiples STRIP of a mixture."""
        if (inverted := self.subjects.get(token).inverted) is None:
            raise UsageError("no face was found in the photo, so there is nothing to show. Choose another.")
        (edit,) = edit_images(self.model, self._mixed(inverted, mixture), inverted.select([0]), STRIP)
        return to_images(edit.after)

    def _edits(self, subject: Subject, mixture: Mapping[str, float], limit: float | None) -> list[Edit]:
        """An edit of each face, the last ones again if nothing else is asked for; none where nothing is, or no face.

        Raises UsageError for more than CHOSEN directions, unknown ones, and what is no strength and no budget.
        """
        if len(mixture) > CHOSEN:
            raise UsageError(f"{len(mixture)} directions are too many: at most {CHOSEN} are mixed")
        if limit is not None:
            check_budget(self.model, limit)
        moved = {name: check_strength(strength) for name, strength in mixture.items() if strength}
        wanted = (limit, *((name, strength, self._file(name)) for name, strength in moved.items()))
        if not moved or subject.inverted is None:
            return []
        if (edits := subject.edits.get(wanted)) is not None:
            return edits
        control, inverted = self._mixed(subject.inverted, moved), subject.inverted
        if limit is None:
            edits = edit_images(self.model, control, inverted)
        else:
            edits = keep_identity(self.model, control, inverted, limit)
        subject.edits.clear()
        subject.edits[wanted] = edits
        return edits

    def _mixed(self, inverted: Inverted, mixture: Mapping[str, float]) -> Control:
        """The sum of directions on knots that a trajectory has: one trained since then may have others."""
        control = total(self._loaded(name, self._file(name)) * strength for name, strength in mixture.items())
        there = inverted.trajectory.grid
        return control if set(control.grid.knots) <= set(there.knots) else control.on(there)

    def _file(self, name: str) -> tuple[Path, int]:
        """A direction's file, and when it was written."""
        path = self.bank.get(check_name(name), self.model.name).path
        return path, path.stat().st_mtime_ns

    def _load(self, name: str, _: tuple[Path, int]) -> Control:
        direction = self.bank.get(name, self.model.name).load()
        if (way := Inversion.parse(direction.info.inversion)) != ANCHORED_EULER:
            raise UsageError(
                f"{name} was trained by {way} inversion, and the page inverts photos by {ANCHORED_EULER}: "
                "apply it with `flowgrad apply-direction`"
            )
        return to_control(direction, self.model)

    # --- train ---

    def keep(self, name: str, content: bytes) -> tuple[str, str]:
        """Decode and align a photo to train on; its token, and what its user may want to know.

        Raises FlowgradError for what is no photo, or too large, or has no face.
        """
        with self.decoding:
            rgb = _decoded(name, content, FINEST).rgb
            faces = prepare_faces(rgb, self.model.config.size, alignment(self.model, "auto"))
        if any(crop.unconfirmed for crop in faces.crops):
            faces, _, _ = self._inverted(faces)
        crop = largest_of(faces)
        return self.uploads.add(crop.image), crop.warning or ""

    def train(self, tokens: Sequence[str], text: str, name: str, source: str, iterations: int) -> Iterator[Progress]:
        """Train a direction on photos and put it into the bank; yields every evaluation, at the end with the entry.

        Raises UsageError for a wrong call before anything is computed.
        """
        if not text.strip():
            raise UsageError('write what the faces shall become, for example "a smiling face"')
        if not tokens:
            raise UsageError("drop about ten photos to train on")
        if len(tokens) > TRAINING_PHOTOS:
            raise UsageError(f"{len(tokens)} photos are too many: at most {TRAINING_PHOTOS}. Ten are usually enough.")
        with self.bank.claim(name, self.model.name):
            yield from self._train(tokens, text.strip(), name, source.strip() or None, iterations)

    def _train(
        self, tokens: Sequence[str], text: str, name: str, source: str | None, iterations: int
    ) -> Iterator[Progress]:
        """Train under a name that was claimed; see `train`."""
        recipe = load_recipe("default", iterations=iterations)
        images = to_tensor([self.uploads.get(token) for token in tokens])
        photos = join(invert_images(self.model, images, recipe.way))
        task = Task.create(self.model, photos, text, source=source, recipe=recipe)
        shown = photos.select(range(min(SHOWN_PHOTOS, len(photos))))

        def progress(control: Control, losses: tuple[float, ...], entry: Entry | None = None) -> Progress:
            after = steer(self.model, shown, control)
            return Progress(losses, to_images(shown.images), to_images(after), entry)

        for training in train(task):
            yield progress(training.control, training.losses)
        samples = held_out(task, training.control)
        direction = finish(task, training.control, training.losses, samples)
        illustrations = samples.select(range(SHOWN_PHOTOS))
        entry = add_illustrated(self.model, direction, name, self.bank, illustrations, claimed=True)
        yield progress(to_control(entry.load(), self.model), training.losses, entry)


def _decoded(name: str, content: bytes, enough: int | None = None) -> Photo:
    return read_photo(Path(_base(name)), io.BytesIO(content), enough)


def _base(name: str) -> str:
    """A sent name as one to show: its last part, in letters that no terminal or file system obeys."""
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(c for c in last if c.isprintable() and c not in '<>:"|?*').strip(". ").lstrip("-")
    return kept[-80:] or "photo.png"


def _notes(warnings: Sequence[str | None], verdicts: Sequence[str | None], order: Sequence[int]) -> tuple[str, ...]:
    """What is odd about faces, each said once; of several faces, about which."""
    notes = []
    for number, i in enumerate(order, 1):
        whose = f"face {number} from the left: " if len(order) > 1 else ""
        notes += [f"{whose}{note}" for note in (warnings[i], verdicts[i]) if note]
    return tuple(notes)


def _patches(edits: Sequence[Edit], places: Sequence[Place]) -> list[Patch]:
    return [Patch(edit.difference(), place) for edit, place in zip(edits, places, strict=False)]
