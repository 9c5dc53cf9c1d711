"""Gradients of the chain, against autograd through the unrolled solver and finite differences, in float64."""

from functools import partial

import pytest
import torch

from flowgrad.adjoint import control_gradient, latent_gradient, products_at
from flowgrad.ode import Control, Grid, anchor, integrate, invert, restrict
from flowgrad.velocity import vjp
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


def uneven(intervals):
    """Intervals of 256 steps in turns of one length and of three times that."""
    unit = 256 // (2 * intervals)
    return Grid(tuple(2 * unit * j + (unit if j % 2 else 0) for j in range(intervals)), 256)


def coarse_errors(field, x0, grid):
    """How far dL/du per unit of time is from that of 256 steps, at worst: ours, and by Eq. 13 on the same grid."""
    fine = integrate(field, x0, Grid.full(256))
    g = grad_of_loss(fine.x1)
    exact = 256 * control_gradient(field, fine, g).values
    ours = 256 * control_gradient(field, fine, g, grid).values
    coarse = control_gradient(field, restrict(fine, grid), g)
    plain = Control(coarse.values / grid.spans_of(coarse.values), grid).expand()
    return tuple(float((found - exact).abs().max()) for found in (ours, plain))


@pytest.mark.parametrize("gather", [partial(Grid.uniform, 256), uneven])
def test_on_a_coarser_grid_the_gradient_is_of_second_order_where_eq_13_is_of_first(field, x0, gather):
    few, many = (coarse_errors(field, x0, gather(intervals)) for intervals in (16, 32))
    assert few[0] / many[0] == pytest.approx(4, rel=0.25)
    assert few[1] / many[1] == pytest.approx(2, rel=0.25)
    assert few[0] < few[1] / 4


def test_on_a_coarser_grid_the_gradient_of_the_latent_is_of_second_order(field, x0):
    fine = integrate(field, x0, Grid.full(256))
    g = grad_of_loss(fine.x1)
    exact = latent_gradient(field, fine, g)
    errors = [(latent_gradient(field, fine, g, Grid.uniform(256, m)) - exact).abs().max() for m in (16, 32)]
    assert errors[0] / errors[1] > 3


@pytest.mark.parametrize("starts", [(0, 255), (0, 128, 254, 255), (0, 1, 2, 200), (0, 3, 4, 128, 129, 250)])
def test_on_intervals_of_very_different_lengths_it_is_not_worse_than_eq_13(field, x0, starts):
    ours, plain = coarse_errors(field, x0, Grid(starts, 256))
    assert ours < plain


@pytest.mark.parametrize(("grid", "expected"), [(None, 11), (Grid.full(12), 11), (Grid.uniform(12, 4), 4)])
def test_each_interval_takes_one_product(field, x0, grid, expected):
    """But for that of the first step, which its own control does not need."""
    fine, taken = integrate(field, x0, Grid.full(12)), []

    class Counted:
        def vjp(self, x, t, g):
            taken.append(round(12 * float(t)))
            return vjp(field, x, t, g)

    control_gradient(Counted(), fine, x0, grid)
    assert len(taken) == expected
    assert taken == sorted(end - 1 for end in (grid or fine.grid).knots[1:] if end > 1)[::-1], "at the intervals' ends"
    latent_gradient(Counted(), fine, x0, grid)
    assert len(taken) == expected + len(grid or fine.grid)


@pytest.mark.parametrize("grid", [Grid.full(12), Grid.uniform(12, 4), Grid((0, 1, 2, 7, 11), 12)])
def test_kept_activations_give_the_same_bits_without_another_evaluation(field, x0, grid):
    evaluated = []

    def counted(x, t):
        evaluated.append(t)
        return field(x, t)

    plain, kept = integrate(field, x0, Grid.full(12)), products_at(Grid.full(12), grid)
    fine = integrate(counted, x0, Grid.full(12), kept=kept)
    assert torch.equal(fine.states, plain.states) and not fine.velocities.requires_grad
    first = control_gradient(counted, fine, x0, grid)
    assert len(evaluated) == 12, "each of the activations is there for its product"
    assert torch.equal(first.values, control_gradient(field, plain, x0, grid).values)
    assert not fine.pullbacks, "and gone after it"
    assert torch.equal(control_gradient(counted, fine, x0, grid).values, first.values)
    assert len(evaluated) == 12 + len(kept), "so that a second gradient computes them anew"


def test_on_a_straight_flow_a_single_interval_is_exact(x0):
    """A constant field has nothing to gain from more steps."""
    fine = integrate(lambda x, t: 0 * x + 1, x0, Grid.full(12))
    g = grad_of_loss(fine.x1)
    full = control_gradient(lambda x, t: 0 * x + 1, fine, g)
    coarse = control_gradient(lambda x, t: 0 * x + 1, fine, g, Grid((0,), 12))
    torch.testing.assert_close(full.values, coarse.values)


@pytest.mark.parametrize("grid", [Grid.full(12), Grid.uniform(12, 5), Grid((0, 1, 2, 7, 11), 12)])
def test_gradients_batched_equal_one_by_one(field, x0, grid):
    both = invert(field, x0, 12)
    alone = [invert(field, x0[i : i + 1], 12) for i in range(2)]
    g = x0.cos()
    parts = [control_gradient(field, alone[i], g[i : i + 1], grid).values for i in range(2)]
    torch.testing.assert_close(control_gradient(field, both, g, grid).values, torch.cat(parts, 1))


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
