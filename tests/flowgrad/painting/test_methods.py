"""The methods on a flow whose posterior given the blur is known, and each against its formula."""

from functools import cache, partial
from math import prod

import numpy as np
import pytest
import torch

from flowgrad.errors import UsageError
from flowgrad.ode import Grid, integrate
from flowgrad.painting import baselines, gradients
from flowgrad.painting.blur import blur, deviation, rmse
from flowgrad.painting.path import clean, nearer, noised
from tests.flowgrad.painting.conftest import SHAPE, SPREAD

METHODS = [
    baselines.sdedit,
    baselines.loopback,
    baselines.ilvr,
    gradients.gradop,
    gradients.gradop_plus,
    gradients.official,
    gradients.control,
]


def last(states):
    *_, x = states
    return x


def detail(x):
    """The deviation of what the blur takes away, as a share of that of samples of the mixture."""
    noise = SPREAD * torch.randn(64, *x.shape[1:], generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    return float((x - blur(x)).std() / (noise - blur(noise)).std())


@cache
def posteriors():
    """(RMSE of blurs, detail) of N(y, spread^2 I) given f(x) + tau noise = f(y), in closed form, for a series of tau.

    The painting y is one of the mixture's means; the others explain its blur too badly to count.
    """
    unit = torch.eye(prod(SHAPE), dtype=torch.float64)
    blurs = torch.stack([blur(row.view(1, *SHAPE)).flatten() for row in unit], 1)
    rest, points = unit - blurs, []
    for tau in (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28):
        covariance = torch.linalg.inv(unit / SPREAD**2 + blurs.T @ blurs / tau**2)
        error = (blurs @ covariance @ blurs.T).trace() / len(unit)
        kept = (rest @ covariance @ rest.T).trace() / (SPREAD**2 * (rest @ rest.T).trace())
        points.append((float(error.sqrt()) / 2, float(kept.sqrt())))
    return points


def found(x, canvas):
    """Whether samples are as faithful as can be seen, with nine tenths of the detail that posterior samples have."""
    error = float(rmse(x, canvas.strokes).mean())
    return error < 0.05 and detail(x) > 0.9 * np.interp(error, *zip(*posteriors(), strict=True))


def test_the_mixture_flows_to_its_own_samples(mixture, canvas):
    x1 = integrate(mixture, canvas(count=64).noise(0), Grid.full(200)).x1
    nearest = (x1.unsqueeze(1) - mixture.means).flatten(2).square().mean(2).sqrt().amin(1)
    assert torch.allclose(nearest, torch.full_like(nearest, SPREAD), rtol=0.15)


@pytest.mark.parametrize("method", [partial(gradients.gradop_plus, coarser=1), partial(gradients.control, steps=16)])
def test_ours_find_the_posterior(method, canvas):
    easel = canvas(0.2)
    assert found(last(method(easel)), easel)


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_sdedit_does_not_find_it_at_any_strength(strength, canvas):
    easel = canvas(strength)
    assert not found(last(baselines.sdedit(easel)), easel)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_images_one_by_one(method, canvas):
    together = last(method(canvas(count=3, steps=10)))
    alone = torch.cat([last(method(canvas(first=i, count=1, steps=10))) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-9)


def test_sdedit_is_its_formula(mixture, canvas):
    easel = canvas(0.6, steps=10)  # t0 = 0.4: from the 4th of 10 steps
    x = 0.6 * easel.noise(0) + 0.4 * easel.strokes
    for k in range(4, 10):
        x = x + 0.1 * mixture(x, torch.tensor(k / 10, dtype=x.dtype))
    assert torch.allclose(last(baselines.sdedit(easel)), x)


def test_loopback_of_one_round_is_sdedit(canvas):
    easel = canvas(steps=10)
    assert torch.equal(last(baselines.loopback(easel, rounds=1)), last(baselines.sdedit(easel)))


def test_ilvr_is_its_formula(mixture, canvas):
    """x <- x + f(y_t) - f(x), y_t with the noise that the path has."""
    easel = canvas(0.8, steps=10)
    x = easel.noise(0)
    for k in (1, 2):
        x = x + 0.1 * mixture(x, torch.tensor((k - 1) / 10, dtype=x.dtype))
        t = torch.tensor(k / 10, dtype=x.dtype)
        x1 = clean(mixture, x, t)
        noise = (x - t * x1) / (1 - t)
        x = x + blur(noised(easel.strokes, noise, t)) - blur(x)
    states = list(baselines.ilvr(easel))
    assert torch.allclose(states[1], x)


@pytest.mark.parametrize("coarser", [1, 2])
def test_the_encoder_moves_a_state_as_the_blur_asks(coarser, canvas):
    easel = canvas(count=2)
    x = easel.noise(0)
    moved = nearer(easel, x, coarser) - x
    assert torch.allclose(moved, blur(easel.strokes - x, coarser * deviation(x)))


def test_gradop_plus_without_knots_is_the_models_own_sample(mixture, canvas):
    easel = canvas(steps=10)
    assert torch.allclose(
        last(gradients.gradop_plus(easel, knots=0)), integrate(mixture, easel.noise(0), easel.grid).x1
    )


def test_more_gradient_steps_are_more_faithful(canvas):
    easel = canvas(0.2, count=4, steps=20)
    for method in (gradients.gradop, gradients.gradop_plus, gradients.official, gradients.control):
        errors = [float(rmse(last(method(easel, steps=steps)), easel.strokes).mean()) for steps in (0, 4, 8, 12, 16)]
        assert errors == sorted(errors, reverse=True)


def test_a_control_acts_on_the_painted_part_alone(canvas):
    easel = canvas(0.7, count=1, steps=10)
    before, after = last(gradients.control(easel, steps=0)), last(gradients.control(easel, steps=4))
    assert not torch.allclose(before, after)
    assert easel.turn == 3


@pytest.mark.parametrize("strength", [0.0, 1.0, -0.5, float("nan")])
def test_a_strength_out_of_range_is_refused(strength, canvas):
    with pytest.raises(UsageError, match="strength"):
        canvas(strength)


def test_the_turn_leaves_an_interval_to_either_side(canvas):
    assert [canvas(s, steps=4).turn for s in (0.99, 0.75, 0.5, 0.26, 0.01)] == [1, 1, 2, 3, 3]
