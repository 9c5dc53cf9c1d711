"""A bank and photos for tests of the page."""

import io

import numpy as np
from PIL import Image

from directions.bank.bank import Bank
from directions.file.direction import Direction, DirectionInfo
from directions.train.recipe import Recipe, load_recipe
from flowgrad.models import Model

EVIL = "<img src=x onerror=alert(1)>${alert(2)} {{value}}"


def fill(bank: Bank, model: Model) -> None:
    """Put three directions into a bank; the third one's title is a script."""
    for i, (name, title, tag) in enumerate(
        (("smiling", "Smile", "mouth"), ("old", "Old", "age"), ("evil", EVIL, "odd"))
    ):
        info = DirectionInfo(title, model.name, model.fingerprint, 6, text=f"a {name} face", tags=(tag,))
        u = 0.6 * np.random.default_rng(i).normal(size=(2, 3, 16, 16))
        bank.add(Direction.create(u, np.array([0, 2 + i]), info), name)


def text_alone(name: str, **changes: object) -> Recipe:
    """A recipe in which a random guide finds something: nothing is weighed against the text."""
    return load_recipe(name, eta=1.0, intervals=3, augmentations=1, **changes)


def photo(width: int = 60, height: int = 40, kind: str = "PNG") -> bytes:
    """A smooth random photo as a file."""
    buffer = io.BytesIO()
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8))
    small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()
