"""New images of a model written to files."""

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from directions.apply.inversion import sample_images
from directions.apply.steer import steer
from directions.photo.reading import to_images
from directions.photo.writing import save_image
from flowgrad.files import refuse_existing
from flowgrad.models import Model
from flowgrad.ode import Control


@torch.no_grad()
def sample_to_files(
    model: Model, count: int, seed: int, control: Control | None, folder: Path, overwrite: bool = False
) -> Iterator[tuple[Path, Image.Image]]:
    """Make new images, steered by a control if there is one, and write each as `sample-<seed>-<i>.png`.

    Image i of a seed is the same whatever `count` is. Raises UsageError for a file that exists.
    """
    for i in range(count):
        refuse_existing(_output(folder, seed, i), overwrite)
    names = (_output(folder, seed, i) for i in range(count))
    for batch in sample_images(model, count, seed):
        for image in to_images(batch.images if control is None else steer(model, batch, control)):
            yield save_image(image, next(names), overwrite), image


def _output(folder: Path, seed: int, i: int) -> Path:
    return folder / f"sample-{seed}-{i:05d}.png"
