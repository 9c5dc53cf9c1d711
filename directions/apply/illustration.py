"""A direction is put into a bank with pictures of what it does to samples of its model."""

import dataclasses

from directions.apply.inversion import Inverted
from directions.apply.steer import steer, to_control
from directions.bank.bank import Bank, Entry
from directions.bank.card import to_card
from directions.figures import preview, thumbnail
from directions.file.direction import Direction
from directions.photo.reading import to_images
from flowgrad.models import Model

PREVIEW_SAMPLES = 4


def add_illustrated(
    model: Model,
    direction: Direction,
    name: str,
    bank: Bank,
    samples: Inverted,
    overwrite: bool = False,
    claimed: bool = False,
) -> Entry:
    """Illustrate a direction with samples and put it into the bank; see `Bank.add`."""
    before, after = to_images(samples.images), to_images(steer(model, samples, to_control(direction, model)))
    info = dataclasses.replace(direction.info, thumbnail=thumbnail(before, after))
    illustrated, card = Direction(direction.u, direction.starts, info), to_card(name, info)
    picture = preview(before, after)
    return bank.add(illustrated, name, preview=picture, card=card, overwrite=overwrite, claimed=claimed)
