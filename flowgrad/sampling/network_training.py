"""Training the feed-forward sampler: stochastic gradients of KL(q || p*), as a generator of its updates."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.sampling.network import Coupling, NetworkSampler, log_density, path_gradient
from flowgrad.seeds import Source

Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]  # x0 (B, *D) -> sum lambda E (B,), and its gradient (B, *D)
ADAM = ("step", "exp_avg", "exp_avg_sq")  # what torch's Adam knows of a parameter


@dataclass(frozen=True)
class NetworkTraining:
    """steps of Adam on batches of latents; the learning rate falls linearly to 0. Raises UsageError below 1, 1, 0."""

    steps: int = 100
    batch: int = 16
    learning_rate: float = 5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not self.learning_rate > 0:
            raise UsageError(f"steps and batch must be at least 1, the learning rate above 0; got {self}")


@dataclass(frozen=True)
class NetworkState:
    """All that a later run needs to go on after `done` steps bit for bit: parameters and Adam's moments, by name."""

    done: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class NetworkStep:
    """One step: the energy's mean over the batch, the loss, KL(q || p*) up to a constant, and the state after it."""

    step: int
    energy: float
    loss: float
    state: NetworkState


def train_network(
    sampler: NetworkSampler,
    gradient: Gradient,
    source: Source,
    settings: NetworkTraining,
    resume: NetworkState | None = None,
) -> Iterator[NetworkStep]:
    """Train a sampler's network in place, and yield every step.

    gradient: of the energies in x0; see `latent.Generator.gradient`. source: standard normal latents from keys.
    Raises FlowgradError where the loss is not finite.
    """
    network, subspace = sampler.network.requires_grad_().train(), sampler.subspace
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    if resume:
        _go_on(network, optimizer, resume)
    for step in range(resume.done if resume else 0, settings.steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - step / settings.steps)
        noise = source([(settings.seed, step, i) for i in range(settings.batch)])
        z = network(subspace.inside(noise))
        energies, grad_x0 = gradient(subspace.moved(noise, z.detach()))
        log_q = log_density(network, z.detach()).detach()
        loss = float((energies + z.detach().square().sum(1) / 2 + log_q).mean())
        if not isfinite(loss):
            raise FlowgradError(f"the loss is not finite at step {step}: lower the learning rate or the weight")
        pull = subspace.inside(grad_x0) + z.detach() + path_gradient(network, z)
        optimizer.zero_grad()
        (z * pull).sum(1).mean().backward()
        optimizer.step()
        yield NetworkStep(step, float(energies.mean()), loss, _state(network, optimizer, step + 1))
    network.eval().requires_grad_(False)


def _state(network: Coupling, optimizer: torch.optim.Adam, done: int) -> NetworkState:
    tensors = {f"weight.{name}": value.detach().clone() for name, value in network.named_parameters()}
    for name, value in network.named_parameters():
        tensors |= {f"{moment}.{name}": optimizer.state[value][moment].clone() for moment in ADAM}
    return NetworkState(done, tensors)


@torch.no_grad()
def _go_on(network: Coupling, optimizer: torch.optim.Adam, state: NetworkState) -> None:
    for name, value in network.named_parameters():
        value.copy_(state.tensors[f"weight.{name}"])
        optimizer.state[value] = {moment: state.tensors[f"{moment}.{name}"].clone() for moment in ADAM}
