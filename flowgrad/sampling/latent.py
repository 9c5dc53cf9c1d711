"""Energies of images as energies of the latents they are drawn from: E(G(x0)), and its gradient in x0."""

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

    def gradient(self, energy: Energy, x0: Tensor) -> tuple[Tensor, Tensor]:
        """E(G(x0)) (B,), and its gradient in x0 (B, *D): exact for the grid, one vector-Jacobian product a step.

        Raises FlowgradError where an energy is not finite.
        """
        trajectory = integrate(self.model.velocity, x0, self.grid)
        with torch.enable_grad():
            x1 = trajectory.x1.detach().requires_grad_()
            values = require_finite(energy(self.model.decode(x1)))
            (grad_x1,) = torch.autograd.grad(values.sum(), x1)
        return values.detach(), latent_gradient(self.model.velocity, trajectory, grad_x1)
