"""The feed-forward sampler: an invertible network on a subspace of x0 (PromptGen, Wu et al., NeurIPS 2022, section 3).

`x0 = B f(B^T n) + (I - B B^T) n` for n ~ N(0, I) and B orthonormal (D, d): f minimises KL(q || p*), up to a constant

    sum_i lambda_i E_i(G(x0)) + |z|^2 / 2 - log |det df/de|,    z = f(e).

Coupling layers and their determinants are zuko's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flowgrad.errors import FlowgradError, UsageError, reason
from flowgrad.models import Model
from flowgrad.sampling.subspace import Subspace
from flowgrad.seeds import Key, Source, generator

if TYPE_CHECKING:
    from zuko.transforms import Transform

Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]  # x0 (B, *D) -> sum lambda E (B,), and its gradient (B, *D)


@dataclass(frozen=True)
class NetworkSizes:
    """dimensions of the subspace, coupling layers, and width of their hidden layer. Raises UsageError below 2, 1, 1."""

    dimensions: int = 64
    layers: int = 6
    width: int = 128

    def __post_init__(self) -> None:
        if self.dimensions < 2 or self.layers < 1 or self.width < 1:
            raise UsageError(f"a network has 2 dimensions or more, layers and a width of 1 or more; got {self}")


class Coupling(nn.Module):
    """f: (B, d) -> (B, d), affine coupling layers that leave one half as it is and move the other by it.

    A new one is the identity: training starts from the model's own samples.
    """

    def __init__(self, sizes: NetworkSizes, seed: int = 0) -> None:
        super().__init__()
        try:
            from zuko.flows import MAF
        except ImportError as error:
            raise FlowgradError("a sampler's network needs zuko. Run: pip install 'flowgrad[samplers]'") from error
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(generator(seed).initial_seed())
            self.flow = MAF(sizes.dimensions, transforms=sizes.layers, passes=2, hidden_features=(sizes.width,))
        self.sizes = sizes
        for layer in self.flow.transform.transforms:
            nn.init.zeros_(layer.hyper[-1].weight)
            nn.init.zeros_(layer.hyper[-1].bias)

    def forward(self, e: Tensor) -> Tensor:
        """z = f(e)."""
        return self.transform()(e)

    def transform(self) -> "Transform":
        """f with its inverse and log-determinants; see `zuko.transforms`."""
        transform: Transform = self.flow.transform()
        return transform

    def weights(self) -> dict[str, Tensor]:
        """The parameters alone, by name: what zuko derives from the sizes is not among them."""
        return {name: value.detach() for name, value in self.named_parameters()}


def log_density(network: Coupling, z: Tensor) -> Tensor:
    """log q(z) (B,) of z = f(e), e ~ N(0, I), up to a constant: -|e|^2 / 2 - log |det df/de|."""
    e, ladj = network.transform().inv.call_and_ladj(z)
    return ladj - e.square().sum(1) / 2


def path_gradient(network: Coupling, z: Tensor) -> Tensor:
    """d log q / dz (B, d) at samples z, q held fixed.

    KL's gradient goes through z alone: the part through q's parameters is zero on average and would only add noise
    (Roeder et al., 2017). At q = p* nothing is left to chance.
    """
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        fixed = {name: value.detach() for name, value in network.named_parameters()}
        log_q = functional_call(_Density(network), {f"network.{name}": value for name, value in fixed.items()}, (leaf,))
        return torch.autograd.grad(log_q.sum(), leaf)[0]


class _Density(nn.Module):
    """`log_density` as a module, whose parameters can be exchanged."""

    def __init__(self, network: Coupling) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Tensor:
        return log_density(self.network, z)


@dataclass(frozen=True)
class NetworkSampler:
    """One pass of a network in place of rejection: approximate, as good as its training, and without any proposals."""

    subspace: Subspace
    network: Coupling

    @torch.no_grad()
    def push(self, noise: Tensor) -> Tensor:
        """x0 (B, *D) from the model's own noise (B, *D)."""
        return self.subspace.moved(noise, self.network(self.subspace.inside(noise)))

    def on(self, model: Model) -> Model:
        """The same model with the network's latents. Raises UsageError if another sampler is its source already."""
        if model.source is not None:
            raise UsageError("a network is trained on a model's own noise, and cannot draw on another sampler")

        def source(keys: Sequence[Key]) -> Tensor:
            return self.push(model.latents(keys))

        return replace(model, source=source)

    def tensors(self) -> dict[str, Tensor]:
        """All that a file needs, by name, float32 on the CPU."""
        found = {"basis": self.subspace.basis, **{f"network.{k}": v for k, v in self.network.weights().items()}}
        return {name: value.float().cpu().contiguous() for name, value in found.items()}


def restore(sizes: NetworkSizes, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> NetworkSampler:
    """The sampler of such tensors. Raises FlowgradError if they are not those of a network of these sizes."""
    network = Coupling(sizes)
    weights = {name.removeprefix("network."): value for name, value in tensors.items() if name != "basis"}
    try:
        missing = network.load_state_dict(weights, strict=False)
        unknown, absent = missing.unexpected_keys, set(weights) ^ set(network.weights())
        if unknown or absent or len(tensors["basis"]) != sizes.dimensions:
            raise FlowgradError(f"tensors are not those of a network of {sizes}: train the sampler again")
    except (RuntimeError, KeyError) as error:
        raise FlowgradError(f"tensors do not fit {sizes} ({reason(error)}): train the sampler again") from error
    return NetworkSampler(Subspace(tensors["basis"].to(device)), network.to(device).eval().requires_grad_(False))


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
class NetworkStep:
    """One step: the energy's mean over the batch, and the loss, KL(q || p*) up to a constant; NaN-free."""

    step: int
    energy: float
    loss: float


def train_network(
    sampler: NetworkSampler, gradient: Gradient, source: Source, settings: NetworkTraining
) -> Iterator[NetworkStep]:
    """Train a sampler's network in place, and yield every step.

    gradient: of the energies in x0; see `latent.Generator.gradient`. source: standard normal latents from keys.
    Raises FlowgradError where the loss is not finite.
    """
    network, subspace = sampler.network.requires_grad_().train(), sampler.subspace
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.steps)
    for step in range(settings.steps):
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
        schedule.step()
        yield NetworkStep(step, float(energies.mean()), loss)
    network.eval().requires_grad_(False)
