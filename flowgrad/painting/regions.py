"""Words for parts of an image, for models that do not attend to words (after GradOP, Singh et al., CVPR 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from flowgrad.painting.blur import blur
from flowgrad.painting.objective import Words

SOFTNESS = 0.02  # deviation of a softened edge, as a share of the image's side


@dataclass(frozen=True)
class Region:
    """Where (mask (1, 1, H, W) in [0, 1], softened at its edge) and what its words are."""

    mask: Tensor
    words: Words

    @classmethod
    def soft(cls, mask: Tensor, words: Words) -> "Region":
        """A region whose painted mask (1, 1, H, W) fades over SOFTNESS of its side."""
        return cls(blur(mask, SOFTNESS * mask.shape[-1]).clamp(0, 1), words)


def union(regions: Sequence[Region]) -> Tensor:
    """(1, 1, H, W): what is in any region, 1 - prod (1 - m)."""
    return 1 - reduce(torch.mul, (1 - region.mask for region in regions))


def composite(images: Tensor, originals: Tensor, mask: Tensor) -> Tensor:
    """m x + (1 - m) xg for images and originals (B, 3, H, W) and a mask (1, 1, H, W)."""
    return mask * images + (1 - mask) * originals


def on_states(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask (1, 1, H, W) as factors (1, 1, 1, h, w) on controls of states (C, h, w): means of what each covers."""
    return interpolate(mask, shape[-2:], mode="area").unsqueeze(0)


@dataclass(frozen=True)
class RegionObjective:
    """sum_r -eta ds_r(m_r x + (1 - m_r) xg) + (1 - eta) |(1 - m) (x - xg)|, for each image x; m: the union of all m_r.

    ds is the change of a region's score, seen through the same random views; originals: xg (B, 3, H, W) in [-1, 1].
    """

    regions: tuple[Region, ...]
    originals: Tensor
    eta: float = 0.7

    def __call__(self, images: Tensor, rng: torch.Generator, rows: slice) -> dict[str, Tensor]:
        terms, originals = {}, self.originals[rows]
        for i, region in enumerate(self.regions):
            seen = rng.get_state()
            after = region.words.score(composite(images, originals, region.mask), rng)
            with torch.no_grad():
                before = region.words.score(originals, rng.set_state(seen))
            terms[f"text {i + 1}"] = -self.eta * (after - before)
        outside = (1 - union(self.regions)) * (images - originals)
        return terms | {"outside": (1 - self.eta) * outside.abs().flatten(1).mean(1)}
