"""The exact samplers against the Gaussian that p* is for a linear generator and a quadratic energy."""

from itertools import islice

import pytest
import torch

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.sampling.exact import accepted, crank_nicolson, rejection, resample
from flowgrad.sampling.moments import effective_number
from tests.helpers.gaussian import make_case

CASE, COUNT = make_case(), 4000


def keys(count, seed=0):
    return [(seed, i) for i in range(count)]


def test_rejection_draws_from_p_star_and_is_as_rare_as_it_must_be():
    found = accepted(rejection(CASE.source, CASE.energy, 0.0, keys(COUNT), batch=4096), COUNT)
    mean, covariance = CASE.misses(found.x0)
    assert mean < 0.05 and covariance < 0.06
    pool = CASE.source(keys(20_000, seed=1))
    assert found.acceptance == pytest.approx(float(CASE.energy(pool).neg().exp().mean()), rel=0.05)


def test_a_latent_depends_on_its_key_alone():
    few = accepted(rejection(CASE.source, CASE.energy, 0.0, keys(3), batch=2), 3)
    many = accepted(rejection(CASE.source, CASE.energy, 0.0, keys(20), batch=16), 20)
    torch.testing.assert_close(few.x0, many.x0[:3])
    assert torch.equal(few.attempts, many.attempts[:3])


def test_a_bound_that_an_energy_breaks_is_an_error():
    with pytest.raises(FlowgradError, match="below its bound of 5"):
        list(rejection(CASE.source, CASE.energy, 5.0, keys(50)))


def test_what_is_too_rare_is_given_up():
    with pytest.raises(FlowgradError, match="7 proposals"):
        list(rejection(CASE.source, lambda x0: 0 * x0[:, 0] + 100, 0.0, keys(2), limit=7))


def test_a_count_that_was_not_drawn_is_refused():
    with pytest.raises(UsageError, match="2 keys gave 0"):
        accepted(iter(()), 2)


def test_resampling_a_pool_draws_from_p_star():
    pool = CASE.source(keys(30_000))
    log_weights = -CASE.energy(pool)
    drawn = pool[resample(log_weights, COUNT, seed=0)]
    mean, covariance = CASE.misses(drawn)
    assert mean < 0.05 and covariance < 0.06
    assert effective_number(log_weights.softmax(0)) > COUNT


def test_systematic_resampling_gives_each_its_share_to_one():
    weights = torch.tensor([0.5, 0.25, 0.15, 0.1])
    counts = resample(weights.log(), 1000, seed=3).bincount(minlength=4)
    assert (counts - 1000 * weights).abs().max() <= 1


def test_crank_nicolson_draws_from_p_star():
    start = CASE.source(keys(COUNT))
    *_, last = islice(crank_nicolson(start, CASE.energy, 0.6, seed=0), 60)
    mean, covariance = CASE.misses(last.x0)
    assert mean < 0.05 and covariance < 0.06
    assert 0.1 < last.acceptance < 1
    torch.testing.assert_close(last.energy, CASE.energy(last.x0))


def test_without_an_energy_every_move_is_taken():
    *_, last = islice(crank_nicolson(CASE.source(keys(8)), lambda x0: 0 * x0[:, 0], 0.5, seed=0), 5)
    assert last.acceptance == 1


@pytest.mark.parametrize("length", [0.0, 1.5])
def test_a_move_of_no_length_or_too_long_is_refused(length):
    with pytest.raises(UsageError, match="length"):
        next(crank_nicolson(CASE.source(keys(2)), CASE.energy, length, seed=0))
