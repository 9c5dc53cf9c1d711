"""Contact sheets of many photos: each holds a number of rows and is written as soon as they are there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from directions.figures import contact_sheet, strength_label
from directions.photo.writing import save_image

SHEET_COLUMNS, SHEET_ROWS = 8, 25  # images, of one sheet
SHEET_SIDE = 256  # pixels that an image has at most on a sheet


class Named(Protocol):
    """A photo, of which a sheet shows the name."""

    @property
    def name(self) -> str: ...


class Shown(Protocol):
    """What a sheet shows of a photo: the photo and its edited versions, none if it was not edited."""

    @property
    def photo(self) -> Named: ...
    @property
    def images(self) -> tuple[Image.Image, ...]: ...


class Sheets:
    """The contact sheets of `count` photos, each shown beside its versions at the strengths (() for a single one).

    Photo i is on sheet i // per_sheet. `paths` are the files of all sheets; `written` those that were drawn.
    """

    def __init__(self, count: int, strengths: Sequence[float], title: str, folder: Path, done: str) -> None:
        labels = [strength_label(strength) for strength in strengths] or ["edited"]
        self._labels, self._title, self._count = labels, title, count
        self._across = max(1, SHEET_COLUMNS // (1 + len(labels)))
        self.per_sheet = SHEET_ROWS * self._across
        numbers = ("", *(f"-{i}" for i in range(2, -(-count // self.per_sheet) + 1)))
        self.paths = tuple(folder / f"contact-sheet-{done}{number}.png" for number in numbers)
        self.written: list[Path] = []
        self._seen = 0
        self._rows: list[tuple[str, tuple[Image.Image, ...]]] = []

    def add(self, outcome: Shown) -> None:
        """Take what became of the next photo; write the sheet if it was the last one on it."""
        if outcome.images:
            self._rows.append((outcome.photo.name, tuple(map(_reduced, outcome.images))))
        self._seen += 1
        if self._seen % self.per_sheet == 0 or self._seen == self._count:
            self._draw(self.paths[(self._seen - 1) // self.per_sheet])

    def _draw(self, path: Path) -> None:
        if self._rows:
            labels = [label for name, _ in self._rows for label in (name, *self._labels)]
            images = [image for _, row in self._rows for image in row]
            sheet = contact_sheet(images, labels, self._across * (1 + len(self._labels)), self._title)
            self.written.append(save_image(sheet, path, overwrite=True))
            self._rows.clear()


def _reduced(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.thumbnail((SHEET_SIDE, SHEET_SIDE), Image.Resampling.LANCZOS)
    return image
