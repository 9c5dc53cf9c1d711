"""Energies of images as energies of the latents they are drawn from: E(G(x0)), and gradients in x0."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowgrad.adjoint import latent_gradient
from flowgrad.guidance.energies import Energy, require_finite
from flowgrad.models import Model
from flowgrad.ode import Grid, integrate


@dataclass(frozen=True)
class Generator:
    """G: latents to images, by Euler steps of a frozen flow on a grid, decoded."""

    model: Model
    grid: Grid

    def images(self, x0: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], from x0 (B, *D), without gradient."""
        return torch.cat([self._images(part) for part in x0.split(self.model.batch)])

    @torch.no_grad()
    def _images(self, x0: Tensor) -> Tensor:
        return self.model.decode(integrate(self.model.velocity, x0, self.grid).x1)

    def energy(self, energy: Energy, x0: Tensor) -> Tensor:
        """E(G(x0)) (B,), without gradient. Raises FlowgradError where it is not finite."""
        with torch.no_grad():
            return torch.cat([require_finite(energy(self._images(part))) for part in x0.split(self.model.batch)])

    def gradients(self, features: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
        """d features(G(x0)) / d x0 (B, K, *D), of features (B, K) of images.

        Exact for the grid: one vector-Jacobian product a step for each feature. Raises FlowgradError where a feature
        is not finite.
        """
        trajectory = integrate(self.model.velocity, x0, self.grid)
        with torch.enable_grad():
            x1 = trajectory.x1.detach().requires_grad_()
            values = features(self.model.decode(x1))
            require_finite(values.sum(1))
            at_x1 = [torch.autograd.grad(value.sum(), x1, retain_graph=True)[0] for value in values.unbind(1)]
        return torch.stack([latent_gradient(self.model.velocity, trajectory, one) for one in at_x1], 1)
