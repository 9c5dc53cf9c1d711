"""What a control does to images at each strength: to texts' scores, to a judge's answers, and to who the people are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from directions.apply.identity import SAME_PERSON, descriptors, distances, has_faces
from directions.apply.inversion import Inverted
from directions.apply.steer import sweep
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.judge import Judge
from flowgrad.guidance.text import Contrast, log_odds
from flowgrad.models import Model
from flowgrad.ode import Control

JUDGED = 256  # images that a judge looks at together


@dataclass(frozen=True)
class Effects:
    """What each strength did: effects (S, T) mean changes of log-odds of T texts; identity, kept (S,) or empty."""

    strengths: tuple[float, ...]
    effects: np.ndarray
    identity: tuple[float, ...]
    kept: tuple[float, ...]


def measure(
    model: Model,
    guide: Guide,
    control: Control,
    photos: Inverted,
    texts: Sequence[Contrast],
    strengths: Sequence[float],
) -> Effects:
    """Apply a control at every strength and measure texts and, where dlib is installed, identity."""
    effects, apart = changes(model, guide, edits(model, control, photos, strengths), texts)
    same = (apart[1:] < SAME_PERSON).mean(1)
    return Effects(tuple(strengths), effects[1:], tuple(apart[1:].mean(1).tolist()), tuple(same.tolist()))


def edits(model: Model, control: Control, photos: Inverted, strengths: Sequence[float]) -> Tensor:
    """(1 + S, B, 3, H, W) images: the photos as they were, and edited at every strength."""
    return torch.cat([photos.images.clamp(-1, 1)[None], sweep(model, photos, control, strengths)])


def changes(model: Model, guide: Guide, images: Tensor, texts: Sequence[Contrast]) -> tuple[np.ndarray, np.ndarray]:
    """What happened to images (S, B, 3, H, W), of which the first are the photos as they were.

    Returns the mean changes (S, T) of the texts' log-odds, and dlib's distances (S, B) from the photos; (0, B) where
    these are not measured.
    """
    odds = torch.stack([torch.cat([log_odds(guide, part, texts) for part in row.split(model.batch)]) for row in images])
    effects = (odds - odds[0]).mean(1).cpu().numpy()
    if not (has_faces() and model.config.aligned_faces):
        return effects, np.empty((0, images.shape[1]))
    described = descriptors(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    return effects, distances(described, described[0]).cpu().numpy()


@torch.no_grad()
def judged(judge: Judge, images: Tensor) -> dict[str, Tensor]:
    """The probability (B,) of each of the judge's answers for images (B, 3, H, W) in [-1, 1], a batch at a time."""
    parts = [judge.probabilities(part) for part in images.split(JUDGED)]
    return {answer: torch.cat([part[answer] for part in parts]) for answer in parts[0]}
