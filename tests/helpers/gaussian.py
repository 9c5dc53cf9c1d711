"""A linear generator and a quadratic energy, whose p* is a Gaussian that is known: what samplers are held to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowgrad.seeds import Key, normal


@dataclass(frozen=True)
class Case:
    """G(x0) = A x0, E(x) = |x - m|^2 / (2 s^2): p* = N(mean, covariance), with precision I + A^T A / s^2."""

    matrix: Tensor
    wanted: Tensor
    spread: float = 1.0

    def energy(self, x0: Tensor) -> Tensor:
        """E(G(x0)) (B,), at least 0."""
        return (x0 @ self.matrix.T - self.wanted).square().sum(1) / (2 * self.spread**2)

    def source(self, keys: list[Key]) -> Tensor:
        """Standard normal latents (B, D)."""
        return normal((self.matrix.shape[1],), keys).double()

    @property
    def covariance(self) -> Tensor:
        """(D, D)."""
        identity = torch.eye(self.matrix.shape[1], dtype=torch.float64)
        return torch.linalg.inv(identity + self.matrix.T @ self.matrix / self.spread**2)

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self.covariance @ self.matrix.T @ self.wanted / self.spread**2

    def misses(self, x0: Tensor) -> tuple[float, float]:
        """How far samples (B, D) are from p*: the largest error of their mean, and of their covariance."""
        return (
            float((x0.mean(0) - self.mean).abs().max()),
            float((torch.cov(x0.T) - self.covariance).abs().max()),
        )


def make_case(dimensions: int = 3, seed: int = 0) -> Case:
    """A case of two observed numbers, drawn from a seed."""
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(2, dimensions, generator=draw, dtype=torch.float64)
    return Case(matrix, torch.tensor([1.0, -0.5], dtype=torch.float64))
