"""Strength as a unit: what a direction does is measured on images that it was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from directions.apply.identity import SAME_PERSON, has_faces, identity_descriptors, identity_distance
from directions.apply.inversion import Inverted
from directions.apply.steer import sweep
from directions.file.header import Calibration
from directions.photo.reading import to_images
from flowgrad.errors import FlowgradError
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.text import Contrast, log_odds
from flowgrad.models import Model
from flowgrad.ode import Control

KEPT = 0.9  # share of faces that must stay the same person within the safe range
TRIED = (-1.5, -1.0, -0.5, 0.0, 0.5, 0.75, 1.0, 1.5)  # multiples of the trained control
WEAKEST = min(strength for strength in TRIED if strength > 0)


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
    before = log_odds(guide, photos.images.clamp(-1, 1), texts)
    edited = sweep(model, photos, control, strengths)
    effects = np.stack([(log_odds(guide, images, texts) - before).mean(0).cpu().numpy() for images in edited])
    apart = _distances(photos.images, edited) if has_faces() and model.config.aligned_faces else np.empty((0, 1))
    return Effects(
        tuple(strengths), effects, tuple(apart.mean(1).tolist()), tuple((apart < SAME_PERSON).mean(1).tolist())
    )


def _distances(before: Tensor, edited: Tensor) -> np.ndarray:
    """(S, B) dlib descriptor distances of edited images (S, B, 3, H, W) from what they were."""
    images = torch.cat([before.unsqueeze(0), edited])
    found = identity_descriptors(to_images(images.flatten(0, 1))).reshape(*images.shape[:2], -1)
    return identity_distance(found[1:], found[0])


def calibrate(
    model: Model,
    guide: Guide,
    control: Control,
    photos: Inverted,
    target: Contrast,
    probes: Sequence[Contrast],
    source: str = "samples",
) -> Calibration:
    """Measure a trained control on held-out `photos` and find the multiple of it that has the model's effect level.

    Where that level is out of reach, strength 1 is the strongest safe multiple, or the weakest that was tried where
    none is safe, and the calibration's `level` says which effect that has. `source` says what the photos are.
    Raises FlowgradError if that multiple lowers the text's score by more than 1 % of the model's effect level.
    """
    found = measure(model, guide, control, photos, [target, *probes], TRIED)
    effect = found.effects[:, 0]
    low, high = safe_range(found)
    unit = reach(found.strengths, effect, model.config.effect_level, high or WEAKEST)
    level = round(float(np.interp(unit, found.strengths, effect)), 4)
    if level < -0.01 * model.config.effect_level:
        raise FlowgradError(
            f"on images that it was not trained on, the control changes the log-odds of {target} by {level:g}: "
            "it does the opposite. Put the text differently, choose another source text, or train on more photos"
        )
    return Calibration(
        level=max(level, 0.0),
        unit=round(unit, 6),
        strengths=tuple(round(s / unit, 4) for s in found.strengths),
        effect=_rounded(effect),
        identity=_rounded(found.identity),
        kept=_rounded(found.kept),
        side_effects={str(p): _rounded(found.effects[:, i + 1]) for i, p in enumerate(probes)},
        safe=(round(low / unit, 2), round(high / unit, 2)),
        photos=len(photos),
        source=source,
    )


def reach(strengths: Sequence[float], effect: np.ndarray, level: float, most: float) -> float:
    """The smallest positive strength, `most` at the most, where the effect (piecewise linear) reaches `level`."""
    points = [(s, e) for s, e in zip(strengths, effect.tolist(), strict=True) if s >= 0]
    for (a, below), (b, above) in pairwise(points):
        if below < level <= above:
            return min(most, a + (b - a) * (level - below) / (above - below))
    return most


def safe_range(found: Effects) -> tuple[float, float]:
    """The strengths around 0 through which the effect keeps growing and faces stay the same people; (0, 0) if none."""
    zero = found.strengths.index(0.0)
    return _last_safe(found, range(zero, -1, -1)), _last_safe(found, range(zero, len(found.strengths)))


def _last_safe(found: Effects, path: range) -> float:
    """Follow the strengths from 0 outwards while it is safe."""
    last, sign = path[0], path.step
    for i in path[1:]:
        grows = sign * (found.effects[i, 0] - found.effects[i - sign, 0]) > 0
        same = not found.kept or found.kept[i] >= KEPT
        if not (grows and same):
            break
        last = i
    return found.strengths[last]


def _rounded(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)
