"""Gradients of the chain, against autograd through the unrolled solver and finite differences, in float64."""

import pytest
import torch

from flowgrad.adjoint import control_gradient, latent_gradient, pullback
from flowgrad.ode import Control, Grid, anchor, integrate, invert, restrict
from tests.flowgrad.test_ode import GRIDS, random_control


def unrolled(field, x0, grid, values, residual=None):
    """Eq. 7 written out with autograd's graph through every step."""
    x, times, spans = x0, grid.times(x0), grid.spans(x0)
    for j in range(len(grid)):
        r = 0 if residual is None else residual[j]
        x = x + spans[j] * (field(x, times[j]) + r + values[j])
    return x


def loss(x1):
    weights = torch.linspace(-1, 1, x1.numel(), dtype=x1.dtype).view_as(x1)
    return (weights * x1.sin()).sum()


def grad_of_loss(x1):
    leaf = x1.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_chains_are_the_gradients_of_the_unrolled_solver(field, x0, grid, batch):
    u = random_control(grid, x0, batch)
    residual = 0.1 * random_control(grid, x0, 2).values
    trajectory = integrate(field, x0, grid, u, residual)
    g = grad_of_loss(trajectory.x1)
    ours = control_gradient(field, trajectory, g).values
    ours = ours if batch == 2 else ours.sum(1, keepdim=True)
    values, start = u.values.clone().requires_grad_(), x0.clone().requires_grad_()
    expected = torch.autograd.grad(loss(unrolled(field, start, grid, values, residual)), (values, start))
    assert (ours - expected[0]).abs().max() < 1e-10
    assert (latent_gradient(field, trajectory, g) - expected[1]).abs().max() < 1e-10


@pytest.mark.parametrize("grid", GRIDS)
def test_the_chains_agree_with_finite_differences(field, x0, grid):
    u, step = random_control(grid, x0), 1e-5
    probe, shift = random_control(grid, x0.flip(2)).values, x0.flip(3)

    def slope(of_control, of_start):
        """The derivative of the loss along a direction of the control and of the start."""
        ends = [
            integrate(field, x0 + s * of_start, grid, Control(u.values + s * of_control, grid)).x1
            for s in (step, -step)
        ]
        return (loss(ends[0]) - loss(ends[1])).item() / (2 * step)

    trajectory = integrate(field, x0, grid, u)
    g = grad_of_loss(trajectory.x1)
    gradient = control_gradient(field, trajectory, g).values.sum(1, keepdim=True)
    assert (gradient * probe).sum().item() == pytest.approx(slope(probe, 0), rel=1e-6)
    assert (latent_gradient(field, trajectory, g) * shift).sum().item() == pytest.approx(slope(0, shift), rel=1e-6)


@pytest.mark.parametrize("grid", GRIDS[1:])
def test_eq_13_is_the_gradient_of_the_anchored_coarse_solver(field, x0, grid):
    """Back-propagation from the restricted trajectory: exact for the coarse steps that pass through the fine states."""
    fine = integrate(field, x0, Grid.full(12))
    ours = control_gradient(field, restrict(fine, grid), grad_of_loss(fine.x1))
    residual = anchor(restrict(fine, grid))
    values = torch.zeros(len(grid), 2, *x0.shape[1:], dtype=x0.dtype, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(unrolled(field, x0, grid, values, residual)), values)
    assert ours.grid == grid
    assert (ours.values - expected).abs().max() < 1e-10


def coarse_error(field, x0, intervals, restricted):
    """How far the gradient per unit of time on equal intervals is from that of 256 steps, averaged over each."""
    fine, grid = integrate(field, x0, Grid.full(256)), Grid.uniform(256, intervals)
    g = grad_of_loss(fine.x1)
    exact = Control(256 * control_gradient(field, fine, g).values, fine.grid).on(grid).values
    found = control_gradient(field, restrict(fine, grid), g) if restricted else control_gradient(field, fine, g, grid)
    return float((intervals * found.values - exact).abs().max())


def test_on_a_coarser_grid_the_gradient_converges_with_a_smaller_error_than_eq_13(field, x0):
    ours, plain = ([coarse_error(field, x0, m, restricted) for m in (8, 32)] for restricted in (False, True))
    assert plain[0] / plain[1] == pytest.approx(4, rel=0.3)
    assert ours[0] / ours[1] > 3
    assert ours[0] < plain[0] / 2


def test_on_a_coarser_grid_the_gradient_of_the_latent_converges(field, x0):
    fine = integrate(field, x0, Grid.full(256))
    g = grad_of_loss(fine.x1)
    exact = latent_gradient(field, fine, g)
    errors = [(latent_gradient(field, fine, g, Grid.uniform(256, m)) - exact).abs().max() for m in (8, 32)]
    assert errors[0] / errors[1] > 3


def test_on_a_straight_flow_a_single_interval_is_exact(x0):
    """A constant field has nothing to gain from more steps: the coarse gradient, re-assigned, is the fine one."""
    fine = integrate(lambda x, t: 0 * x + 1, x0, Grid.full(12))
    g = grad_of_loss(fine.x1)
    full = control_gradient(lambda x, t: 0 * x + 1, fine, g)
    coarse = control_gradient(lambda x, t: 0 * x + 1, fine, g, Grid((0,), 12))
    torch.testing.assert_close(full.values.sum(0), coarse.values[0])


def test_pullback_is_the_vector_jacobian_product(field, x0):
    t, span, g = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64), x0.cos()
    jacobian = torch.autograd.functional.jacobian(lambda x: x + span * field(x, t), x0[:1]).view(48, 48)
    torch.testing.assert_close(pullback(field, x0[:1], t, span, g[:1]).flatten(), g[0].flatten() @ jacobian)


def test_gradients_batched_equal_one_by_one(field, x0):
    both = invert(field, x0, 12)
    alone = [invert(field, x0[i : i + 1], 12) for i in range(2)]
    g = x0.cos()
    parts = [control_gradient(field, alone[i], g[i : i + 1]).values for i in range(2)]
    torch.testing.assert_close(control_gradient(field, both, g).values, torch.cat(parts, 1))


def test_no_graph_outlives_an_interval(x0):
    """Activations do not pile up: at most one evaluation's saved tensors are alive at any time, whatever N."""
    alive, most = 0, 0

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            nonlocal alive, most
            alive, most = alive + 1, max(most, alive + 1)
            ctx.guard = Guard()
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    class Guard:
        def __del__(self):
            nonlocal alive
            alive -= 1

    def field(x, t):
        return Watched.apply(x) if x.requires_grad else x

    trajectory = integrate(field, x0, Grid.full(40))
    control_gradient(field, trajectory, x0)
    assert most == 1
