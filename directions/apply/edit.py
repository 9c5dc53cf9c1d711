"""Prepared images edited: what each was to the model, and what became of it at every strength."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from directions.apply.budget import check_budget, keep_identity
from directions.apply.familiarity import judge_familiarity
from directions.apply.inversion import ANCHORED_EULER, Inversion, Inverted, invert_for, join
from directions.apply.steer import steer, sweep
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
    model: Model,
    control: Control,
    images: Tensor,
    strengths: Sequence[float] = (),
    budget: float | None = None,
    inversion: Inversion = ANCHORED_EULER,
) -> list[Edit]:
    """Edit images (B, 3, H, W) in [-1, 1] at every multiple of a control, which is 1 where none is given.

    A strength of 0 changes nothing at all. budget: each image gets the largest share of the control that keeps dlib's
    distance below it, instead. Raises FlowgradError if a result is not finite, UsageError for a wrong budget.
    """
    if budget is not None:
        check_budget(model, budget)
    inverted = join(invert_for(model, images, control, inversion))
    return edit_inverted(model, control, inverted, strengths, budget)


def edit_inverted(
    model: Model,
    control: Control,
    inverted: Inverted,
    strengths: Sequence[float] = (),
    budget: float | None = None,
    verdicts: Sequence[str | None] | None = None,
) -> list[Edit]:
    """Edit images that are inverted already, as `edit_images` does; `verdicts` on them, if they are known already."""
    before = inverted.images.clamp(-1, 1)
    if verdicts is None:
        verdicts = judge_familiarity(model, inverted)
    if budget is not None and not control.values.any():
        return [Edit(b, b[None], said, 1.0, 0.0) for b, said in zip(before, verdicts, strict=True)]
    if budget is not None:
        kept = keep_identity(model, inverted, control, budget)
        after = torch.where(torch.from_numpy(kept.shares > 0).to(before.device).view(-1, 1, 1, 1), kept.images, before)
        rows = zip(before, after, verdicts, kept.shares, kept.distances, strict=True)
        return [Edit(b, a[None], said, float(share), float(apart)) for b, a, said, share, apart in rows]
    edited = _edited(model, control, inverted, before, strengths or (1.0,))
    return [Edit(before[i], edited[:, i], verdicts[i]) for i in range(len(before))]


def _edited(model: Model, control: Control, inverted: Inverted, before: Tensor, strengths: Sequence[float]) -> Tensor:
    """(S, B, 3, H, W) images at every strength; where that is nothing, exactly what they were, and not computed."""
    moving = [s for s in strengths if s and control.values.any()]
    if len(moving) == 1:
        edited = iter([steer(model, inverted, control * moving[0])])
    else:
        edited = iter(sweep(model, inverted, control, moving) if moving else ())
    return torch.stack([next(edited) if s and moving else before for s in strengths])
