"""Grids, controls and solvers, against closed forms, orders of convergence and round trips."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.ode import Control, Grid, anchor, integrate, invert, restrict, total

GRIDS = [Grid.full(12), Grid.uniform(12, 5), Grid((0, 1, 2, 7, 11), 12), Grid((0,), 12)]


def random_control(grid, x, batch=1):
    values = torch.randn(len(grid), batch, *x.shape[1:], generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    return Control(values, grid)


@pytest.mark.parametrize("starts", [(), (1,), (0, 0), (0, 3, 2), (0, 12)])
def test_grid_rejects_what_does_not_cover_the_steps(starts):
    with pytest.raises(UsageError, match="begin with 0 and increase below N = 12"):
        Grid(starts, 12)


@pytest.mark.parametrize("grid", GRIDS)
def test_intervals_cover_the_steps_exactly(grid, x0):
    assert sum(grid.lengths) == 12
    assert grid.times(x0)[0] == 0
    assert grid.times(x0)[-1] == 1
    assert grid.spans(x0).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("closed", "expected"),
    [(lambda x, t: torch.full_like(x, 2.0), lambda x: x + 2), (lambda x, t: -x, lambda x: x * 0.9**10)],
)
def test_fields_with_a_closed_form(x0, closed, expected):
    torch.testing.assert_close(integrate(closed, x0, Grid.full(10)).x1, expected(x0))


def test_control_is_added_to_the_velocity(x0):
    grid = Grid((0, 3), 10)
    u = random_control(grid, x0)
    end = integrate(lambda x, t: torch.zeros_like(x), x0, grid, u).x1
    torch.testing.assert_close(end, x0 + 0.3 * u.values[0] + 0.7 * u.values[1])


def slope(errors, steps):
    """Order of convergence: minus the slope of log error against log N."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def test_euler_there_and_back_converges_with_order_one(field, x0):
    steps = [16, 32, 64, 128]
    ends = [integrate(field, x0, Grid.full(n)).x1 for n in (*steps, 256)]
    forward = [(a - b).abs().max().item() for a, b in pairwise(ends)]
    assert slope(forward, steps) == pytest.approx(1, abs=0.1)
    assert slope([round_trip(field, x0, n) for n in steps], steps) == pytest.approx(1, abs=0.1)


def round_trip(field, x0, steps, *method):
    """The error of inverting x0 and simulating again."""
    return (integrate(field, invert(field, x0, steps, *method).x0, Grid.full(steps)).x1 - x0).abs().max().item()


def test_more_fixed_point_iterations_come_closer(field, x0):
    errors = [round_trip(field, x0, 50, "fixed-point", iterations) for iterations in (1, 2, 4, 6)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-5


def test_rk45_inverts_the_exact_flow_at_no_time_beyond_0_and_1(x0):
    asked = []

    def recording(x, t):
        asked.append(float(t))
        return -x

    assert (invert(recording, x0 / math.e, 10, "rk45").x0 - x0).abs().max() < 1e-4
    assert min(asked) == 0 and max(asked) == 1


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", ["euler", "fixed-point", "rk45"])
def test_an_anchored_trajectory_returns_on_any_grid(field, x0, grid, method):
    coarse = restrict(invert(field, x0, 12, method), grid)
    again = integrate(field, coarse.x0, grid, residual=anchor(coarse))
    assert (again.x1 - x0).abs().max() < 1e-12
    torch.testing.assert_close(again.states, coarse.states)


@pytest.mark.parametrize("grid", GRIDS)
def test_photos_can_be_inverted_on_a_coarse_grid(field, x0, grid):
    inverted = invert(field, x0, grid)
    assert inverted.grid == grid
    assert (integrate(field, inverted.x0, grid, residual=anchor(inverted)).x1 - x0).abs().max() < 1e-12
    if grid == Grid.full(12):
        torch.testing.assert_close(inverted.states, invert(field, x0, 12).states)


def test_velocities_are_those_at_the_start_of_each_interval(field, x0):
    for trajectory in (integrate(field, x0, Grid.full(6)), invert(field, x0, 6), invert(field, x0, 6, "rk45")):
        times = trajectory.grid.times(x0)
        for k in range(6):
            torch.testing.assert_close(trajectory.velocities[k], field(trajectory.states[k], times[k]))


def test_batched_equals_one_by_one(field, x0):
    both = invert(field, x0, 8).states
    alone = torch.cat([invert(field, x0[i : i + 1], 8).states for i in range(2)], dim=1)
    torch.testing.assert_close(both, alone)


@pytest.mark.parametrize("grid", GRIDS)
def test_expand_and_compact_lose_nothing(grid, x0):
    u = random_control(grid, x0)
    full = Control(u.expand(), Grid.full(12))
    assert full.compact().grid == grid
    assert torch.equal(full.compact().values, u.values)
    assert torch.equal(u.on(Grid.full(12)).values, u.expand())


def test_on_a_coarser_grid_the_displacement_is_kept(x0):
    u = random_control(Grid((0, 1, 2, 7, 11), 12), x0)
    for grid in GRIDS:
        moved = (u.on(grid).values * grid.spans(x0).view(-1, 1, 1, 1, 1)).sum(0)
        torch.testing.assert_close(moved, (u.values * u.grid.spans(x0).view(-1, 1, 1, 1, 1)).sum(0))


def test_controls_scale_and_add(x0):
    a, b = random_control(GRIDS[1], x0), random_control(GRIDS[2], x0) * -0.5
    torch.testing.assert_close((a + b).expand(), a.expand() + b.expand())
    torch.testing.assert_close(total([a, 2 * a]).values, 3 * a.values)


def test_what_does_not_fit_together_is_refused(field, x0):
    u = random_control(GRIDS[0], x0)
    with pytest.raises(UsageError, match=r"one of euler, fixed-point, rk45; got 'ddim'"):
        invert(field, x0, 8, "ddim")
    with pytest.raises(FlowgradError, match="shape, dtype and device of x"):
        integrate(lambda x, t: x[:, :1], x0, Grid.full(2))
    with pytest.raises(UsageError, match="N = 12 steps cannot be used with N = 10"):
        u.on(Grid.full(10))
    with pytest.raises(UsageError, match="N = 12 and N = 10"):
        _ = u + random_control(Grid.full(10), x0)
    with pytest.raises(UsageError, match="M = 12"):
        Control(x0, GRIDS[0])
    with pytest.raises(UsageError, match=r"no state at steps \[1\]"):
        restrict(integrate(field, x0, Grid((0, 3), 12)), Grid((0, 1), 12))


def test_times_are_fractions_not_sums():
    assert Grid.full(10).times(torch.zeros(1, dtype=torch.float64)).tolist() == [k / 10 for k in range(11)]


def test_a_grid_is_moved_onto_another() -> None:
    assert Grid((0, 3, 9, 11), 20).onto(Grid.uniform(20, 5)) == Grid((0, 4, 8, 12), 20)
    assert Grid((0, 1, 2, 10), 20).onto(Grid.uniform(20, 5)) == Grid((0, 8), 20), "knots that meet are one"
