"""Training the feed-forward sampler: its p* against a known Gaussian, and an interrupted training goes on."""

import pytest
import torch

from flowgrad.errors import FlowgradError
from flowgrad.sampling.network import Coupling, NetworkSampler, NetworkSizes
from flowgrad.sampling.network_training import NetworkTraining, train_network
from flowgrad.sampling.subspace import Subspace
from tests.helpers.gaussian import make_case

SIZES = NetworkSizes(4, 3, 16)


def gradient_of(case):
    def gradient(x0):
        leaf = x0.detach().requires_grad_()
        energy = case.energy(leaf)
        return energy.detach(), torch.autograd.grad(energy.sum(), leaf)[0]

    return gradient


def test_trained_on_a_quadratic_energy_it_draws_the_gaussian_that_p_star_is():
    case = make_case(4)
    whole = Subspace(torch.eye(4, dtype=torch.float64))
    sampler = NetworkSampler(whole, Coupling(NetworkSizes(4, 4, 32)).double())

    steps = list(train_network(sampler, gradient_of(case), case.source, NetworkTraining(400, 64, 1e-2)))
    mean, covariance = case.misses(sampler.push(case.source([(9, i) for i in range(4000)])))
    assert mean < 0.08 and covariance < 0.1
    assert steps[-1].loss < steps[0].loss and len(steps) == 400
    constant = 0.5 * torch.linalg.slogdet(case.covariance).logabsdet.item()  # of log integral N(x) exp(-E(x))
    floor = case.energy(case.mean[None]).item() + 0.5 * case.mean.square().sum().item() - constant
    assert sum(s.loss for s in steps[-50:]) / 50 == pytest.approx(floor, abs=0.1), "the loss ends at -log Z"


@pytest.mark.parametrize("done", [1, 4])
def test_an_interrupted_training_goes_on_bit_for_bit(done):
    case, settings = make_case(4), NetworkTraining(6, 8, 1e-2)

    def sampler():
        return NetworkSampler(Subspace(torch.eye(4, dtype=torch.float64)), Coupling(SIZES).double())

    whole, first, second = sampler(), sampler(), sampler()
    expected = list(train_network(whole, gradient_of(case), case.source, settings))
    steps = train_network(first, gradient_of(case), case.source, settings)
    state = [next(steps) for _ in range(done)][-1].state
    next(steps)  # a state is not changed by what comes after it
    rest = list(train_network(second, gradient_of(case), case.source, settings, state))
    assert [(s.step, s.loss) for s in rest] == [(s.step, s.loss) for s in expected[done:]]
    for name, value in whole.network.weights().items():
        assert torch.equal(second.network.weights()[name], value), name


def test_a_loss_that_is_not_finite_is_an_error():
    sampler = NetworkSampler(Subspace(torch.eye(4)), Coupling(SIZES))
    source = make_case(4).source
    steps = train_network(
        sampler, lambda x0: (x0.sum(1) * torch.inf, x0), lambda keys: source(keys).float(), NetworkTraining(2, 2)
    )
    with pytest.raises(FlowgradError, match="not finite at step 0"):
        list(steps)
