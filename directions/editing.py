"""Prepared images edited: what each was to the model, and what became of it at every strength."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from directions.apply import inversion_grid, steer, sweep
from directions.latents import invert_images, join
from flowgrad.models import Model
from flowgrad.ode import Control


@dataclass(frozen=True, eq=False)
class Edit:
    """One image edited: `before` (3, H, W) as the model gives it back, `after` (S, 3, H, W), both in [-1, 1]."""

    before: Tensor
    after: Tensor

    def difference(self) -> np.ndarray:
        """(H, W, 3) float32: what the first strength changed."""
        return (self.after[0] - self.before).permute(1, 2, 0).float().cpu().numpy()


def edit_images(model: Model, control: Control, images: Tensor, strengths: Sequence[float]) -> list[Edit]:
    """Edit images (B, 3, H, W) in [-1, 1] at every multiple of a control, which is 1 where none is given.

    A strength of 0 changes nothing at all. Raises FlowgradError if a result is not finite.
    """
    inverted = join(invert_images(model, images, grid=inversion_grid(control)))
    with torch.no_grad():
        before = model.decode(inverted.trajectory.x1).clamp(-1, 1)
    if len(strengths) > 1:
        after = sweep(model, inverted, control, strengths)
    else:
        after = steer(model, inverted, control * (strengths[0] if strengths else 1.0))[None]
    still = [s == 0 or not bool(control.values.any()) for s in strengths or (1.0,)]
    after = torch.stack([before if nothing else edited for nothing, edited in zip(still, after, strict=True)])
    return [Edit(before[i], after[:, i]) for i in range(len(before))]
