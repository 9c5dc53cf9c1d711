"""Photos as trajectories of the ODE: what training and applying both start from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowgrad.models import Model
from flowgrad.ode import Grid, Trajectory, anchor, integrate, invert, restrict
from flowgrad.straightness import grid_of_size, nonuniform_grid, pooled, straightness


@dataclass(frozen=True)
class Inverted:
    """Images (B, 3, H, W) in [-1, 1] with the fine trajectory that ends in their states."""

    images: Tensor
    trajectory: Trajectory
    anchored: bool = True

    def __len__(self) -> int:
        return len(self.images)

    @property
    def x0(self) -> Tensor:
        """(B, *D) latents at t = 0, where the images are, whatever the trajectory is kept in."""
        return self.trajectory.x0.to(self.images)

    def residual(self, grid: Grid) -> Tensor | None:
        """(M, B, *D) residuals that make the forward pass on `grid` return the images; None if not anchored."""
        if not self.anchored:
            return None
        coarse = restrict(self.trajectory, grid)
        return anchor(Trajectory(coarse.states.to(self.images), coarse.velocities.to(self.images), grid))

    def grid(self, intervals: int, xi: float) -> Grid:
        """The shared grid of these images: `intervals` intervals at most, or by the threshold `xi` if that is 0."""
        s = pooled(straightness(self.trajectory.velocities))
        return grid_of_size(s, intervals) if intervals else nonuniform_grid(s, xi)

    def select(self, chosen: Sequence[int]) -> "Inverted":
        """Some of the images, in the order given."""
        index, t = list(chosen), self.trajectory
        return Inverted(
            self.images[index], Trajectory(t.states[:, index], t.velocities[:, index], t.grid), self.anchored
        )


def invert_images(
    model: Model, images: Tensor, method: str = "euler", anchored: bool = True, grid: Grid | None = None
) -> Iterator[Inverted]:
    """Invert images (B, 3, H, W) in [-1, 1], a batch at a time, on `grid` (default: all N steps).

    Of a latent model, the images from here on are what its decoder makes of their latents: what the model can show of
    them, and what strength 0 returns.
    """
    for batch in images.to(model.device).split(model.batch):
        with torch.no_grad():
            states = model.encode(batch)
            shown = model.decode(states)
        trajectory = invert(model.velocity, states, grid or model.config.steps, method, store=model.store)
        yield Inverted(shown, trajectory, anchored)


def sample_images(model: Model, count: int, seed: int, grid: Grid | None = None) -> Iterator[Inverted]:
    """New images of a model with the trajectories that made them, a batch at a time; image i depends on seed + i.

    They are drawn on `grid` (default: all N steps).
    """
    for noise in model.noise(count, seed).split(model.batch):
        trajectory = integrate(model.velocity, noise, grid or Grid.full(model.config.steps), store=model.store)
        with torch.no_grad():
            yield Inverted(model.decode(trajectory.x1.to(noise)), trajectory)


def join(parts: Iterator[Inverted] | Sequence[Inverted]) -> Inverted:
    """Several batches as one."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    trajectories = [part.trajectory for part in parts]
    states, velocities = (torch.cat([getattr(t, name) for t in trajectories], 1) for name in ("states", "velocities"))
    images = torch.cat([part.images for part in parts])
    return Inverted(images, Trajectory(states, velocities, trajectories[0].grid), parts[0].anchored)
