"""Photos as trajectories of the ODE: what training and applying both start from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowgrad.models import Model
from flowgrad.ode import Grid, Trajectory, anchor, integrate, invert, restrict
from flowgrad.straightness import grid_of_size, nonuniform_grid, pooled, straightness

BATCH = 16  # images that go through the network together


@dataclass(frozen=True)
class Inverted:
    """Images (B, 3, H, W) in [-1, 1] with the fine trajectory that ends in their states."""

    images: Tensor
    trajectory: Trajectory
    anchored: bool = True

    def __len__(self) -> int:
        return len(self.images)

    def residual(self, grid: Grid) -> Tensor | None:
        """(M, B, *D) residuals that make the forward pass on `grid` return the images; None if not anchored."""
        return anchor(restrict(self.trajectory, grid)) if self.anchored else None

    def grid(self, intervals: int, xi: float) -> Grid:
        """The shared grid of these images: `intervals` intervals at most, or by the threshold `xi` if that is 0."""
        s = pooled(straightness(self.trajectory.velocities))
        return grid_of_size(s, intervals) if intervals else nonuniform_grid(s, xi)

    def select(self, chosen: Sequence[int]) -> "Inverted":
        """Some of the images, in the order given."""
        index = torch.tensor(chosen, dtype=torch.long, device=self.images.device)
        t = self.trajectory
        return Inverted(
            self.images[index], Trajectory(t.states[:, index], t.velocities[:, index], t.grid), self.anchored
        )


def invert_images(
    model: Model, images: Tensor, method: str = "euler", anchored: bool = True, grid: Grid | None = None
) -> Iterator[Inverted]:
    """Invert images (B, 3, H, W) in [-1, 1], a batch at a time, on `grid` (default: all N steps)."""
    for batch in images.to(model.device).split(BATCH):
        states = model.encode(batch)
        yield Inverted(batch, invert(model.velocity, states, grid or model.config.steps, method), anchored)


def sample_images(model: Model, count: int, seed: int) -> Iterator[Inverted]:
    """New images of a model with the trajectories that made them, a batch at a time; image i depends on seed + i."""
    for noise in model.noise(count, seed).split(BATCH):
        trajectory = integrate(model.velocity, noise, Grid.full(model.config.steps))
        with torch.no_grad():
            yield Inverted(model.decode(trajectory.x1), trajectory)


def join(parts: Iterator[Inverted] | Sequence[Inverted]) -> Inverted:
    """Several batches as one."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    trajectories = [part.trajectory for part in parts]
    states, velocities = (torch.cat([getattr(t, name) for t in trajectories], 1) for name in ("states", "velocities"))
    images = torch.cat([part.images for part in parts])
    return Inverted(images, Trajectory(states, velocities, trajectories[0].grid), parts[0].anchored)
