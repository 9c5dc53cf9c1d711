"""Networks are trained on a subspace, and an interrupted training goes on where it was."""

from dataclasses import replace

import pytest
import torch

from directions.progress import Silent
from directions.sampler.network import NetworkPlan, Pool, fit_network
from directions.sampler.pool import Parts
from flowgrad.errors import UsageError
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.energies import TextEnergy
from flowgrad.guidance.guide_files import load_guide
from flowgrad.models import load_model
from flowgrad.ode import Grid
from flowgrad.sampling.latent import Generator

GRID, PLAN = Grid((0, 3), 6), NetworkPlan(gradients=40, updates=4, intervals=2, layers=2, width=8)


class Killed(Silent):
    """A reporter that ends the work of one kind after so many items."""

    def __init__(self, label, items):
        super().__init__()
        self.label, self.items = label, items

    def track(self, items, label, total=None):
        for i, item in enumerate(items):
            if (label, i) == (self.label, self.items):
                raise KeyboardInterrupt
            yield item


class Counting(Silent):
    """A reporter that counts what it was shown."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def track(self, items, label, total=None):
        for item in items:
            self.counts[label] = self.counts.get(label, 0) + 1
            yield item


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(str(tiny.model), "cpu", "fp32")


@pytest.fixture(scope="module")
def energy(tiny):
    return TextEnergy(load_guide(str(tiny.guide)), Contrast("a smiling face", "a serious face"))


@pytest.fixture(scope="module")
def fit(model, energy):
    keys = [(5, i) for i in range(24)]
    energies = Generator(model, GRID).energy(energy, model.latents(keys))

    def fitted(reporter, parts=None, lower=0.0):
        pool = Pool(keys, energies, energies[:, None], energies.mean()[None] - lower)
        return fit_network(model, energy, pool, PLAN, 0, reporter, parts)

    return fitted


@pytest.fixture(scope="module")
def whole(fit):
    return fit(Silent())


def same(one, other):
    tensors = other.sampler.tensors()
    return all(torch.equal(tensors[name], value) for name, value in one.sampler.tensors().items())


@pytest.mark.parametrize(("label", "items", "again"), [("gradients", 1, 1), ("training", 2, 0)])
def test_an_interrupted_training_goes_on_bit_for_bit(fit, whole, tmp_path, label, items, again):
    parts, reporter = Parts(tmp_path / "parts"), Counting()
    with pytest.raises(KeyboardInterrupt):
        fit(Killed(label, items), parts)
    found = fit(reporter, parts)
    assert reporter.counts.get("gradients", 0) == again, "batches that are kept are not made again"
    assert found.explained == whole.explained and same(found, whole)


def test_damaged_gradients_are_made_again(fit, whole, tmp_path):
    parts = Parts(tmp_path / "parts")
    fit(Silent(), parts)
    for file in parts.folder.iterdir():
        file.write_bytes(b"damaged")
    assert same(fit(Silent(), parts), whole)


def test_draws_have_the_moments_that_were_asked_for(model, energy, whole):
    """phi is a function of z, whose means are 1/2 by nature."""
    noise, subspace = model.noise(1000, 3), whole.sampler.subspace

    def phi(x0):
        first = (2 * subspace.inside(x0)[:, 0]).sigmoid()
        return torch.stack([first, 1 - first], 1)

    keys = [(6, i) for i in range(500)]
    values = phi(model.latents(keys))
    plan = replace(PLAN, updates=150, width=32)
    pool = Pool(keys, values[:, 0], values, torch.tensor([0.7, 0.3]), (2,))
    found = fit_network(model, energy, pool, plan, 0, Silent())
    assert found.explained > 0.9
    torch.testing.assert_close(phi(found.sampler.push(noise)).mean(0), torch.tensor([0.7, 0.3]), atol=0.04, rtol=0)


def test_an_energy_that_the_subspace_does_not_reach_is_refused(fit):
    with pytest.raises(UsageError, match="the subspace tells of the energy cannot be"):
        fit(Silent(), lower=100.0)


def test_a_subspace_that_explains_little_is_told(fit):
    reporter = Silent()
    found = fit(reporter)
    assert found.explained < 0.5 and "2 dimensions of the latent explain" in reporter.warnings[0]
