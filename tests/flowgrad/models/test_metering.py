"""What work is said to cost, against what it does."""

import sys

import pytest
import torch

from flowgrad.adjoint import control_gradient
from flowgrad.models import Model, load_model
from flowgrad.models.metering import metered, seconds, with_peak
from flowgrad.ode import Grid, integrate
from tests.helpers.tiny import Tiny


@pytest.fixture
def model(tiny: Tiny) -> Model:
    return load_model(str(tiny.model), "cpu", "fp32")


def test_a_meter_counts_images_and_changes_nothing(model: Model) -> None:
    measured, meter = metered(model)
    noise = model.noise(3, 0)
    trajectory, forwards = meter.measure(lambda: integrate(measured.velocity, noise, Grid.full(6)))
    gradient, backwards = meter.measure(lambda: control_gradient(measured.velocity, trajectory, noise))
    assert (forwards.evaluations, forwards.products) == (18, 0)
    assert (backwards.evaluations, backwards.products) == (0, 15)  # the first step's control needs no product
    assert torch.equal(trajectory.x1, integrate(model.velocity, noise, Grid.full(6)).x1)
    assert torch.equal(gradient.values, control_gradient(model.velocity, trajectory, noise).values)


def test_seconds_are_divided_among_what_they_were_spent_on(model: Model) -> None:
    measured, meter = metered(model)
    noise = model.noise(2, 0)

    def job() -> None:
        trajectory = integrate(measured.velocity, noise, Grid.full(6))
        control_gradient(measured.velocity, trajectory, noise)

    _, spent = meter.measure(job)
    assert min(spent.simulating, spent.propagating, spent.guiding) >= 0
    assert spent.simulating + spent.propagating + spent.guiding == pytest.approx(spent.seconds)
    assert seconds(lambda: None) >= 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux keeps account of the peak")
def test_the_peak_is_that_of_the_job() -> None:
    def hold(megabytes: int) -> int:
        return int(torch.ones(megabytes << 18).sum()) >> 18

    for _ in range(2):  # what a job has freed must not hide the next one's peak
        result, peak = with_peak(lambda: hold(256), torch.device("cpu"))
        assert result == 256
        assert 250 << 20 < peak < 320 << 20
    pieces = [torch.ones(1 << 14) for _ in range(256 << 4)]  # which the C library keeps for itself when they are freed
    pieces.clear()
    assert with_peak(lambda: None, torch.device("cpu"))[1] < 50 << 20, "nor count as its own"
