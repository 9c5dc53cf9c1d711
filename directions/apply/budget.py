"""An identity budget: for each face the largest strength at which it is still itself to dlib."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from directions.apply.identity import has_faces, identity_descriptors, identity_distance
from directions.apply.inversion import Inverted
from directions.apply.steer import steer
from directions.photo.reading import to_images
from flowgrad.errors import UsageError
from flowgrad.models import Model
from flowgrad.ode import Control

HALVINGS = 5  # of the interval that holds the largest strength: it is found to 1/32 of what was asked for


@dataclass(frozen=True, eq=False)
class Kept:
    """Faces edited within a budget: images (B, 3, H, W), and for each its share of the strength and its distance."""

    images: Tensor
    shares: np.ndarray
    distances: np.ndarray


def check_budget(model: Model, limit: float) -> None:
    """Raise UsageError unless identity can be measured, and `limit` is a distance that can be kept."""
    if not limit > 0:
        raise UsageError(f"--keep-identity must be above 0; got {limit:g}. 0.6 is the same person to dlib, 0.4 surely.")
    if not (has_faces() and model.config.aligned_faces):
        raise UsageError("--keep-identity needs a model of faces, and pip install 'flowgrad[faces]'")


def keep_identity(model: Model, inverted: Inverted, control: Control, limit: float) -> Kept:
    """Edit each image with the largest share of a control, 1 at most, whose dlib distance to it stays below `limit`.

    The share is found by halving, taking the distance to grow with it; that of the result is measured.
    """
    before = identity_descriptors(to_images(inverted.images))
    images, shares, distances = _tried(model, inverted, control, before, np.ones(len(inverted)))
    low, high = np.where(distances < limit, 1.0, 0.0), np.ones(len(inverted))
    kept = Kept(images.clone(), low, np.where(low > 0, distances, 0.0))
    kept.images[torch.from_numpy(low == 0)] = inverted.images[torch.from_numpy(low == 0)]
    for _ in range(HALVINGS):
        left = np.flatnonzero(low < 1)
        if not len(left):
            break
        middle = (low[left] + high[left]) / 2
        images, shares, distances = _tried(model, inverted.select(left.tolist()), control, before[left], middle)
        fits = distances < limit
        low[left[fits]], high[left[~fits]] = shares[fits], shares[~fits]
        kept.images[torch.from_numpy(left[fits])] = images[torch.from_numpy(fits)]
        kept.distances[left[fits]] = distances[fits]
    return kept


def _tried(
    model: Model, inverted: Inverted, control: Control, before: np.ndarray, shares: np.ndarray
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """(images, shares, distances) of each image with its share of a control."""
    factors = torch.from_numpy(shares).to(control.values).view(1, -1, *[1] * (control.values.ndim - 2))
    images = steer(model, inverted, Control(control.values * factors, control.grid))
    return images, shares, identity_distance(identity_descriptors(to_images(images)), before)
