"""Images edited: what each was to the model, and what became of it at every strength or within an identity budget."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from directions.apply.identity import SAME_PERSON, SURELY_THE_SAME, compares_faces, descriptors, distances
from directions.apply.inversion import Inverted
from directions.apply.steer import sweep
from flowgrad.errors import UsageError
from flowgrad.models import Model
from flowgrad.ode import Control

HALVINGS = 5  # of the interval that holds the largest strength: it is found to 1/32 of what was asked for


@dataclass(frozen=True, eq=False)
class Edit:
    """One image edited: `before` (3, H, W) as the model gives it back, `after` (S, 3, H, W), both in [-1, 1].

    share: of the strength asked for that kept the identity, and distance: dlib's of the result (None where no budget
    was given).
    """

    before: Tensor
    after: Tensor
    share: float = 1.0
    distance: float | None = None

    def difference(self, k: int = 0) -> np.ndarray:
        """(H, W, 3) float32: what the k-th strength changed."""
        return (self.after[k] - self.before).permute(1, 2, 0).float().cpu().numpy()


def check_budget(model: Model, limit: float) -> None:
    """Raise UsageError unless identity can be measured, and `limit` is a distance that can be kept."""
    if not limit > 0:
        known = f"{SAME_PERSON:g} is the same person to dlib, {SURELY_THE_SAME:g} surely"
        raise UsageError(f"--keep-identity must be above 0; got {limit:g}. {known}.")
    if not compares_faces(model):
        raise UsageError("--keep-identity needs a model of faces, and pip install 'flowgrad[faces]'")


def edit_images(model: Model, control: Control, inverted: Inverted, strengths: Sequence[float] = (1.0,)) -> list[Edit]:
    """Edit inverted images at every multiple of a control; a strength of 0 changes nothing at all.

    Raises FlowgradError if a result is not finite.
    """
    after = sweep(model, inverted, control, strengths)
    return [Edit(image, after[:, i]) for i, image in enumerate(inverted.images.clamp(-1, 1))]


def keep_identity(model: Model, control: Control, inverted: Inverted, limit: float) -> list[Edit]:
    """Edit each image with the largest share of a control, 1 at most, whose dlib distance to it stays below `limit`.

    The share is found by halving, taking the distance to grow with it; that of the result is measured. Raises as
    `edit_images`, and UsageError for a limit as `check_budget`.
    """
    check_budget(model, limit)
    edits = [Edit(image, image[None], 0.0, 0.0) for image in inverted.images.clamp(-1, 1)]
    if not control.values.any():
        return [Edit(edit.before, edit.after, 1.0, 0.0) for edit in edits]
    before = descriptors(inverted.images)
    low, high, share = np.zeros(len(edits)), np.ones(len(edits)), np.ones(len(edits))
    for _ in range(1 + HALVINGS):
        left = np.flatnonzero(low < 1).tolist()
        if not left:
            break
        (images,) = sweep(model, inverted.select(left), _scaled(control, share[left]), (1.0,))
        apart = distances(descriptors(images), before[left]).tolist()
        for i, image, distance in zip(left, images, apart, strict=True):
            if distance < limit:
                low[i], edits[i] = share[i], Edit(edits[i].before, image[None], float(share[i]), distance)
            else:
                high[i] = share[i]
        share = (low + high) / 2
    return edits


def measure_identity(model: Model, edits: Sequence[Edit]) -> list[Edit]:
    """The edits with dlib's distance between each face before and after; as they are where that cannot be measured."""
    if not (edits and compares_faces(model)):
        return list(edits)
    before, after = torch.stack([edit.before for edit in edits]), torch.stack([edit.after[0] for edit in edits])
    apart = distances(descriptors(after), descriptors(before)).tolist()
    return [replace(edit, distance=distance) for edit, distance in zip(edits, apart, strict=True)]


def _scaled(control: Control, shares: np.ndarray) -> Control:
    """A control (M, 1, *D) as one for each image, at its share (B,) of it."""
    factors = torch.from_numpy(shares).to(control.values).view(1, -1, *[1] * (control.values.ndim - 2))
    return Control(control.values * factors, control.grid)
