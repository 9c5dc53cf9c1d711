"""Networks are trained on a subspace, and an interrupted training goes on where it was."""

import pytest
import torch

from directions.progress import Silent
from directions.sampler.network import NetworkPlan, fit_network
from directions.sampler.pool import Parts
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.energies import TextEnergy
from flowgrad.guidance.guide_files import load_guide
from flowgrad.models import load_model
from flowgrad.ode import Grid

GRID, PLAN = Grid((0, 3), 6), NetworkPlan(4, 6, 4, intervals=2, layers=2, width=8, batch=2)


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


@pytest.fixture(scope="module")
def fit(tiny):
    model = load_model(str(tiny.model), "cpu", "fp32")
    energy = TextEnergy(load_guide(str(tiny.guide)), Contrast("a smiling face", "a serious face"))
    return lambda reporter, parts=None: fit_network(model, energy, GRID, PLAN, 0, reporter, parts)


@pytest.fixture(scope="module")
def whole(fit):
    return fit(Silent())


@pytest.mark.parametrize(("label", "items", "again"), [("gradients", 0, 4), ("subspace", 0, 4), ("training", 2, 2)])
def test_an_interrupted_training_goes_on_bit_for_bit(fit, whole, tmp_path, label, items, again):
    parts = Parts(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        fit(Killed(label, items), parts)
    reporter = Counting()
    found = fit(reporter, parts)
    assert reporter.counts["training"] == again
    assert found.explained == whole.explained
    for name, value in whole.sampler.tensors().items():
        assert torch.equal(found.sampler.tensors()[name], value), name


class Counting(Silent):
    """A reporter that counts what it was shown."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def track(self, items, label, total=None):
        for item in items:
            self.counts[label] = self.counts.get(label, 0) + 1
            yield item


def test_a_finished_training_is_read_and_a_damaged_one_made_again(fit, whole, tmp_path):
    parts = Parts(tmp_path / "parts")
    fit(Silent(), parts)
    reporter = Silent()
    assert torch.equal(fit(reporter, parts).sampler.subspace.basis, whole.sampler.subspace.basis)
    assert reporter.warnings[0] == "going on after 4 of 4 updates"
    for file in parts.folder.iterdir():
        file.write_bytes(b"damaged")
    found = fit(Silent(), parts).sampler.tensors()
    assert all(torch.equal(found[name], value) for name, value in whole.sampler.tensors().items())
