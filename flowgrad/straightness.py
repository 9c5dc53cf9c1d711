"""Straightness of trajectories, and the non-uniform grids that gather their straight parts.

Equation numbers are those of FlowGrad (Liu et al., CVPR 2023).
"""

import torch
from torch import Tensor

from flowgrad.errors import UsageError
from flowgrad.ode import Grid
from flowgrad.workers import Share

FEWEST = 5  # intervals of a grid, however straight the flow is


def straightness(velocities: Tensor) -> Tensor:
    """(N, B) straightness of Eq. 11, for each step and image, from velocities (N, B, *D).

    S(k) = max(d(v[k-1], v[k]), d(v[k+1], v[k])) with d(a, b) = |a - b|^2 / |b|^2; 0 is straight.
    At the two ends only the neighbour that exists counts. |b|^2 counts as at least the rounding error of the largest of
    an image's velocities, so that a field that rests is straight where it stays at rest, and S is finite.
    """
    squares = torch.stack([_wide(v).flatten(1).square().sum(1) for v in velocities])
    changes = torch.stack([torch.zeros_like(squares[0]), *map(_change, velocities[:-1], velocities[1:])])
    behind, ahead = changes, torch.roll(changes, -1, 0)
    resting = squares.amax(0) * torch.finfo(squares.dtype).eps
    return torch.maximum(behind, ahead) / torch.maximum(squares, resting).clamp_min(torch.finfo(squares.dtype).tiny)


def _change(a: Tensor, b: Tensor) -> Tensor:
    """(B,) |a - b|^2 over everything but the batch; a pair at a time, since velocities may fill the memory."""
    return (_wide(a) - _wide(b)).flatten(1).square().sum(1)


def _wide(v: Tensor) -> Tensor:
    """In float32 at least: squares of halves overflow."""
    return v.to(torch.promote_types(v.dtype, torch.float32))


def pooled(straightness: Tensor, share: Share | None = None) -> Tensor:
    """(N,) one straightness for a batch: the mean over images of (N, B), and over those of the processes they share.

    A shared control needs one grid. The mean is the expected local error over the images that the control is
    for; the maximum would let a single photo spend the whole budget of intervals.
    """
    share = share or Share(straightness.shape[1])
    return share.total(straightness.T) / share.count


def nonuniform_grid(straightness: Tensor, xi: float) -> Grid:
    """The grid of Eq. 12 from (N,) straightness: go on from t_j until the steps passed have added up to xi.

    The step that starts an interval is simulated as it is, so what counts are the steps after it, which take
    over its velocity. xi = 0 is the full grid, xi = inf a single interval. Raises UsageError for xi < 0.
    """
    if not xi >= 0:
        raise UsageError(f"xi must be at least 0; got {xi}")
    starts, passed = [0], 0.0
    for k, s in enumerate(straightness.tolist()[1:], start=1):
        passed += s
        if passed >= xi:
            starts.append(k)
            passed = 0.0
    return Grid(tuple(starts), len(straightness))


def bounded_grid(straightness: Tensor, xi: float, intervals: int = FEWEST) -> Grid:
    """The grid of Eq. 12, with no interval longer than N / 5, or N / `intervals` where that is fewer.

    Where a flow is straight its velocity stays, but its Jacobian, which the gradient is made of, still turns.
    """
    grid = nonuniform_grid(straightness, xi)
    return grid.split(-(-grid.steps // min(FEWEST, intervals)))


def grid_of_size(straightness: Tensor, intervals: int) -> Grid:
    """`bounded_grid` with as many intervals as possible, `intervals` at most: xi found by bisection.

    A budget of intervals is a budget of time, which is easier to choose than xi.
    """
    if intervals >= len(straightness):
        return Grid.full(len(straightness))
    low, high = 0.0, float(straightness.sum())
    grid = bounded_grid(straightness, high * 2 + 1, intervals)
    for _ in range(50):
        middle = (low + high) / 2
        candidate = bounded_grid(straightness, middle, intervals)
        if len(candidate) > intervals:
            low = middle
        else:
            high, grid = middle, candidate
    return grid
