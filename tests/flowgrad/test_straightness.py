"""Straightness and non-uniform grids, against closed forms and the published implementation."""

import json

import pytest
import torch
from safetensors.torch import load_file

from flowgrad.errors import UsageError
from flowgrad.ode import Grid, integrate
from flowgrad.straightness import bounded_grid, grid_of_size, nonuniform_grid, pooled, straightness


def test_each_step_takes_its_worse_neighbour():
    v = torch.tensor([1.0, 2.0, 4.0, 5.0]).view(4, 1, 1)
    expected = [1.0, max(1, 4) / 4, max(4, 1) / 16, 1 / 25]
    assert straightness(v).flatten().tolist() == pytest.approx(expected)
    assert straightness(torch.ones(7, 2, 3)).abs().max() == 0, "a straight trajectory has none"
    assert straightness(torch.ones(1, 2, 3)).tolist() == [[0, 0]], "a single step has no neighbour"


def test_images_do_not_mix():
    v = torch.randn(9, 3, 5, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([straightness(v[:, i : i + 1]) for i in range(3)], dim=1)
    torch.testing.assert_close(straightness(v), alone)
    torch.testing.assert_close(pooled(straightness(v)), alone.mean(1))


def test_xi_zero_is_the_full_grid_and_infinity_a_single_interval():
    s = torch.rand(20, generator=torch.Generator().manual_seed(0))
    assert nonuniform_grid(s, 0) == Grid.full(20)
    assert nonuniform_grid(s, float("inf")) == Grid((0,), 20)
    with pytest.raises(UsageError, match="xi must be at least 0"):
        nonuniform_grid(s, -1)


def test_intervals_grow_until_xi_is_reached():
    s = torch.tensor([9.0, 0.1, 0.1, 0.3, 0.1, 0.5])
    assert nonuniform_grid(s, 0.45).starts == (0, 3, 5)


def test_no_interval_is_longer_than_a_fifth():
    straight = torch.ones(50, 2, 3)
    s = pooled(straightness(straight))
    assert bounded_grid(s, 5e-3) == grid_of_size(s, 10) == Grid.uniform(50, 5)
    assert grid_of_size(s, 2) == Grid.uniform(50, 2)
    assert bounded_grid(s[:3], 5e-3) == Grid.full(3)
    bent = torch.cat([torch.randn(10, 2, 3, generator=torch.Generator().manual_seed(0)), straight])
    bends = pooled(straightness(bent))
    grid = nonuniform_grid(bends, 5e-3)
    assert bounded_grid(bends, 5e-3) == grid | grid.split(12)
    assert max(bounded_grid(bends, 5e-3).lengths) == 10


@pytest.mark.parametrize("resting", [slice(None), slice(0, 10), slice(20, 21)])
def test_a_field_that_rests_has_a_finite_straightness(resting):
    velocities = torch.ones(50, 2, 3)
    velocities[resting] = 0
    s = straightness(velocities)
    assert s.isfinite().all() and (s >= 0).all()
    assert bool(s.any()) == bool(velocities.any()), "only where it begins or ceases to move is it bent"
    assert len(grid_of_size(pooled(s), 10)) <= 10
    bounded_grid(pooled(s), 5e-3)


def test_splitting_a_grid_keeps_its_knots():
    assert Grid((0, 3, 4), 10).split(2) == Grid((0, 2, 3, 4, 6, 8), 10)
    assert Grid((0, 3), 10).split(7) == Grid((0, 3), 10)


@pytest.mark.parametrize("intervals", [1, 2, 5, 16, 49, 50, 80])
def test_a_budget_of_intervals_is_kept(intervals):
    s = torch.rand(50, generator=torch.Generator().manual_seed(0)) ** 4
    grid = grid_of_size(s, intervals)
    assert len(grid) <= intervals
    assert len(grid) >= min(50, intervals) * 0.8
    assert sum(grid.lengths) == 50


@pytest.fixture(scope="module")
def mixture():
    """The published implementation's mixture of Gaussians, in closed form (float64)."""
    from tests.helpers.paths import SHARED

    folder = SHARED / "reference" / "mixture_flow"
    if not folder.is_dir():
        pytest.skip("needs ../shared/reference/mixture_flow, which is not there")
    meta = json.loads((folder / "meta.json").read_text())
    return meta, load_file(folder / "expected.safetensors")


def mixture_velocity(means, s):
    """E[x1 - x0 | x_t] for x_t = t x1 + (1 - t) x0, x1 ~ mean_k N(mu_k, s^2 I), at the official code's clock."""

    def velocity(x, t):
        t = 1e-3 + (1 - 1e-3) * t
        variance = t**2 * s**2 + (1 - t) ** 2
        d = x.flatten(1)[:, None] - t * means.flatten(1)
        weights = torch.softmax(-d.square().sum(-1) / (2 * variance), dim=1)
        x1 = means.flatten(1) + t * s**2 / variance * d
        x0 = (1 - t) / variance * d
        return (weights[..., None] * (x1 - x0)).sum(1).view_as(x)

    return velocity


def test_the_published_trajectory_is_reproduced(mixture):
    meta, expected = mixture
    velocity = mixture_velocity(expected["mu"].double().view(-1, *meta["shape"]), meta["s"])
    trajectory = integrate(velocity, expected["z0"].double(), Grid.full(meta["N"]))
    assert (trajectory.x1 - expected["x1"].double()).abs().max() < 1e-5
    assert (trajectory.states - expected["trajectory"].double()).abs().max() < 1e-5


def official_grid(velocities, xi):
    """Starts of the official code's grid, by its departures: S(0) wraps around, sums begin at t_j, a strict >."""
    s = pooled(straightness(velocities))
    wrapped = (velocities[-1] - velocities[0]).square().sum() / velocities[0].square().sum()
    sums, starts = 0.0, [0]
    for k, value in enumerate([max(s[0], wrapped), *s[1:]]):
        sums += float(value)
        if sums > xi and k + 1 < len(s):
            starts.append(k + 1)
            sums = 0.0
    return starts


@pytest.mark.parametrize("xi", ["0.0001", "0.001", "0.005", "0.01", "0.05"])
def test_straightness_gives_the_published_grids_under_their_rules(mixture, xi):
    meta, expected = mixture
    velocity = mixture_velocity(expected["mu"].view(-1, *meta["shape"]), meta["s"])
    velocities = integrate(velocity, expected["z0"], Grid.full(meta["N"])).velocities
    assert official_grid(velocities, float(xi)) == meta["grids"][xi]["indices"]
