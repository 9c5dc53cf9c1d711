"""Gradients of the end of a trajectory with respect to its control: a chain of vector-Jacobian products.

Each product builds the graph of one evaluation of the network and frees it, so memory for activations does not
grow with the number of steps. Equation numbers are those of FlowGrad (Liu et al., CVPR 2023).
"""

import torch
from torch import Tensor

from flowgrad.memory import Batched
from flowgrad.ode import Control, Grid, Trajectory, positions
from flowgrad.velocity import Velocity


def pullback(velocity: Velocity, x: Tensor, t: Tensor, span: Tensor, g: Tensor) -> Tensor:
    """g @ d phi/dx for one interval, phi(x) = x + span v(x, t): (B, *D), the recursion of Eq. 8.

    The images of a batch do not interact, so one product serves them all.
    """
    product = velocity.measure(_product, x, t, g) if isinstance(velocity, Batched) else _product(velocity, x, t, g)
    return g + span * product


def _product(velocity: Velocity, x: Tensor, t: Tensor, *more: Tensor) -> Tensor:
    """g @ dv/dx (B, *D)."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        v = velocity(leaf, t)
    return torch.autograd.grad(v, leaf, more[0])[0]


def control_gradient(velocity: Velocity, trajectory: Trajectory, grad_x1: Tensor, grid: Grid | None = None) -> Control:
    """dL/du on each interval of `grid`, for each image: values (M, B, *D), from dL/dx1 (B, *D).

    On the trajectory's own grid (the default) this is the exact gradient of what was simulated: each interval is
    one Euler step, x_{j+1} = x_j + (t_{j+1} - t_j) (v(x_j, t_j) + u_j), so dL/du_j = (t_{j+1} - t_j) g_{j+1} with
    g from Eq. 8. Residuals do not depend on the state and drop out. Of `restrict(trajectory, grid)` it is Eq. 13.

    On a coarser grid the steps of an interval are gathered into one product too, but at the middle of their states,
    and g is averaged over them: first order in the interval's length as Eq. 13, with a smaller error at the same
    cost. Raises UsageError if `grid` has a knot that the trajectory has not.
    """
    coarse = trajectory.grid if grid is None else grid
    ends = positions(trajectory.grid, coarse)
    times, spans = trajectory.grid.times(grad_x1), coarse.spans(grad_x1)
    gradient, g = grad_x1.new_empty(len(coarse), *grad_x1.shape), grad_x1
    for j in reversed(range(len(coarse))):
        steps, both = ends[j + 1] - ends[j], ends[j] + ends[j + 1]
        behind = (steps - 1) / (2 * steps)
        x, t = (torch.lerp(of[(both - 1) // 2], of[both // 2], 0.5).to(g) for of in (trajectory.states, times))
        earlier = pullback(velocity, x, t, spans[j], g) if j or behind else g
        torch.mul(torch.lerp(g, earlier, behind), spans[j], out=gradient[j])
        g = earlier
    return Control(gradient, coarse)
