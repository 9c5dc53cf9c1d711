"""What a control does to images at each strength: to texts' scores, to a judge's answers, and to who the people are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from directions.apply.identity import SAME_PERSON, compares_faces, descriptors, distances
from directions.apply.inversion import Inverted
from directions.apply.steer import sweep
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.judge import JUDGED, Judge
from flowgrad.guidance.text import log_odds
from flowgrad.models import Model
from flowgrad.ode import Control
from flowgrad.workers import Share

CONFIDENCE = NormalDist().inv_cdf(0.9)  # of one-sided bounds
INTERVAL = NormalDist().inv_cdf(0.975)  # of two-sided intervals, 95 %


@dataclass(frozen=True)
class Effects:
    """What each of S strengths did to B images.

    odds: (S, B, T) changes of T texts' log-odds; distances: (S, B) dlib's from what they were, (S, 0) where these are
    not measured; answers: the judge's probabilities (S, B) by answer, {} without a judge.
    """

    strengths: tuple[float, ...]
    odds: np.ndarray
    distances: np.ndarray
    answers: Mapping[str, np.ndarray]

    @classmethod
    def join(cls, parts: Sequence["Effects"]) -> "Effects":
        """The same strengths' effects on several batches as one."""
        odds, apart = (np.concatenate([getattr(part, name) for part in parts], 1) for name in ("odds", "distances"))
        answers = {name: np.concatenate([part.answers[name] for part in parts], 1) for name in parts[0].answers}
        return cls(parts[0].strengths, odds, apart, answers)

    def gather(self, share: Share) -> "Effects":
        """The effects on all images that several processes have, of which these are on this process's share."""

        def every(values: np.ndarray) -> np.ndarray:
            found: np.ndarray = share.gather(torch.from_numpy(values), 1).numpy()
            return found

        apart = every(self.distances) if self.distances.size else self.distances
        return Effects(self.strengths, every(self.odds), apart, {name: every(p) for name, p in self.answers.items()})

    @property
    def effect(self) -> np.ndarray:
        """(S, T) mean changes of the texts' log-odds."""
        means: np.ndarray = self.odds.mean(1)
        return means

    @property
    def error(self) -> np.ndarray:
        """(S,) half the width of the 95 % interval of the first text's mean change; 0 for a single image."""
        first = self.odds[:, :, 0]
        return INTERVAL * spread(first) / first.shape[1] ** 0.5

    @property
    def kept(self) -> np.ndarray:
        """(S,) shares of faces that are still the same person to dlib; (0,) where not measured."""
        return (self.distances < SAME_PERSON).mean(1) if self.distances.size else np.empty(0)

    @property
    def identity(self) -> np.ndarray:
        """(S,) mean distances; (0,) where not measured."""
        return self.distances.mean(1) if self.distances.size else np.empty(0)


def spread(values: np.ndarray) -> np.ndarray:
    """Standard deviations along the last axis; 0 of a single value."""
    deviations: np.ndarray = values.std(-1, ddof=1) if values.shape[-1] > 1 else np.zeros(values.shape[:-1])
    return deviations


def kept_at_least(mean: np.ndarray, deviation: np.ndarray, count: int) -> np.ndarray:
    """A lower bound (90 % confidence) of the share of faces that stay the same person.

    A count of some fifty faces bounds nothing above 95 %. Distances are nearly normal, and their share below
    SAME_PERSON is bounded through their mean and deviation over `count` faces: with K = (0.6 - mean) / deviation, it is
    at least Phi(K - z sqrt(1 / n + K^2 / (2 (n - 1)))) (Wallis, 1947).
    """
    k = (SAME_PERSON - mean) / np.maximum(deviation, 1e-6)
    bound = k - CONFIDENCE * np.sqrt(1 / count + k**2 / (2 * max(count - 1, 1)))
    return np.vectorize(NormalDist().cdf, otypes=[float])(bound)


def measure(
    model: Model,
    guide: Guide,
    control: Control,
    photos: Inverted,
    texts: Sequence[Contrast],
    strengths: Sequence[float],
    judge: Judge | None = None,
) -> tuple[Effects, Tensor]:
    """Apply a control at every strength and measure texts, the judge's answers and, where dlib is installed, identity.

    Returns the images (S, B, 3, H, W) too. Strength 0 is the images as they were, and is not computed.
    """
    before, images = photos.images.clamp(-1, 1), sweep(model, photos, control, strengths)
    described = descriptors(before) if compares_faces(model) else None
    odds, apart, answers = [], [], []
    first = _odds(guide, before, texts, model.batch)
    for row in images:
        odds.append(_odds(guide, row, texts, model.batch) - first)
        apart.append(row.new_zeros(0) if described is None else distances(descriptors(row), described))
        answers.append(judged(judge, row) if judge else {})
    return Effects(
        tuple(strengths),
        _numbers(odds),
        _numbers(apart),
        {name: _numbers([answer[name] for answer in answers]) for name in answers[0]},
    ), images


def _odds(guide: Guide, images: Tensor, texts: Sequence[Contrast], batch: int) -> Tensor:
    return torch.cat([log_odds(guide, part, texts) for part in images.split(batch)])


def _numbers(parts: Sequence[Tensor]) -> np.ndarray:
    values: np.ndarray = torch.stack(list(parts)).float().cpu().numpy()
    return values


@torch.no_grad()
def judged(judge: Judge, images: Tensor) -> dict[str, Tensor]:
    """The probability (B,) of each of the judge's answers for images (B, 3, H, W) in [-1, 1], a batch at a time."""
    parts = [judge.probabilities(part) for part in images.split(JUDGED)]
    return {answer: torch.cat([part[answer] for part in parts]) for answer in parts[0]}
