"""Scores of texts, and the objective that raises one while it keeps others (FlowGrad, section 5)."""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from flowgrad.guidance.augment import augment
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.preserve import Distance


def contrast_vectors(guide: Guide, contrasts: Sequence[Contrast]) -> Tensor:
    """(C, E) differences of text embeddings: an image's score is its product with one."""
    return guide.encode_texts([c.text for c in contrasts]) - guide.encode_texts([c.source for c in contrasts])


@torch.no_grad()
def log_odds(guide: Guide, images: Tensor, contrasts: Sequence[Contrast]) -> Tensor:
    """(B, C) zero-shot log-odds of each contrast's text against its source, for images (B, 3, H, W) in [-1, 1]."""
    return guide.logit_scale * guide.encode_photos(images) @ contrast_vectors(guide, contrasts).T


@dataclass(frozen=True)
class TextObjective:
    """-eta ds(T) + (1 - eta) |x1 - original| + keep_weight sum_k ds(T_k)^2, ds = s(x1) - s(original), for each image.

    The score s is the mean over `copies` augmented views of the cosine with T minus that with its source. The
    original is seen through the same views, so that 0 is no change whatever views are drawn; the gradient is that of
    the score alone. What is kept is squared, since at the start an absolute value has the gradient of its rounding
    errors. `decode` maps states to images in [-1, 1]; eta lies in [0, 1].
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
    _images: MutableMapping[Tensor, tuple[int, Tensor]] = field(
        default_factory=WeakIdKeyDictionary, init=False, repr=False, compare=False
    )

    def __call__(self, x1: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        images = self._decoded(x1)
        vectors = contrast_vectors(self.guide, [self.target, *self.keep])
        seen = rng.get_state()
        scores = self._scores(images, vectors, rng)
        with torch.no_grad():
            before = self._scores(self.originals, vectors, rng.set_state(seen))
        change = scores - before
        terms = {
            "text": -self.eta * change[:, 0],
            "preserve": (1 - self.eta) * self.distance(images, self.originals),
        }
        if self.keep:
            terms["keep"] = self.keep_weight * change[:, 1:].square().sum(1)
        return terms

    def _decoded(self, x1: Tensor) -> Tensor:
        """The images of states; without gradient, those of the same tensor are decoded once."""
        version, images = self._images.get(x1, (-1, x1))
        if torch.is_grad_enabled() or version != x1._version:
            images = self.decode(x1)
            self._images[x1] = (x1._version, images.detach())
        return images

    def _scores(self, images: Tensor, vectors: Tensor, rng: torch.Generator) -> Tensor:
        """(B, C) mean scores over augmented views."""
        embeddings = self.guide.encode_images(augment(images, self.copies, rng))
        return (embeddings @ vectors.T).view(self.copies, len(images), -1).mean(0)
