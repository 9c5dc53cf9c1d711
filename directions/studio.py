"""What the page of `flowgrad ui` does, without the page: photos kept in memory, edited at once, and trained on.

A photo is decoded from the bytes that were sent, inverted once, and forgotten when newer ones need the room; nothing
of it is written to disk. Directions are named by what the bank lists, never by a path.
"""

import io
import secrets
import shlex
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from PIL import Image

from directions.apply import steer, to_control
from directions.bank import Bank, Entry
from directions.batch import alignment
from directions.composite import Patch, composite
from directions.direction import Direction, check_name, refuse_existing
from directions.editing import Edit, edit_inverted
from directions.gate import usual_grid
from directions.latents import Inverted, invert_images, join, sample_images
from directions.photos import Prepared, prepare, prepare_faces, to_images, to_rgb, to_tensor
from directions.picture import Picture, read_picture
from directions.place import Place
from directions.recipe import load_recipe
from directions.run import Labels, add_illustrated
from directions.train import Task, finish, held_out
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.models import Model
from flowgrad.ode import Control, total

UPLOAD_LIMIT = 40 << 20  # bytes of a photo
KEPT = 12  # photos in memory
TRAINING_PHOTOS = 20
CHOSEN = 4  # directions that are mixed at once
STRIP = (-1.0, -0.5, 0.0, 0.5, 1.0)

T = TypeVar("T")


class Shelf(Generic[T]):
    """The last few things of a kind, in memory, each under a token that nobody guesses."""

    def __init__(self, room: int = KEPT) -> None:
        self.room, self.lock = room, Lock()
        self.things: OrderedDict[str, T] = OrderedDict()

    def add(self, thing: T) -> str:
        """Keep a thing; its token. The oldest makes room for it."""
        token = secrets.token_urlsafe(18)
        with self.lock:
            self.things[token] = thing
            while len(self.things) > self.room:
                self.things.popitem(last=False)
        return token

    def get(self, token: str) -> T:
        """The thing of a token. Raises UsageError if it is gone."""
        with self.lock:
            if token not in self.things:
                raise UsageError("the photo is no longer in memory. Drop it again.")
            self.things.move_to_end(token)
            return self.things[token]


@dataclass(frozen=True, eq=False)
class Subject:
    """A photo that was inverted: as it was sent, its faces, and their trajectories."""

    name: str
    picture: Picture
    faces: tuple[Prepared, ...]
    inverted: Inverted

    @property
    def warning(self) -> str:
        """What its user may want to know of it."""
        return "; ".join(dict.fromkeys(face.warning for face in self.faces if face.warning))


@dataclass(frozen=True, eq=False)
class Result:
    """A photo edited: of its own size and mode; and what is unusual about it to the model."""

    pixels: Image.Image
    verdict: str


@dataclass(frozen=True, eq=False)
class Progress:
    """A training after an evaluation: losses so far, photos before and after, and at the end the direction's entry."""

    losses: tuple[float, ...]
    before: tuple[Image.Image, ...]
    after: tuple[Image.Image, ...]
    entry: Entry | None = None


