"""Time grids, controls and trajectories of the ODE dx/dt = v(x, t) + u(t), forwards and backwards.

Notation: N Euler steps of length 1/N; a grid gathers them into M <= N intervals [t_j, t_{j+1}].
States are (B, *D), controls (M, 1 or B, *D): a batch of one means that all images share them.
Equation numbers are those of FlowGrad (Liu et al., CVPR 2023).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import pairwise
from operator import add

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.velocity import Pullback, Velocity, checked, linearized

INVERSIONS = ("euler", "fixed-point", "rk45")


@dataclass(frozen=True)
class Grid:
    """N Euler steps gathered into M intervals, given by the first step of each.

    Raises UsageError unless `starts` begins with 0, increases and stays below `steps`.
    """

    starts: tuple[int, ...]
    steps: int

    def __post_init__(self) -> None:
        knots = (*self.starts, self.steps)
        if not self.starts or self.starts[0] != 0 or any(b <= a for a, b in pairwise(knots)):
            raise UsageError(
                f"a grid's starts must begin with 0 and increase below N = {self.steps}; got {self.starts}"
            )

    @classmethod
    def full(cls, steps: int) -> "Grid":
        """Every Euler step its own interval."""
        return cls(tuple(range(steps)), steps)

    @classmethod
    def uniform(cls, steps: int, intervals: int) -> "Grid":
        """`intervals` intervals of equal length, to the nearest step; N at most."""
        intervals = min(intervals, steps)
        return cls(tuple(round(j * steps / intervals) for j in range(intervals)), steps)

    @property
    def knots(self) -> tuple[int, ...]:
        """The M + 1 ends of the intervals, in steps: 0 ... N."""
        return (*self.starts, self.steps)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The Euler steps in each interval; they sum to N."""
        return tuple(b - a for a, b in pairwise(self.knots))

    def __len__(self) -> int:
        return len(self.starts)

    def __or__(self, other: "Grid") -> "Grid":
        """The coarsest grid with the knots of both."""
        if self.steps != other.steps:
            raise UsageError(f"grids of N = {self.steps} and N = {other.steps} steps cannot be joined: use one N")
        return Grid(tuple(sorted({*self.starts, *other.starts})), self.steps)

    def onto(self, other: "Grid") -> "Grid":
        """This grid with every knot moved to the nearest of another's; knots that meet are one."""
        nearest = {min(other.starts, key=lambda start: abs(start - own)) for own in self.starts}
        return Grid(tuple(sorted(nearest)), self.steps)

    def split(self, longest: int) -> "Grid":
        """Every interval of more than `longest` steps divided into equal ones of `longest` at most."""
        parts = [-(-length // longest) for length in self.lengths]
        triples = zip(self.starts, self.lengths, parts, strict=True)
        return Grid(tuple(a + round(i * length / n) for a, length, n in triples for i in range(n)), self.steps)

    def times(self, like: Tensor) -> Tensor:
        """(M + 1,) times t_j = k/N, from 0 to 1, computed in float64, on the device and in the dtype of `like`."""
        return (torch.tensor(self.knots, dtype=torch.float64) / self.steps).to(like)

    def spans(self, like: Tensor) -> Tensor:
        """(M,) lengths of the intervals in time, t_{j+1} - t_j; they sum to 1."""
        return (torch.tensor(self.lengths, dtype=torch.float64) / self.steps).to(like)

    def spans_of(self, values: Tensor) -> Tensor:
        """The same as (M, 1, ...), to multiply values (M, B, *D) by."""
        return self.spans(values).view(-1, *[1] * (values.ndim - 1))


@dataclass(frozen=True)
class Control:
    """A control that is constant on each interval of a grid, in units of dx/dt: values (M, 1 or B, *D).

    Raises UsageError if there is not one value per interval.
    """

    values: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if self.values.ndim < 2 or len(self.values) != len(self.grid):
            raise UsageError(
                f"a control needs values (M, 1 or B, *D) with M = {len(self.grid)}; got {tuple(self.values.shape)}"
            )

    @classmethod
    def zeros(cls, grid: Grid, like: Tensor, shared: bool = True) -> "Control":
        """No control, for states shaped as `like` (B, *D): one for all images, or one for each."""
        batch = 1 if shared else len(like)
        return cls(like.new_zeros(len(grid), batch, *like.shape[1:]), grid)

    def __mul__(self, strength: float) -> "Control":
        return replace(self, values=self.values * strength)

    __rmul__ = __mul__

    def __add__(self, other: "Control") -> "Control":
        """The sum, on the union of the two grids: nothing is lost."""
        grid = self.grid | other.grid
        return Control(self.on(grid).values + other.on(grid).values, grid)

    def on(self, grid: Grid) -> "Control":
        """This control on another grid: each interval takes the mean over the steps it covers.

        Exact where the other grid is finer; the same displacement in total, sum of h u, in any case.
        Raises UsageError if N differs.
        """
        if grid == self.grid:
            return self
        if grid.steps != self.grid.steps:
            raise UsageError(f"a control made for N = {self.grid.steps} steps cannot be used with N = {grid.steps}")
        weights = torch.tensor(_overlaps(grid, self.grid), dtype=torch.float64).to(self.values)
        return Control(torch.einsum("ij,j...->i...", weights, self.values), grid)

    def expand(self) -> Tensor:
        """(N, 1 or B, *D): the control of every Euler step."""
        return self.values.repeat_interleave(torch.tensor(self.grid.lengths, device=self.values.device), dim=0)

    def compact(self) -> "Control":
        """The same function of time on the coarsest grid: equal neighbours become one interval."""
        new = (self.values[1:] != self.values[:-1]).flatten(1).any(1)
        kept = [0, *(j + 1 for j, differs in enumerate(new.tolist()) if differs)]
        return Control(self.values[kept], Grid(tuple(self.grid.starts[j] for j in kept), self.grid.steps))


def _overlaps(target: Grid, source: Grid) -> list[list[float]]:
    """(M', M) shares of each interval of `target` that lie in each interval of `source`; rows sum to 1."""

    def share(a: int, b: int, c: int, d: int) -> float:
        return max(0, min(b, d) - max(a, c)) / (b - a)

    return [[share(*interval, *other) for other in pairwise(source.knots)] for interval in pairwise(target.knots)]


@dataclass(frozen=True)
class Trajectory:
    """States at the knots of a grid, and the model's velocity where each interval starts.

    states: (M + 1, B, *D); velocities: (M, B, *D), v(x_j, t_j) without residual and control; pullbacks: those of
    intervals j whose activations are kept, each for one vector-Jacobian product.
    """

    states: Tensor
    velocities: Tensor
    grid: Grid
    pullbacks: dict[int, Pullback] = field(default_factory=dict)

    @property
    def x0(self) -> Tensor:
        """(B, *D) latents at t = 0."""
        return self.states[0]

    @property
    def x1(self) -> Tensor:
        """(B, *D) samples at t = 1."""
        return self.states[-1]


@dataclass(frozen=True)
class Store:
    """Where a trajectory is kept: by default on the device, and its velocities in the dtype, of its states.

    States keep their dtype: the field amplifies their rounding errors, and an anchored pass would not return.
    """

    device: str | None = None
    dtype: torch.dtype | None = None

    def empty(self, x: Tensor, grid: Grid) -> Trajectory:
        """Room for the trajectory of states as x (B, *D) on a grid."""
        states = x.new_empty((len(grid) + 1, *x.shape), device=self.device)
        velocities = x.new_empty((len(grid), *x.shape), device=self.device, dtype=self.dtype)
        return Trajectory(states, velocities, grid)


IN_PLACE = Store()


@torch.no_grad()
def integrate(
    velocity: Velocity,
    x0: Tensor,
    grid: Grid,
    control: Control | None = None,
    residual: Tensor | None = None,
    store: Store = IN_PLACE,
    kept: Collection[int] = (),
) -> Trajectory:
    """Simulate Eq. 7 on a grid: x_{j+1} = x_j + (t_{j+1} - t_j) (v(x_j, t_j) + r_j + u_j).

    x0: (B, *D). `control` is brought to `grid`; `residual` (M, B, *D) anchors the trajectory (see `anchor`).
    kept: intervals j whose activations are kept for a vector-Jacobian product, which then costs half (see
    `flowgrad.adjoint.products_at`); the memory grows with their number.
    Raises FlowgradError if the velocity breaks its contract.
    """
    trajectory = store.empty(x0, grid)
    times, spans = grid.times(x0), grid.spans(x0)
    u = None if control is None else control.on(grid).values
    x = x0
    trajectory.states[0].copy_(x0)
    for j in range(len(grid)):
        if j in kept:
            v, trajectory.pullbacks[j] = linearized(velocity, x, times[j])
        else:
            v = velocity(x, times[j])
        trajectory.velocities[j].copy_(checked(v, x))
        for extra in (residual, u):
            v = v if extra is None else v + extra[j]
        x = x + spans[j] * v
        trajectory.states[j + 1].copy_(x)
    return trajectory


def invert(
    velocity: Velocity,
    x1: Tensor,
    grid: Grid | int,
    method: str = "euler",
    iterations: int = 2,
    store: Store = IN_PLACE,
) -> Trajectory:
    """Simulate the ODE backwards from x1 (B, *D), on a grid, or on N equal steps.

    method: "euler", reverse Euler of Eq. 5, first order; "fixed-point", `iterations` iterations towards the x_k
    from which a forward Euler step leads to x_{k+1}; "rk45", Dormand-Prince with adaptive steps (torchdiffeq).
    Raises UsageError for another method.
    """
    grid = Grid.full(grid) if isinstance(grid, int) else grid
    if method not in INVERSIONS:
        raise UsageError(f"inversion must be one of {', '.join(INVERSIONS)}; got {method!r}")
    if method == "rk45":
        return _invert_rk45(velocity, x1, store.empty(x1, grid))
    return _invert_fixed_point(velocity, x1, store.empty(x1, grid), 1 if method == "euler" else iterations)


@torch.no_grad()
def _invert_fixed_point(velocity: Velocity, x1: Tensor, trajectory: Trajectory, iterations: int) -> Trajectory:
    """Solve x_k + h v(x_k, t_k) = x_{k+1} for x_k; the first iterate alone is reverse Euler (Eq. 5)."""
    times, spans = trajectory.grid.times(x1), trajectory.grid.spans(x1)
    trajectory.states[-1].copy_(x1)
    x, v = x1, checked(velocity(x1, times[-1]), x1)
    for k in reversed(range(len(trajectory.grid))):
        after = x
        for _ in range(iterations):
            x = after - spans[k] * v
            v = velocity(x, times[k])
        trajectory.states[k].copy_(x)
        trajectory.velocities[k].copy_(v)
    return trajectory


@torch.no_grad()
def _invert_rk45(velocity: Velocity, x1: Tensor, trajectory: Trajectory, tolerance: float = 1e-5) -> Trajectory:
    """Backwards by torchdiffeq's dopri5, read off at the knots; `trajectory` is filled."""
    from torchdiffeq import odeint

    times = trajectory.grid.times(x1)

    def field(t: Tensor, x: Tensor) -> Tensor:
        return velocity(x, t.clamp(0, 1))  # the solver ends exactly at t = 0, but its first probe may reach beyond

    options = {"rtol": tolerance, "atol": tolerance, "options": {"step_t": times[:1]}}
    states = odeint(field, x1, times.flip(0), method="dopri5", **options)
    trajectory.states.copy_(states.flip(0))
    for k in range(len(trajectory.grid)):
        x = trajectory.states[k].to(x1)
        trajectory.velocities[k].copy_(checked(velocity(x, times[k]), x))
    return trajectory


def positions(fine: Grid, coarse: Grid) -> list[int]:
    """Where the knots of `coarse` lie among those of `fine`. Raises UsageError if one does not."""
    position = {knot: j for j, knot in enumerate(fine.knots)}
    if missing := [knot for knot in coarse.knots if knot not in position]:
        raise UsageError(f"the trajectory has no state at steps {missing}: choose a grid among its knots")
    return [position[knot] for knot in coarse.knots]


def restrict(trajectory: Trajectory, grid: Grid) -> Trajectory:
    """The states and velocities of a fine trajectory at the knots of a coarser grid.

    Raises UsageError if `grid` has a knot that the trajectory has not.
    """
    if grid == trajectory.grid:
        return trajectory
    chosen = positions(trajectory.grid, grid)
    return Trajectory(trajectory.states[chosen], trajectory.velocities[chosen[:-1]], grid)


def anchor(trajectory: Trajectory) -> Tensor:
    """(M, B, *D) residuals r_j = (X_{j+1} - X_j) / (t_{j+1} - t_j) - v(X_j, t_j).

    With them the forward pass returns the trajectory's own end on any grid, however coarse; a control
    is then a deviation from it.
    """
    return trajectory.states.diff(dim=0) / trajectory.grid.spans_of(trajectory.states) - trajectory.velocities


def total(controls: Iterable[Control]) -> Control:
    """The sum of one or more controls, on the union of their grids. Raises UsageError for none."""
    if not (summands := list(controls)):
        raise UsageError("a sum of controls needs at least one")
    return reduce(add, summands)


def require_finite(x: Tensor, what: str) -> Tensor:
    """Return x, or raise FlowgradError naming `what` if it has a NaN or an infinity."""
    if not bool(torch.isfinite(x).all()):
        raise FlowgradError(f"{what} is not finite: lower the step size or the strength, or use float32")
    return x
