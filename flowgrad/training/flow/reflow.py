"""Reflow (Liu et al., 2022, section 2.2): pairs (x0, x1 = ODE(x0)) drawn from a flow, on which a straighter one learns.

The noise of pair i is a function of the seed and of i, so only x1 is kept: in shards that are whole or not there.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path, remove_leftovers
from flowgrad.models import Model
from flowgrad.ode import Grid, Trajectory, integrate, require_finite
from flowgrad.seeds import generator
from flowgrad.training.workers import Workers
from flowgrad.velocity import Velocity

SHARD = 256  # pairs in a file
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


@dataclass(frozen=True)
class PairStep:
    """How many of `total` pairs are drawn."""

    done: int
    total: int


def draw_pairs(model: Model, plan: PairPlan, folder: Path, workers: Workers | None = None) -> Iterator[PairStep]:
    """Write the plan's pairs into `folder`, yielding after each shard; goes on where it was interrupted.

    Raises FlowgradError if the model's samples are not finite, or the disk is full.
    """
    workers, folder = workers or Workers(), Path(folder)
    if drawn_plan(folder) != plan:
        for path in folder.glob("pairs-*.npy"):
            path.unlink(missing_ok=True)  # another process may have done it
        with atomic_path(folder / "pairs.json") as temporary:
            temporary.write_text(json.dumps(asdict(plan)), encoding="utf-8")
    if workers.leads:
        remove_leftovers(folder / "pairs.npy")
    workers.wait()
    for start in own_shards(plan.count, workers):
        stop = min(start + SHARD, plan.count)
        if not _shard(folder, start).exists():
            with atomic_path(_shard(folder, start)) as temporary:
                np.save(temporary, _ends(model, plan, start, stop))
        yield PairStep(stop, plan.count)
    workers.wait()


def own_shards(count: int, workers: Workers) -> range:
    """The first pairs of the shards, of `count` pairs in all, that this process draws."""
    return range(0, count, SHARD)[workers.rank :: workers.size]


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

    shards: tuple[np.ndarray, ...]
    rows: np.ndarray
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, rows: np.ndarray, generator: Generator, share: slice) -> tuple[Tensor, Tensor]:
        """(x0, x1) of the part of these rows; the generator is not used."""
        chosen = self.rows[rows[share]]
        x1 = np.stack([self.shards[row // SHARD][row % SHARD] for row in chosen.tolist()])
        return pair_noise(chosen, x1.shape[1:], self.seed), torch.from_numpy(x1).float()


def load_pairs(folder: Path, held_out: float) -> tuple[DrawnPairs, DrawnPairs]:
    """Pairs to train on, and the share held out (the last). Raises FlowgradError if some are missing or damaged."""
    plan = drawn_plan(Path(folder))
    if plan is None:
        raise FlowgradError(f"{folder} holds no pairs: draw them first.")
    try:
        paths = [_shard(Path(folder), start) for start in range(0, plan.count, SHARD)]
        shards = tuple(np.load(path, mmap_mode="r", allow_pickle=False) for path in paths)
    except (OSError, ValueError, EOFError) as error:
        raise FlowgradError(f"the pairs in {folder} are damaged ({error}): delete that file and resume.") from error
    rows, kept = np.arange(plan.count), plan.count - max(1, round(held_out * plan.count))
    return DrawnPairs(shards, rows[:kept], plan.seed), DrawnPairs(shards, rows[kept:], plan.seed)


def _shard(folder: Path, start: int) -> Path:
    return folder / f"pairs-{start:07d}.npy"


def drawn_plan(folder: Path) -> PairPlan | None:
    """The plan of the pairs that are, or were being, drawn into a folder; None if there are none."""
    try:
        return PairPlan(**json.loads((folder / "pairs.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, UsageError):
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
