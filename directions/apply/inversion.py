"""Photos as trajectories of the ODE: what training and applying both start from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowgrad.errors import UsageError
from flowgrad.models import Model
from flowgrad.ode import INVERSIONS, Control, Grid, Trajectory, anchor, integrate, invert, restrict
from flowgrad.straightness import bounded_grid, grid_of_size, pooled, straightness
from flowgrad.workers import Share

ANCHORED = "anchored"


@dataclass(frozen=True)
class Inversion:
    """How photos become trajectories: by which solver, and whether what it misses is kept as residuals (`anchored`).

    Written "anchored euler" or "rk45" in direction files. Raises UsageError for an unknown solver.
    """

    method: str = "euler"
    anchored: bool = True

    def __post_init__(self) -> None:
        if self.method not in INVERSIONS:
            raise UsageError(f"inversion must be one of {', '.join(INVERSIONS)}; got {self.method!r}")

    @classmethod
    def parse(cls, written: str) -> "Inversion":
        """What `str` of one wrote; "anchored" alone means Euler."""
        return cls(written.removeprefix(ANCHORED).strip() or "euler", written.startswith(ANCHORED))

    def __str__(self) -> str:
        return f"{ANCHORED} {self.method}" if self.anchored else self.method

    def grid(self, control: Control) -> Grid:
        """The grid on which photos are inverted for a control.

        Anchored Euler needs the photo's path at the control's knots alone, and starts from it exactly: the control's
        grid, and N / 4 equal steps, among which the control's are. What all N steps would add changes the edit by
        4 % of its size on `faces128`, for 3.8 times the evaluations. The other ways are only as good as their
        steps are small: all N.
        """
        steps = control.grid.steps
        return control.grid | quarter_grid(steps) if self == ANCHORED_EULER else Grid.full(steps)


ANCHORED_EULER = Inversion()


def quarter_grid(steps: int) -> Grid:
    """N / 4 equal steps: their knots are among those of every trajectory that photos are edited on."""
    return Grid.uniform(steps, -(-steps // 4))


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

    def path(self, grid: Grid) -> Trajectory | None:
        """The trajectory at the knots of `grid`, for a forward pass that is tied to it; None if not anchored."""
        return restrict(self.trajectory, grid) if self.anchored else None

    def residual(self, grid: Grid) -> Tensor | None:
        """(M, B, *D) residuals that make the forward pass on `grid` return the images; None if not anchored."""
        return self.missed(grid) if self.anchored else None

    def missed(self, grid: Grid) -> Tensor:
        """(M, B, *D) what Euler's steps on `grid` miss of the trajectory, per unit of time; see `anchor`."""
        return anchor(restrict(self.trajectory, grid)).to(self.images)

    def grid(self, intervals: int, xi: float) -> Grid:
        """The shared grid of these images: `intervals` intervals at most, or by the threshold `xi` if that is 0.

        Few intervals begin at some of N / 4 equal steps, so that photos are inverted alike for all.
        """
        s = pooled(straightness(self.trajectory.velocities))
        if not intervals:
            return bounded_grid(s, xi)
        grid, usual = grid_of_size(s, intervals), quarter_grid(len(s))
        return grid.onto(usual) if intervals < len(usual) else grid

    def select(self, chosen: Sequence[int] | slice) -> "Inverted":
        """Some of the images, in the order given; of a slice, without copying them."""
        index, t = chosen if isinstance(chosen, slice) else list(chosen), self.trajectory
        return Inverted(
            self.images[index], Trajectory(t.states[:, index], t.velocities[:, index], t.grid), self.anchored
        )

    def gather(self, share: Share) -> "Inverted":
        """All images that several processes have, of which these are this process's share."""
        t = self.trajectory
        states, velocities = (share.gather(of, 1) for of in (t.states, t.velocities))
        return Inverted(share.gather(self.images), Trajectory(states, velocities, t.grid), self.anchored)


def invert_images(
    model: Model, images: Tensor, inversion: Inversion = ANCHORED_EULER, grid: Grid | None = None
) -> Iterator[Inverted]:
    """Invert images (B, 3, H, W) in [-1, 1], a batch at a time, on `grid` (default: all N steps).

    Of a latent model, the images from here on are what its decoder makes of their latents: what the model can show of
    them, and what strength 0 returns.
    """
    for batch in images.to(model.device).split(model.batch):
        with torch.no_grad():
            states = model.encode(batch)
            shown = model.decode(states)
        trajectory = invert(model.velocity, states, grid or model.config.steps, inversion.method, store=model.store)
        yield Inverted(shown, trajectory, inversion.anchored)


def invert_for(
    model: Model, images: Tensor, control: Control, inversion: Inversion = ANCHORED_EULER
) -> Iterator[Inverted]:
    """Invert images (B, 3, H, W) in [-1, 1] as a control is applied to them, a batch at a time."""
    return invert_images(model, images, inversion, inversion.grid(control))


def sample_images(
    model: Model, count: int, seed: int, grid: Grid | None = None, rows: slice = slice(None)
) -> Iterator[Inverted]:
    """New images of a model with the trajectories that made them, a batch at a time; `rows` of them alone.

    Image i of a seed is the same whatever `count` is. They are drawn on `grid` (default: all N steps).
    """
    keys = [(seed, i) for i in range(count)[rows]]
    for start in range(0, len(keys), model.batch):
        noise = model.latents(keys[start : start + model.batch])
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
