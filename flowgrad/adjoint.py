"""Gradients of the end of a trajectory with respect to its control and its start: chains of vector-Jacobian products.

Each product builds the graph of one evaluation of the network and frees it, so the memory for activations does not
grow with the number of steps; where the simulation has kept its activations, a product uses those. Equation numbers are
those of FlowGrad (Liu et al., CVPR 2023).
"""

from collections import deque
from collections.abc import Generator, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from flowgrad.ode import Control, Grid, Trajectory, positions
from flowgrad.velocity import Velocity, vjp

Knot = tuple[int, Tensor]  # a step and a value there


def control_gradient(velocity: Velocity, trajectory: Trajectory, grad_x1: Tensor, grid: Grid | None = None) -> Control:
    """dL/du on each step of the trajectory, for each image: values (N, B, *D), from dL/dx1 (B, *D).

    A step is x_{k+1} = x_k + (t_{k+1} - t_k) (v(x_k, t_k) + u_k), so dL/du_k = (t_{k+1} - t_k) g_{k+1} with g from
    Eq. 8. Residuals do not depend on the state and drop out.

    `grid` says where products are taken: one for each of its intervals. On the trajectory's own grid (the default) the
    gradient is exact for what was simulated; of `restrict(trajectory, grid)` it is Eq. 13. On a coarser grid it is of
    second order in the intervals' length, where Eq. 13 is of first.
    Raises UsageError if `grid` has a knot that the trajectory does not have.
    """
    spans = trajectory.grid.spans(grad_x1)
    gradient = grad_x1.new_empty(len(spans), *grad_x1.shape)
    chain = _costates(velocity, trajectory, grad_x1, grid)
    for k in reversed(range(len(spans))):  # the first step's control needs no product of that step
        torch.mul(next(chain), spans[k], out=gradient[k])
    return Control(gradient, trajectory.grid)


def products_at(trajectory: Grid, grid: Grid) -> set[int]:
    """The intervals of a trajectory's grid at which `control_gradient` on a coarser or equal `grid` takes products.

    Raises UsageError if `grid` has a knot that the trajectory's has not.
    """
    return {end - 1 for end in positions(trajectory, grid)[1:]} - {0}  # no control acts before the first interval


def latent_gradient(velocity: Velocity, trajectory: Trajectory, grad_x1: Tensor, grid: Grid | None = None) -> Tensor:
    """dL/dx0 (B, *D) from dL/dx1 (B, *D): the same chain to its end.

    Exact on the trajectory's own grid (the default), of second order in the intervals' length on a coarser one.
    Raises UsageError if `grid` has a knot that the trajectory does not have.
    """
    return _end(_costates(velocity, trajectory, grad_x1, grid))


def _costates(
    velocity: Velocity, trajectory: Trajectory, grad_x1: Tensor, grid: Grid | None = None
) -> Iterator[Tensor]:
    """g = dL/dx (B, *D) at each knot of the trajectory, from the last to the first (Eq. 8).

    g_k = g_{k+1} + (t_{k+1} - t_k) p_k, where p_k = g_{k+1} @ dv/dx(x_k, t_k) is a vector-Jacobian product. Towards
    t = 1 the Jacobian grows as -1 / (1 - t) where x leaves the data, and products at some steps say little of those
    between. What changes slowly is q_k = g_{k+1} + (1 - t_k) p_k, the product with the Jacobian of x + (1 - t) v, the
    estimate of the sample:

        g_k = g_{k+1} + r_k (q_k - g_{k+1}),    r_k = (t_{k+1} - t_k) / (1 - t_k).

    A product is taken at the last step of each interval of `grid`; between two of them q is a line. The costate that
    a product needs is predicted by continuing the line, and corrected once the product is known, which itself is kept:
    Adams' methods of order 2 in PEC mode (Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, III.1),
    in the form of exponential integrators (Hochbruck, Ostermann, Acta Numerica 2010), summed over the trajectory's own
    steps. The images of a batch do not interact, so one product serves them all.
    """
    ends = positions(trajectory.grid, trajectory.grid if grid is None else grid)
    knots, times, spans = trajectory.grid.knots, trajectory.grid.times(grad_x1), trajectory.grid.spans(grad_x1)
    wide = torch.zeros((), dtype=torch.float64)  # in lesser formats 1 - t is little more than rounding, near t = 1
    exact = 1 - trajectory.grid.times(wide)[:-1]
    left, rates = exact.to(grad_x1), (trajectory.grid.spans(wide) / exact).to(grad_x1)
    zero, one = left.new_zeros(()), left.new_ones(())

    def product(k: int, g: Tensor) -> Tensor:
        pullback = trajectory.pullbacks.pop(k, None)
        return pullback(g) if pullback else vjp(velocity, trajectory.states[k].to(g), times[k], g)

    def path(g: Tensor, steps: range, early: Knot, late: Knot) -> Generator[Tensor, None, Tensor]:
        for k in reversed(steps):
            g = g + rates[k] * (_line(early, late, knots[k]) - g)
            yield g
        return g

    g, p, before = grad_x1, None, None
    yield g
    for start, end in reversed(list(pairwise(ends))):
        last = end - 1
        p = product(last, g) if p is None else p
        here = (knots[last], g + left[last] * p)
        g = g + spans[last] * p
        yield g
        p, steps, line = None, range(start, last), (here, before or here)
        if start and steps:
            predicted = _end(path(g, steps, *line))
            p, knot = product(start - 1, predicted), knots[start - 1]
            q = predicted + left[start - 1] * p
            corrected = _end(path(g, steps, (knot, q), here))
            weight = _end(path(zero, steps, (knot, one), (here[0], zero)))  # of q in what is corrected, which is in q
            line = ((knot, q + (corrected - predicted) / (1 - weight)), here)
        g = yield from path(g, steps, *line)
        before = here


def _end(states: Iterator[Tensor]) -> Tensor:
    """The last of several, without keeping the others."""
    return deque(states, maxlen=1).pop()


def _line(early: Knot, late: Knot, knot: int) -> Tensor:
    """The line through two values; before the early one, continued as far again and then constant.

    Without that limit the line through two neighbours would be taken far beyond them on a grid of unequal intervals.
    """
    (a, q), (b, r) = early, late
    return q if a == b else q + max(-1.0, (knot - a) / (b - a)) * (r - q)
