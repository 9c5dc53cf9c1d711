"""The part of x0 that an energy depends on: a subspace, which alone need be controlled.

A latent has thousands of numbers, and a sampler of all of them would be as large as the model. The normal distribution
is the same in every direction: with B (D, d) orthonormal, z = B^T x0 and the rest (I - B B^T) x0 are independent, and
only z need be controlled.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowgrad.errors import UsageError

WEAK = 0.1  # mean gradients along a direction, as a share of those along the strongest, below which it is left out


@dataclass(frozen=True)
class Subspace:
    """d directions of x0: basis (d, *D), orthonormal."""

    basis: Tensor

    def __len__(self) -> int:
        return len(self.basis)

    def inside(self, x0: Tensor) -> Tensor:
        """z (B, d), the coordinates of x0 (B, *D)."""
        return x0.flatten(1) @ self.basis.flatten(1).T

    def moved(self, x0: Tensor, z: Tensor) -> Tensor:
        """x0 (B, *D) with coordinates z (B, d) in place of its own; the rest stays as it is."""
        return x0 + ((z - self.inside(x0)) @ self.basis.flatten(1)).view_as(x0)


def leading(gradients: Tensor, least: int = 2) -> Subspace:
    """The span of the mean gradients of features in x0, from gradients (n, K, *D) at n normal latents.

    For normal x0, E df/dx0 is the regression of f on x0 (Stein, 1981): no other K directions predict K features better
    by a linear function. Features count alike, whatever their units, and a direction in which their means hardly differ
    is left out. Where fewer than `least` are left, the strongest of the gradients themselves follow (active subspaces:
    Constantine, 2015). Raises UsageError for fewer than `least` gradients.
    """
    rows = gradients.flatten(2)
    rows = rows / rows.square().sum(2).mean(0).sqrt().clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
    if rows.shape[0] * rows.shape[1] < least:
        raise UsageError(f"{rows.shape[0] * rows.shape[1]} gradients do not span {least} dimensions: take more")
    _, strengths, means = torch.linalg.svd(rows.mean(0), full_matrices=False)
    basis = means[strengths > WEAK * strengths[0]]
    if len(basis) < least:
        rest = rows.flatten(0, 1)
        *_, more = torch.linalg.svd(rest - rest @ basis.T @ basis, full_matrices=False)
        basis = torch.cat([basis, more[: least - len(basis)]])
    return Subspace(basis.contiguous().view(len(basis), *gradients.shape[2:]))  # as files keep it, to the last bit
