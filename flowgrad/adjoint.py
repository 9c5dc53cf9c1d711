"""Gradients of the end of a trajectory with respect to its control and its start: chains of vector-Jacobian products.

Each product builds the graph of one evaluation of the network and frees it, so the memory for activations does not
grow with the number of steps. Equation numbers are those of FlowGrad (Liu et al., CVPR 2023).
"""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from flowgrad.ode import Control, Grid, Trajectory, positions
from flowgrad.velocity import Velocity, vjp


def pullback(velocity: Velocity, x: Tensor, t: Tensor, span: Tensor, g: Tensor) -> Tensor:
    """g @ d phi/dx for one interval, phi(x) = x + span v(x, t): (B, *D), the recursion of Eq. 8.

    The images of a batch do not interact, so one product serves them all.
    """
    return g + span * vjp(velocity, x, t, g)


def control_gradient(velocity: Velocity, trajectory: Trajectory, grad_x1: Tensor, grid: Grid | None = None) -> Control:
    """dL/du on each interval of `grid`, for each image: values (M, B, *D), from dL/dx1 (B, *D).

    On the trajectory's own grid (the default) this is the exact gradient of what was simulated: each interval is
    one Euler step, x_{j+1} = x_j + (t_{j+1} - t_j) (v(x_j, t_j) + u_j), so dL/du_j = (t_{j+1} - t_j) g_{j+1} with
    g from Eq. 8. Residuals do not depend on the state and drop out. Of `restrict(trajectory, grid)` it is Eq. 13.

    On a coarser grid the steps of an interval are gathered into one product too, but at the middle of their states,
    and g is averaged over them: first order in the interval's length as Eq. 13, with a smaller error at the same
    cost. Raises UsageError if `grid` has a knot that the trajectory does not have.
    """
    coarse = trajectory.grid if grid is None else grid
    ends, spans = positions(trajectory.grid, coarse), coarse.spans(grad_x1)
    gradient = grad_x1.new_empty(len(coarse), *grad_x1.shape)
    chain = _costates(velocity, trajectory, grad_x1, coarse)
    g = next(chain)
    for j in reversed(range(len(coarse))):
        steps = ends[j + 1] - ends[j]
        behind = (steps - 1) / (2 * steps)
        earlier = next(chain) if j or behind else g  # the first step's control needs no product
        torch.mul(torch.lerp(g, earlier, behind), spans[j], out=gradient[j])
        g = earlier
    return Control(gradient, coarse)


def latent_gradient(velocity: Velocity, trajectory: Trajectory, grad_x1: Tensor, grid: Grid | None = None) -> Tensor:
    """dL/dx0 (B, *D) from dL/dx1 (B, *D): the same chain, with one product more.

    Exact on the trajectory's own grid (the default), first order in the intervals' length on a coarser one.
    Raises UsageError if `grid` has a knot that the trajectory does not have.
    """
    chain = _costates(velocity, trajectory, grad_x1, trajectory.grid if grid is None else grid)
    return deque(chain, maxlen=1).pop()


def _costates(velocity: Velocity, trajectory: Trajectory, grad_x1: Tensor, grid: Grid) -> Iterator[Tensor]:
    """dL/dx (B, *D) at each knot of `grid`, from the last to the first (Eq. 8).

    Each interval's product is taken at the middle of the trajectory's states in it: of a single step, at its start.
    """
    ends = positions(trajectory.grid, grid)
    times, spans = trajectory.grid.times(grad_x1), grid.spans(grad_x1)
    g = grad_x1
    yield g
    for j in reversed(range(len(grid))):
        both = ends[j] + ends[j + 1]
        x, t = (torch.lerp(of[(both - 1) // 2], of[both // 2], 0.5).to(g) for of in (trajectory.states, times))
        g = pullback(velocity, x, t, spans[j], g)
        yield g
