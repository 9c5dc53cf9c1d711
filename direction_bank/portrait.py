"""Draws the README's first picture from a public-domain portrait (NASA; `skimage.data.astronaut`).

python direction_bank/portrait.py [FILE]: needs flowgrad[faces] and scikit-image; half a minute on a CPU.
"""

import sys
from pathlib import Path

from PIL import Image

from directions.apply.edit import edit_images
from directions.apply.inversion import invert_for, join
from directions.apply.steer import to_control
from directions.bank.bank import Bank
from directions.figures import contact_sheet, strength_label
from directions.photo.composite import Patch, composite
from directions.photo.faces import prepare
from directions.photo.reading import to_tensor
from directions.photo.writing import save_image
from flowgrad.models import Model, load_model

SHOWN = (("smiling", 1.0), ("smiling", -0.5), ("old", 1.0), ("old", -1.0))
HEAD = (82, 0, 382, 300)  # left, top, right, bottom in the portrait: shown at its own resolution


def edited(model: Model, portrait: Image.Image, name: str, strength: float) -> Image.Image:
    """The portrait with a direction of the bank at a strength, of its own size."""
    face = prepare(portrait, model.config.size)
    control = to_control(Bank.default().get(name, model.name).load(), model) * strength
    inverted = join(invert_for(model, to_tensor([face.image]), control))
    (edit,) = edit_images(model, control, inverted)
    return composite(portrait, [Patch(edit.difference(), face.place)])


def main(path: Path) -> None:
    """Write the picture."""
    from skimage.data import astronaut

    model, portrait = load_model(), Image.fromarray(astronaut())
    pictures = [portrait, *(edited(model, portrait, name, strength) for name, strength in SHOWN)]
    labels = ["photo", *(f"{name} {strength_label(strength)}" for name, strength in SHOWN)]
    save_image(contact_sheet([picture.crop(HEAD) for picture in pictures], labels, 5), path, overwrite=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("portrait.jpg"))
