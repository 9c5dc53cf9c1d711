"""Gradients of the end of a trajectory with respect to its control: a chain of vector-Jacobian products.

Each product builds the graph of one evaluation of the network and frees it, so memory for activations does not
grow with the number of steps. Equation numbers are those of FlowGrad (Liu et al., CVPR 2023).
"""

import torch
from torch import Tensor

from flowgrad.memory import Batched
from flowgrad.ode import Control, Grid, Trajectory, restrict
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

    On the trajectory's own grid (the default) this is the exact gradient of what was simulated. On a coarser one
    it is Eq. 13: every interval is one Euler step from the state at its start, x_{j+1} = x_j + (t_{j+1} - t_j)
    (v(x_j, t_j) + u_j), so dL/du_j = (t_{j+1} - t_j) g_{j+1}. Residuals do not depend on the state and drop out.
    """
    coarse = trajectory if grid is None else restrict(trajectory, grid)
    times, spans = coarse.grid.times(grad_x1), coarse.grid.spans(grad_x1)
    gradient, g = torch.empty_like(coarse.velocities), grad_x1
    for j in reversed(range(len(coarse.grid))):
        torch.mul(g, spans[j], out=gradient[j])
        if j:
            g = pullback(velocity, coarse.states[j], times[j], spans[j], g)
    return Control(gradient, coarse.grid)
