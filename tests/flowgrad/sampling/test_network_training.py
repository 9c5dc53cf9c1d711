"""Training the feed-forward sampler: its p* against a known Gaussian, also on a part of the latent."""

import pytest
import torch

from flowgrad.errors import FlowgradError
from flowgrad.sampling.conditional import fit_mean
from flowgrad.sampling.network import Coupling, NetworkSampler, NetworkSizes
from flowgrad.sampling.network_training import NetworkTraining, train_network
from flowgrad.sampling.subspace import leading
from tests.helpers.gaussian import make_case


def test_trained_on_a_quadratic_energy_it_draws_the_gaussian_that_p_star_is():
    case = make_case(4)
    network = Coupling(NetworkSizes(4, 4, 32)).double()

    steps = list(train_network(network, case.energy, NetworkTraining(400, 64, 1e-2)))
    mean, covariance = case.misses(network(case.source([(9, i) for i in range(4000)])).detach())
    assert mean < 0.08 and covariance < 0.1
    assert steps[-1].loss < steps[0].loss and len(steps) == 400
    constant = 0.5 * torch.linalg.slogdet(case.covariance).logabsdet.item()  # of log integral N(x) exp(-E(x))
    floor = case.energy(case.mean[None]).item() + 0.5 * case.mean.square().sum().item() - constant
    assert sum(s.loss for s in steps[-50:]) / 50 == pytest.approx(floor, abs=0.1), "the loss ends at -log Z"


def test_from_gradients_and_a_pool_it_draws_the_gaussian_that_p_star_is():
    """The whole way: the subspace of two linear features, the energy's regression on it, and the network."""
    case = make_case(6)
    subspace = leading(case.matrix.expand(4, *case.matrix.shape))
    pool = case.source([(1, i) for i in range(2000)])
    mean = fit_mean(subspace.inside(pool), case.energy(pool)[:, None])
    network = Coupling(NetworkSizes(2)).double()
    list(train_network(network, lambda z: mean(z)[:, 0], NetworkTraining(200, 256)))
    missed = case.misses(NetworkSampler(subspace, network).push(case.source([(9, i) for i in range(4000)])))
    assert max(missed) < 0.15


def test_a_loss_that_is_not_finite_is_an_error():
    steps = train_network(Coupling(NetworkSizes(4)), lambda z: z.sum(1) * torch.inf, NetworkTraining(2, 2))
    with pytest.raises(FlowgradError, match="not finite at step 0"):
        list(steps)
