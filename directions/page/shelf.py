"""What the page keeps in memory: the last photos that were sent, each under a token that nobody guesses."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Generic, TypeVar

from PIL import Image

from directions.apply.edit import Edit
from directions.apply.inversion import Inverted
from directions.bank.pictures import image_url
from directions.photo.crop import Place
from directions.photo.faces import Prepared
from flowgrad.errors import UsageError

T = TypeVar("T")


class Shelf(Generic[T]):
    """The last `room` things of a kind; lost: what is said of one that is gone."""

    def __init__(self, room: int, lost: str = "the photo is no longer in memory. Drop it again.") -> None:
        self.room, self.lost, self.lock = room, lost, Lock()
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
                raise UsageError(self.lost)
            self.things.move_to_end(token)
            return self.things[token]


@dataclass(frozen=True, eq=False)
class Subject:
    """A photo that was inverted: its file as it was sent, a small copy in RGB, its faces, and their trajectories.

    faces: none where none was found, and then `inverted` is None, and nothing is edited. places: where the faces lie in
    the small copy; size: of the photo; notes: what its user may want to know of it.
    edits: the last ones of its faces, by what was asked for.
    """

    name: str
    content: bytes
    small: Image.Image
    faces: tuple[Prepared, ...]
    places: tuple[Place, ...]
    inverted: Inverted | None
    size: tuple[int, int]
    notes: tuple[str, ...]
    edits: dict[object, list[Edit]] = field(default_factory=dict)

    @cached_property
    def url(self) -> str:
        """The small copy as a data URL."""
        return image_url(self.small)

    @property
    def has_faces(self) -> bool:
        """Whether faces were cut out of it, not the photo taken as one image."""
        return any(place.edge == "face" for place in self.places)
