"""Scores of texts, and the objective that raises one while it keeps others (FlowGrad, section 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flowgrad.guidance.augment import augment
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.preserve import Distance
from flowgrad.workers import Share


def contrast_vectors(guide: Guide, contrasts: Sequence[Contrast]) -> Tensor:
    """(C, E) differences of text embeddings: an image's score is its product with one."""
    return guide.encode_texts([c.text for c in contrasts]) - guide.encode_texts([c.source for c in contrasts])


@torch.no_grad()
def log_odds(guide: Guide, images: Tensor, contrasts: Sequence[Contrast]) -> Tensor:
    """(B, C) zero-shot log-odds of each contrast's text against its source, for images (B, 3, H, W) in [-1, 1]."""
    return guide.logit_scale * guide.encode_photos(images) @ contrast_vectors(guide, contrasts).T


def mean_scores(guide: Guide, views: Tensor, vectors: Tensor, copies: int) -> Tensor:
    """(B, C) scores of contrast vectors (C, E), each the mean over an image's views (copies * B, 3, H, W)."""
    return (guide.encode_images(views) @ vectors.T).unflatten(0, (copies, -1)).mean(0)


@dataclass(frozen=True)
class TextObjective:
    """-eta ds(T) + (1 - eta) |x1 - original| + keep_weight sum_k ds(T_k)^2, ds = s(x1) - s(original), for each image.

    The score s is the mean over `copies` augmented views of the cosine with T minus that with its source. The
    original is seen through the same views, so that 0 is no change whatever views are drawn; the gradient is that of
    the score alone. What is kept is squared, since at the start an absolute value has the gradient of its rounding
    errors. `decode` maps states to images in [-1, 1]; eta lies in [0, 1]. `share`: which of all images these are, and
    in which groups they go through the networks.
    """

    guide: Guide
    target: Contrast
    originals: Tensor
    distance: Distance
    decode: Callable[[Tensor], Tensor]
    keep: tuple[Contrast, ...] = ()
    eta: float = 0.7
    keep_weight: float = 5.0
    copies: int = 6
    share: Share | None = None

    def __call__(self, x1: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        share, seen = self.share or Share(len(x1), group=len(x1)), rng.get_state()
        groups = []
        for rows in share.parts:
            own = slice(rows.start - share.rows.start, rows.stop - share.rows.start)
            view = partial(augment, copies=self.copies, rng=rng.set_state(seen), count=share.count, rows=rows)
            groups.append(self._terms(x1[own], self.originals[own], view, rng))
        return {name: torch.cat([terms[name] for terms in groups]) for name in groups[0]}

    def _terms(
        self, x1: Tensor, originals: Tensor, view: Callable[[Tensor], Tensor], rng: torch.Generator
    ) -> dict[str, Tensor]:
        """The terms of images that go through the networks together; `view` augments them by drawing from `rng`."""
        images = self.decode(x1)
        vectors = contrast_vectors(self.guide, [self.target, *self.keep])
        seen = rng.get_state()
        scores = mean_scores(self.guide, view(images), vectors, self.copies)
        with torch.no_grad():
            rng.set_state(seen)
            before = mean_scores(self.guide, view(originals), vectors, self.copies)
        change = scores - before
        terms = {
            "text": -self.eta * change[:, 0],
            "preserve": (1 - self.eta) * self.distance(images, originals),
        }
        if self.keep:
            terms["keep"] = self.keep_weight * change[:, 1:].square().sum(1)
        return terms
