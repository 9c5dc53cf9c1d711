"""Scores of texts, and the objective that raises one while it keeps others (FlowGrad, section 5)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

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
    errors. `originals`: (B, 3, H, W) in [-1, 1], as the images; eta lies in [0, 1]. `share`: which of all images these
    are.
    """

    guide: Guide
    target: Contrast
    originals: Tensor
    distance: Distance
    keep: tuple[Contrast, ...] = ()
    eta: float = 0.7
    keep_weight: float = 5.0
    copies: int = 6
    share: Share | None = None
    _known: dict[tuple[bytes, int, int], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, images: Tensor, rng: torch.Generator, rows: slice) -> dict[str, Tensor]:
        before = self._scores_before(rng.get_state(), rows)
        change = self._scores(images, rng, rows) - before
        terms = {
            "text": -self.eta * change[:, 0],
            "preserve": (1 - self.eta) * self.distance(images, self.originals[rows]),
        }
        if self.keep:
            terms["keep"] = self.keep_weight * change[:, 1:].square().sum(1)
        return terms

    def _scores(self, images: Tensor, rng: torch.Generator, rows: slice) -> Tensor:
        """(B, C) scores of the target and of what is kept, over the views that come next from `rng`."""
        share = self.share or Share(len(self.originals))
        own = slice(share.rows.start + rows.start, share.rows.start + rows.stop)
        views = augment(images, self.copies, rng, share.count, own)
        return mean_scores(self.guide, views, contrast_vectors(self.guide, [self.target, *self.keep]), self.copies)

    @torch.no_grad()
    def _scores_before(self, state: Tensor, rows: slice) -> Tensor:
        """Those of the originals over the views that come next from a generator in this state; computed once for each.

        All evaluations of a run are compared under the same views.
        """
        views = sha256(state.numpy().tobytes()).digest(), rows.start, rows.stop
        if views not in self._known:
            rng = torch.Generator(self.originals.device).set_state(state)
            self._known[views] = self._scores(self.originals[rows], rng, rows)
        return self._known[views]
