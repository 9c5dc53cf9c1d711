"""The part of x0 that an energy depends on: a subspace, and how much of the energy's variance it explains.

A latent has thousands of numbers, and a sampler of all of them would be as large as the model. The normal distribution
is the same in every direction: with B (D, d) orthonormal, z = B^T x0 and the rest (I - B B^T) x0 are independent, and
only z need be controlled.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowgrad.errors import UsageError


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


def leading(gradients: Tensor, dimensions: int) -> Subspace:
    """The span of the leading right singular vectors of gradients (n, *D) of energies in x0.

    It is the subspace that holds most of E |dE/dx0|^2 (active subspaces: Constantine, 2015). Raises UsageError for
    more dimensions than gradients.
    """
    if not 0 < dimensions <= len(gradients):
        raise UsageError(f"{len(gradients)} gradients span 1 to {len(gradients)} dimensions; got {dimensions}")
    *_, rows = torch.linalg.svd(gradients.flatten(1), full_matrices=False)
    basis = rows[:dimensions].contiguous()  # as files keep it: products with it are then the same to the last bit
    return Subspace(basis.view(dimensions, *gradients.shape[1:]))


def explained(values: Tensor) -> Tensor:
    """The share of a function's variance that z explains, from values (z, redraws): the same z in a row, the rest
    drawn anew in each column. () for (Z, R), (C,) for (Z, R, C).

    The variance within rows is what z leaves open (an intraclass correlation, unbiased by the number of redraws).
    """
    within = values.var(1).mean(0)
    between = values.mean(1).var(0) - within / values.shape[1]
    return between / (between + within)
