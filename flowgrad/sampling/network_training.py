"""Training the feed-forward sampler: stochastic gradients of KL(q || p*), as a generator of its updates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.sampling.network import Coupling
from flowgrad.seeds import generator


@dataclass(frozen=True)
class NetworkTraining:
    """steps of Adam on batches of z; the learning rate falls linearly to 0. Raises UsageError below 1, 1, 0."""

    steps: int = 400
    batch: int = 512
    learning_rate: float = 5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not self.learning_rate > 0:
            raise UsageError(f"steps and batch must be at least 1, the learning rate above 0; got {self}")


@dataclass(frozen=True)
class NetworkStep:
    """One step: means over the batch of the energy and of the loss, which at its least is -log E exp(-E[E | z])."""

    step: int
    energy: float
    loss: float


def train_network(
    network: Coupling, energy: Callable[[Tensor], Tensor], settings: NetworkTraining
) -> Iterator[NetworkStep]:
    """Train a network in place, and yield every step.

    energy: E[sum lambda E | z] (B,) of z (B, d), differentiable. Raises FlowgradError where the loss is not finite.
    """
    parameters = list(network.requires_grad_().train().parameters())
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - step / settings.steps)
        rng = generator(settings.seed, step)
        e = torch.randn(settings.batch, network.sizes.dimensions, generator=rng).to(parameters[0])
        z, log_det = network.transform().call_and_ladj(e)
        energies = energy(z)
        loss = (energies + (z.square() - e.square()).sum(1) / 2 - log_det).mean()
        if not isfinite(value := float(loss.detach())):
            raise FlowgradError(f"the loss is not finite at step {step}: lower the learning rate or the weight")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield NetworkStep(step, float(energies.detach().mean()), value)
    network.eval().requires_grad_(False)
