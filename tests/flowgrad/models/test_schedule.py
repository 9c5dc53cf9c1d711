"""Schedules as velocity fields: Euler's steps are the sampler's steps, whatever the network predicts."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from flowgrad.errors import UsageError
from flowgrad.models.schedule import (
    PREDICTIONS,
    Schedule,
    ScheduledVelocity,
    ddim_schedule,
    to_schedule,
    variance_preserving,
)
from flowgrad.ode import Grid, anchor, integrate, invert


def network(x: Tensor, time: Tensor, _: Tensor | None = None) -> Tensor:
    """Something smooth that depends on the state and the network's own time."""
    return torch.tanh(x.roll(1, -1) / 3 + time.view(-1, 1) / 500)


@pytest.mark.parametrize("prediction", PREDICTIONS[1:])
@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("spacing", [("leading", 1, False), ("leading", 0, True), ("linspace", 0, True)])
def test_euler_is_ddim(prediction: str, steps: int, spacing: tuple[str, int, bool]):
    kind, offset, to_one = spacing
    scheduler = DDIMScheduler(
        prediction_type=prediction,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing=kind,
        steps_offset=offset,
        set_alpha_to_one=to_one,
    )
    if kind == "linspace" and steps == 1:
        pytest.skip("one step of this spacing begins at the data")
    schedule, found = to_schedule(scheduler, steps)
    assert found == prediction
    velocity = ScheduledVelocity(network, schedule, prediction, torch.float32)
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    x = start
    asked = [*scheduler.timesteps.tolist(), None]
    for now, after in pairwise(asked):
        # DDIM's own formula, between the cumulative alphas of neighbouring steps
        alpha = scheduler.alphas_cumprod[now].double()
        then = scheduler.alphas_cumprod[after].double() if after is not None else scheduler.final_alpha_cumprod.double()
        out = network(x.float(), torch.full((3,), float(now))).double()
        x1, noise = {
            "epsilon": ((x - (1 - alpha).sqrt() * out) / alpha.sqrt(), out),
            "v_prediction": (alpha.sqrt() * x - (1 - alpha).sqrt() * out, alpha.sqrt() * out + (1 - alpha).sqrt() * x),
            "sample": (out, (x - alpha.sqrt() * out) / (1 - alpha).sqrt()),
        }[prediction]
        x = then.sqrt() * x1 + (1 - then).sqrt() * noise
    ours = integrate(velocity, start, Grid.full(steps)).x1 / velocity.gain
    assert (ours - x).norm() < 1e-4 * x.norm()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_field_is_finite_at_the_data_and_returns(prediction: str):
    """Inversion starts at t = 1, where no noise is left to divide by."""
    scheduler = FlowMatchEulerDiscreteScheduler() if prediction == "flow" else DDIMScheduler(prediction_type=prediction)
    schedule, _ = to_schedule(scheduler, 40)
    assert schedule.shares[-1] == 0
    velocity = ScheduledVelocity(network, schedule, prediction, torch.float32)
    x1 = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    inverted = invert(velocity, x1, 40)
    assert inverted.states.isfinite().all() and inverted.velocities.isfinite().all()
    back = integrate(velocity, inverted.x0, Grid.full(40), residual=anchor(inverted)).x1
    torch.testing.assert_close(back, x1, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_flow_matching_sampler(shift: float):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule, prediction = to_schedule(scheduler, 12)
    velocity = ScheduledVelocity(network, schedule, prediction, torch.float32)
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    x = start
    for now in scheduler.timesteps:
        x = scheduler.step(network(x, now.expand(3)), now, x).prev_sample
    torch.testing.assert_close(integrate(velocity, start, Grid.full(12)).x1, x, atol=1e-5, rtol=1e-5)
    assert velocity.gain == 1


def test_euler_converges_to_the_closed_form_with_first_order():
    """Of normal data of deviation 0.3 the flow is known: states keep their multiple of the deviation."""
    alphas = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    schedule = ddim_schedule(alphas, list(range(996, 0, -5)), float(alphas[0]))
    times, shares = schedule.times.flip(0).numpy(), schedule.shares.flip(0).numpy()

    def deviation(share: Tensor) -> Tensor:
        return (((1 - share) * 0.3).square() + share.square()).sqrt()

    def exact(x: Tensor, time: Tensor, _: Tensor) -> Tensor:
        share = torch.tensor(np.interp(time.numpy(), times, shares)).view(-1, 1)
        total = variance_preserving(share)  # x is (1 - s) total data + s total noise
        return (x.double() * share / total / deviation(share).square()).to(x)

    velocity = ScheduledVelocity(exact, schedule, "epsilon", torch.float32)
    x0 = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()
    x1 = x0 * deviation(schedule.shares[-1]) / deviation(schedule.shares[0])
    errors = [float((integrate(velocity, x0, Grid.full(n)).x1 - x1).norm()) for n in (200, 400, 800)]
    assert errors[0] < 0.1 * x1.norm()
    assert all(1.8 < a / b < 2.2 for a, b in pairwise(errors))


def test_a_schedule_is_read_at_its_steps_and_between_them():
    schedule = Schedule(torch.tensor([900.0, 500.0, 0.0]).double(), torch.tensor([1.0, 0.7, 0.0]).double())
    time, share, slope = schedule.at(torch.tensor([0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(time, torch.tensor([900.0, 700.0, 500.0, 0.0]).double())
    torch.testing.assert_close(share, torch.tensor([1.0, 0.85, 0.7, 0.0]).double())
    torch.testing.assert_close(slope, torch.tensor([-0.6, -0.6, -1.4, -1.4]).double())
    with pytest.raises(UsageError, match="shares that decrease"):
        Schedule(torch.zeros(2), torch.zeros(2))
    with pytest.raises(UsageError, match="must predict one of"):
        ScheduledVelocity(network, schedule, "score", torch.float32)
