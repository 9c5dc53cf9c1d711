"""What a painting asks of clean samples, as an objective of `flowgrad.optimize`: its colours, and a text's words."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowgrad.guidance.augment import augment
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.text import contrast_vectors, mean_scores
from flowgrad.painting.blur import unfaithfulness


@dataclass(frozen=True)
class Words:
    """A text that a guide raises: the mean over `copies` augmented views of the cosine with it less its source's."""

    guide: Guide
    target: Contrast
    copies: int = 4

    def score(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """(B,) scores of images (B, 3, H, W) in [-1, 1], differentiable."""
        views, vectors = augment(images, self.copies, rng), contrast_vectors(self.guide, [self.target])
        return mean_scores(self.guide, views, vectors, self.copies)[:, 0]


@dataclass(frozen=True)
class PaintingObjective:
    """mean |f(x) - f(y)|^2 - weight s(x), for each image x (B, 3, H, W) in [-1, 1].

    strokes: y (1, 3, H, W) in [-1, 1]; words: the text whose score s is raised, None for the colours alone.
    """

    strokes: Tensor
    words: Words | None = None
    weight: float = 0.1

    def __call__(self, images: Tensor, rng: torch.Generator, _: slice) -> dict[str, Tensor]:
        terms = {"painting": unfaithfulness(images, self.strokes)}
        if self.words:
            terms["text"] = -self.weight * self.words.score(images, rng)
        return terms
