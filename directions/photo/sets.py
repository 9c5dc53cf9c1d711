"""Photos and pictures as sets: those of one side of a split, and in how many of them there is a face."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from directions.photo.detection import find_faces
from directions.photo.reading import to_images
from directions.progress import Reporter
from flowgrad.errors import UsageError
from flowgrad.training.data.images import to_model_range
from flowgrad.training.data.pictures import UnusableImageError, list_images, read_splits, read_square, side_of

TRAINED_ON = 1000  # photos of the training, to say how far photos are from photos


def read_photos(source: Path, table: Path | None, side: str, size: int, reporter: Reporter) -> Tensor:
    """(N, 3, size, size) in [-1, 1], prepared as for training; what cannot be used is left out with a warning.

    All that the table calls test, or without a table all there are; of those it calls train, TRAINED_ON at random.
    """
    splits = read_splits(table) if table else None
    entries = [(name, read) for name, read in list_images(source) if splits is None or side_of(name, splits) == side]
    if side == "train":
        entries = [entries[i] for i in np.random.default_rng(0).permutation(len(entries))[:TRAINED_ON]]
    squares: list[Tensor] = []
    for _, read in reporter.track(entries, "reading photos", len(entries)):
        with suppress(UnusableImageError):
            squares.append(torch.from_numpy(read_square(read, size).copy()).permute(2, 0, 1))
    if not squares:
        raise UsageError(f"there are no photos to measure with in {source}: give some, or a table with {side} rows")
    if len(squares) < len(entries):
        reporter.warn(f"{len(entries) - len(squares)} of {len(entries)} photos in {source} cannot be used: left out")
    return to_model_range(torch.stack(squares))


def share_of_faces(images: Tensor, reporter: Reporter) -> float:
    """The share of images (N, 3, H, W) in [-1, 1] in which dlib finds a face."""
    pictures = reporter.track(to_images(images), "looking for faces", len(images))
    return sum(bool(find_faces(picture)) for picture in pictures) / len(images)
