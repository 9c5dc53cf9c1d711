"""Reflow (Liu et al., 2022, section 2.2): pairs (x0, x1 = ODE(x0)) drawn from a flow, on which a straighter one learns.

The noise of pair i is a function of the seed and of i, so only x1 is kept.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.models import Model
from flowgrad.ode import Grid, Trajectory, integrate, require_finite
from flowgrad.seeds import generator
from flowgrad.training.data.shards import Shards, ShardStep, read_plan, read_shards, write_shards
from flowgrad.velocity import Velocity
from flowgrad.workers import Workers

BATCH = 32  # pairs integrated at once
FEWEST = 16


@dataclass(frozen=True)
class PairPlan:
    """`count` pairs from the model whose weights have this fingerprint, by so many Euler steps each, from this seed."""

    fingerprint: str
    count: int
    steps: int
    seed: int

    def __post_init__(self) -> None:
        if self.count < FEWEST or self.steps < 1:
            raise UsageError(f"reflow needs {FEWEST} pairs and one step at least; got {self.count} and {self.steps}")


def draw_pairs(model: Model, plan: PairPlan, folder: Path, workers: Workers | None = None) -> Iterator[ShardStep]:
    """Write the plan's pairs into `folder`; see `write_shards`. Raises FlowgradError if samples are not finite."""
    return write_shards(folder, asdict(plan), plan.count, partial(_ends, model, plan), workers or Workers())


def _ends(model: Model, plan: PairPlan, start: int, stop: int) -> np.ndarray:
    """(stop - start, *D) float16 samples of the noise of these pairs."""
    grid, knots = Grid.full(plan.steps), [*range(start, stop, BATCH), stop]
    parts = []
    for a, b in pairwise(knots):
        x0 = pair_noise(np.arange(a, b), model.shape, plan.seed).to(model.device)
        parts.append(require_finite(sample(model.velocity, x0, grid), "a sample of the flow to straighten").cpu())
    return torch.cat(parts).half().numpy()


@torch.no_grad()
def sample(velocity: Velocity, x0: Tensor, grid: Grid) -> Tensor:
    """(B, *D) samples x1 of noise x0, without keeping the states between."""
    x, times, spans = x0, grid.times(x0), grid.spans(x0)
    for j in range(len(grid)):
        x = x + spans[j] * velocity(x, times[j])
    return x


def pair_noise(rows: np.ndarray, shape: tuple[int, ...], seed: int) -> Tensor:
    """(len(rows), *shape) noise of these pairs."""
    return torch.stack([torch.randn(shape, generator=generator(seed, row)) for row in rows.tolist()])


@dataclass(frozen=True)
class DrawnPairs:
    """Drawn pairs `rows` to train on: the noise belongs to the image, nothing is random."""

    ends: Shards
    rows: np.ndarray
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, rows: np.ndarray, generator: Generator, share: slice) -> tuple[Tensor, Tensor]:
        """(x0, x1) of the part of these rows; the generator is not used."""
        chosen = self.rows[rows[share]]
        x1 = self.ends[chosen]
        return pair_noise(chosen, x1.shape[1:], self.seed), torch.from_numpy(x1).float()


def load_pairs(folder: Path, held_out: float) -> tuple[DrawnPairs, DrawnPairs]:
    """Pairs to train on, and the share held out (the last). Raises FlowgradError if some are missing or damaged."""
    plan = drawn_plan(Path(folder))
    if plan is None:
        raise FlowgradError(f"{folder} holds no pairs: draw them first.")
    ends = read_shards(folder, plan.count)
    rows, kept = np.arange(plan.count), plan.count - max(1, round(held_out * plan.count))
    return DrawnPairs(ends, rows[:kept], plan.seed), DrawnPairs(ends, rows[kept:], plan.seed)


def drawn_plan(folder: Path) -> PairPlan | None:
    """The plan of the pairs that are, or were being, drawn into a folder; None if there are none."""
    try:
        return PairPlan(**(read_plan(folder) or {}))  # type: ignore[arg-type]
    except (TypeError, UsageError):
        return None


def curvature(velocity: Velocity, x0: Tensor, steps: int) -> float:
    """How far a flow's paths are from straight lines: 0 for straight ones (Liu et al., 2022, section 2.2).

    S = mean over t of |(x1 - x0) - v(x_t, t)|^2, relative to the mean of |x1 - x0|^2. x0: (B, *D) noise.
    """
    return trajectory_curvature(integrate(velocity, x0, Grid.full(steps)))


def trajectory_curvature(trajectory: Trajectory) -> float:
    """The same of a trajectory on the full grid."""
    whole = trajectory.x1 - trajectory.x0
    return float((whole - trajectory.velocities).square().mean() / whole.square().mean())
