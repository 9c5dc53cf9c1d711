"""Prepared images edited: what each was to the model, and what became of it at every strength."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from directions.apply import inversion_grid, steer, sweep
from directions.budget import check_budget, keep_identity
from directions.gate import fits, verdict
from directions.latents import Inverted, invert_images, join
from flowgrad.models import Model
from flowgrad.ode import Control


@dataclass(frozen=True, eq=False)
class Edit:
    """One image edited: `before` (3, H, W) as the model gives it back, `after` (S, 3, H, W), both in [-1, 1].

    verdict: what is unusual about the image to the model, or None; share: of the strength asked for that kept the
    identity, and distance: dlib's of the result (None where no budget was given).
    """

    before: Tensor
    after: Tensor
    verdict: str | None = None
    share: float = 1.0
    distance: float | None = None

    def difference(self) -> np.ndarray:
        """(H, W, 3) float32: what the first strength changed."""
        return (self.after[0] - self.before).permute(1, 2, 0).float().cpu().numpy()


def edit_images(
    model: Model, control: Control, images: Tensor, strengths: Sequence[float] = (), budget: float | None = None
) -> list[Edit]:
    """Edit images (B, 3, H, W) in [-1, 1] at every multiple of a control, which is 1 where none is given.

    A strength of 0 changes nothing at all. budget: each image gets the largest share of the control that keeps dlib's
    distance below it, instead. Raises FlowgradError if a result is not finite, UsageError for a wrong budget.
    """
    if budget is not None:
        check_budget(model, budget)
    inverted = join(invert_images(model, images, grid=inversion_grid(control)))
    return edit_inverted(model, control, inverted, strengths, budget)


def edit_inverted(
    model: Model, control: Control, inverted: Inverted, strengths: Sequence[float] = (), budget: float | None = None
) -> list[Edit]:
    """Edit images that are inverted already, as `edit_images` does."""
    before = inverted.images.clamp(-1, 1)
    verdicts = [verdict(fit, model.config.gate) for fit in fits(model, inverted)]
    if budget is not None and not control.values.any():
        return [Edit(b, b[None], said, 1.0, 0.0) for b, said in zip(before, verdicts, strict=True)]
    if budget is not None:
        kept = keep_identity(model, inverted, control, budget)
        after = torch.where(torch.from_numpy(kept.shares > 0).to(before.device).view(-1, 1, 1, 1), kept.images, before)
        told = zip(before, after, verdicts, kept.shares, kept.distances, strict=True)
        return [Edit(b, a[None], said, float(share), float(apart)) for b, a, said, share, apart in told]
    edited = _edited(model, control, inverted, before, strengths or (1.0,))
    return [Edit(before[i], edited[:, i], verdicts[i]) for i in range(len(before))]


def _edited(model: Model, control: Control, inverted: Inverted, before: Tensor, strengths: Sequence[float]) -> Tensor:
    """(S, B, 3, H, W) images at every strength; where that is nothing, exactly what they were."""
    moves = [s != 0 and bool(control.values.any()) for s in strengths]
    if len(strengths) > 1:
        after = sweep(model, inverted, control, strengths)
    else:
        after = steer(model, inverted, control * strengths[0])[None]
    return torch.stack([edited if moved else before for moved, edited in zip(moves, after, strict=True)])