class Studio:
    """One model, one bank, and the photos that the page is working on."""

    def __init__(self, model: Model, bank: Bank) -> None:
        self.model, self.bank = model, bank
        self.subjects: Shelf[Subject] = Shelf()
        self.uploads: Shelf[tuple[str, Image.Image]] = Shelf(TRAINING_PHOTOS)
        self.results: Shelf[tuple[str, Picture, Image.Image]] = Shelf()

    # --- browse ---

    def entries(self, words: str = "", tag: str = "") -> tuple[Entry, ...]:
        """The directions of the model in which all words occur, and the tag."""
        found = self.bank.search(words) if words.strip() else self.bank.list()
        own = (entry for entry in found if entry.model == self.model.name)
        return tuple(entry for entry in own if not tag or (entry.info and tag in entry.info.tags))

    def tags(self) -> list[str]:
        """All tags, sorted."""
        return sorted({tag for entry in self.entries() if entry.info for tag in entry.info.tags})

    def names(self) -> list[str]:
        """The directions that can be applied."""
        return [entry.name for entry in self.entries() if entry.info]

    # --- try ---

    def receive(self, name: str, content: bytes) -> str:
        """Decode, align and invert a photo that was sent; its token.

        Raises FlowgradError for what is no photo, or too large.
        """
        picture = _decoded(name, content)
        faces = prepare_faces(picture.rgb, self.model.config.size, alignment(self.model, "auto"))
        images = to_tensor([face.image for face in faces])
        inverted = join(invert_images(self.model, images, grid=usual_grid(self.model, self.bank)))
        return self.subjects.add(Subject(_base(name), picture, faces, inverted))

    def sample(self, seed: int) -> str:
        """A new image of the model, as a photo; its token."""
        inverted = join(sample_images(self.model, 1, seed))
        (image,) = to_images(inverted.images)
        face = Prepared(image, "resized", None, None, Place.whole(*image.size))
        return self.subjects.add(Subject(f"sample-{seed:05d}.png", Picture(image, "PNG"), (face,), inverted))

    def edit(self, token: str, mixture: Mapping[str, float]) -> Result:
        """A photo with directions at strengths: one forward pass. Raises UsageError for unknown names."""
        subject = self.subjects.get(token)
        moved = {name: strength for name, strength in mixture.items() if strength}
        if not moved:
            return Result(subject.picture.pixels, "")
        control = total(self._control(name) * strength for name, strength in moved.items())
        edits = edit_inverted(self.model, self._ready(subject, control), subject.inverted)
        patches = [Patch(e.difference(), f.place) for e, f in zip(edits, subject.faces, strict=True)]
        return Result(composite(subject.picture.pixels, patches), _verdicts(edits))

    def strip(self, token: str, mixture: Mapping[str, float]) -> list[Image.Image]:
        """The largest face at multiples STRIP of a mixture."""
        subject = self.subjects.get(token)
        control = total(self._control(name) * strength for name, strength in mixture.items())
        (edit,) = edit_inverted(self.model, self._ready(subject, control), subject.inverted.select([0]), STRIP)
        return to_images(edit.after)

    def _control(self, name: str) -> Control:
        return to_control(self.bank.get(check_name(name), self.model.name).load(), self.model)

    def _ready(self, subject: Subject, control: Control) -> Control:
        """A control on knots that the photo's trajectory has: one trained since then may have others."""
        there = subject.inverted.trajectory.grid
        missing = set(control.grid.knots) - set(there.knots)
        return control.on(there) if missing else control

    # --- train ---

    def keep(self, name: str, content: bytes) -> str:
        """Decode a photo to train on; its token. Raises FlowgradError for what is no photo, or too large."""
        picture = _decoded(name, content)
        return self.uploads.add((_base(name), picture.rgb))

    def train(
        self, tokens: Sequence[str], text: str, name: str, source: str = "", iterations: int | None = None
    ) -> Iterator[Progress]:
        """Train a direction on photos and put it into the bank; yields every evaluation, at the end with the entry.

        Raises UsageError for a wrong call before anything is computed.
        """
        if not text.strip():
            raise UsageError('write what the faces shall become, for example "a smiling face"')
        if not tokens:
            raise UsageError("drop about ten photos to train on")
        refuse_existing(self.bank.path_for(name, self.model.name), overwrite=False)
        task = self._task([self.uploads.get(token)[1] for token in tokens], text, source, iterations)
        shown = task.photos.select(range(min(4, len(task.photos))))
        before, losses, best = tuple(to_images(shown.images)), [], None
        for step in task.steps():
            losses.append(step.loss)
            best = step.state.best
            after = tuple(to_images(steer(self.model, shown, best)))
            yield Progress(tuple(losses), before, after)
        if best is None:
            raise FlowgradError("the training made no step. Give at least one iteration.")
        yield self._finished(task, best, losses, name, shown)

    def _task(self, photos: Sequence[Image.Image], text: str, source: str, iterations: int | None) -> Task:
        changes = {} if iterations is None else {"iterations": iterations}
        size, align = self.model.config.size, alignment(self.model, "auto")
        images = to_tensor([prepare(photo, size, align).image for photo in photos])
        recipe = load_recipe("default", **changes)
        inverted = join(invert_images(self.model, images, recipe.inversion, recipe.anchored))
        return Task.create(self.model, inverted, text.strip(), source=source.strip() or None, recipe=recipe)

    def _finished(self, task: Task, best: Control, losses: Sequence[float], name: str, shown: Inverted) -> Progress:
        samples = held_out(task)
        direction: Direction = finish(task, best, losses, samples)
        entry, direction = add_illustrated(self.model, direction, Labels(name), self.bank, samples.select(range(4)))
        after = tuple(to_images(steer(self.model, shown, to_control(direction, self.model))))
        return Progress(tuple(losses), tuple(to_images(shown.images)), after, entry)


def command(name: str, mixture: Mapping[str, float]) -> str:
    """The command line that does to a photo what the page did."""
    told = "+".join(f"{direction}:{strength:g}" for direction, strength in mixture.items() if strength)
    return shlex.join(["flowgrad", "apply-direction", told, name]) if told else ""


def _decoded(name: str, content: bytes) -> Picture:
    if len(content) > UPLOAD_LIMIT:
        raise UsageError(f"{_base(name)} is too large: at most {UPLOAD_LIMIT >> 20} MB are taken. Scale it down first.")
    return read_picture(Path(_base(name)), io.BytesIO(content))


def _base(name: str) -> str:
    """A sent name as one to show: its last part, in letters that no terminal or file system obeys."""
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(c for c in last if c.isprintable() and c not in '<>:"|?*').strip(". ")
    return kept[-80:] or "photo.png"


def _verdicts(edits: Sequence[Edit]) -> str:
    return "; ".join(dict.fromkeys(edit.verdict for edit in edits if edit.verdict))


def shown(pixels: Image.Image, side: int = 900) -> Image.Image:
    """An image as RGB, no larger than a page shows it."""
    picture = to_rgb(pixels).copy()
    picture.thumbnail((side, side))
    return picture
