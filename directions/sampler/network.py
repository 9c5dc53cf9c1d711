"""Training a network in place of rejection: its subspace, how much that explains, and the updates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from directions.progress import Reporter, timed
from directions.sampler.checkpoint import Begun, NetworkFile
from directions.sampler.pool import Parts, made_of
from flowgrad.errors import UsageError
from flowgrad.guidance.energies import Energy
from flowgrad.models import Model
from flowgrad.ode import Grid
from flowgrad.sampling.latent import Generator
from flowgrad.sampling.network import Coupling, NetworkSampler, NetworkSizes
from flowgrad.sampling.network_training import NetworkTraining, train_network
from flowgrad.sampling.subspace import Subspace, explained, leading
from flowgrad.seeds import generator
from flowgrad.workers import ALONE, Share, Workers

LEAST_EXPLAINED = 0.5  # share of the energy's variance below which a network can hardly do what is asked
POINTS, REDRAWS = 16, 4  # of the subspace, and of the rest for each, to measure that share on


@dataclass(frozen=True)
class NetworkPlan:
    """How a network is trained; see `flowgrad.sampling.network`.

    gradients: latents whose gradients span the subspace; intervals: of the grid that it is trained on; group: latents
    of a batch that go through the model together, which processes share the batch in; drawn: images to measure it by in
    the end. Raises UsageError for more dimensions than gradients.
    """

    dimensions: int = 64
    gradients: int = 96
    updates: int = 80
    intervals: int = 6
    layers: int = 6
    width: int = 128
    batch: int = 16
    group: int = 4
    learning_rate: float = 0.003
    drawn: int = 256

    @classmethod
    def of(cls, dimensions: int | None, updates: int | None) -> "NetworkPlan":
        """A plan with half as many gradients again as dimensions; None for the usual numbers."""
        wanted = dimensions or cls.dimensions
        return cls(wanted, wanted + wanted // 2, updates or cls.updates)

    def __post_init__(self) -> None:
        if self.dimensions > self.gradients:
            rule = f"{self.gradients} gradients span {self.gradients} dimensions at most"
            raise UsageError(f"{rule}; got {self.dimensions}. Ask for fewer dimensions")

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise UsageError for more dimensions than a latent of this shape has numbers."""
        if self.dimensions > prod(shape):
            raise UsageError(f"a latent of this model has {prod(shape)} numbers; got {self.dimensions} dimensions")


@dataclass(frozen=True)
class Fitted:
    """A trained sampler, and the share of the energy's variance that its subspace explains."""

    sampler: NetworkSampler
    explained: float


def fit_network(
    model: Model,
    energy: Energy,
    grid: Grid,
    plan: NetworkPlan,
    seed: int,
    reporter: Reporter,
    parts: Parts | None = None,
    workers: Workers = ALONE,
) -> Fitted:
    """Find the subspace, measure what it explains on `grid`, and train a network on it.

    parts: of this energy; an interrupted training goes on from what they have, bit for bit. workers: processes that
    share the gradients; the network that the leading one has is the one that a process alone would train.
    Raises UsageError if the model draws from another sampler already; FlowgradError where the loss is not finite.
    """
    if model.source is not None:
        raise UsageError("a network is trained on a model's own noise: draw on another sampler by rejection")
    coarse = Generator(model, Grid.uniform(model.config.steps, min(plan.intervals, model.config.steps)))
    file = NetworkFile.of(parts.of(plan, seed, grid.starts), coarse) if parts else None
    begun = file.read(workers) if file else None
    if begun is None:
        begun = _begin(coarse, Generator(model, grid), energy, plan, seed, reporter, parts, workers)
        if file and workers.leads:
            file.write(begun)
    elif begun.state:
        reporter.warn(f"going on after {begun.state.done} of {plan.updates} updates")
    share = begun.explained
    if share < LEAST_EXPLAINED:
        reporter.warn(
            f"the subspace explains {share:.0%} of the energy's variance: the network can do no more than that. "
            "Take more dimensions and gradients, or draw by rejection"
        )
    network = Coupling(NetworkSizes(plan.dimensions, plan.layers, plan.width), seed).to(model.device)
    sampler = NetworkSampler(begun.subspace, network)
    settings = NetworkTraining(plan.updates, plan.batch, plan.learning_rate, seed)

    def gradient(x0: Tensor) -> tuple[Tensor, Tensor]:
        share, x0 = Share(len(x0), workers, plan.group), workers.broadcast(x0, 0)
        values, gradients = zip(*(coarse.gradient(energy, x0[part]) for part in share.parts), strict=True)
        return share.gather(torch.cat(values)), share.gather(torch.cat(gradients))

    left = plan.updates - (begun.state.done if begun.state else 0)
    steps = train_network(sampler, gradient, model.latents, settings, begun.state)
    for step in reporter.track(steps, "training", left):
        if file and workers.leads:
            file.write(replace(begun, state=step.state))
    return Fitted(sampler, share)


def _begin(
    coarse: Generator,
    fine: Generator,
    energy: Energy,
    plan: NetworkPlan,
    seed: int,
    reporter: Reporter,
    parts: Parts | None,
    workers: Workers,
) -> Begun:
    """The subspace of the energy's gradients in x0 on the coarse grid, and what it explains on the fine one."""

    def gradients_of(x0: Tensor) -> Tensor:
        return coarse.gradient(energy, x0)[1]

    found = made_of(coarse, gradients_of, plan.gradients, seed, reporter, "gradients", parts, workers)
    subspace = Subspace(workers.broadcast(leading(found, plan.dimensions).basis, 0))
    return Begun(subspace, timed(reporter, "subspace", lambda: explained_share(fine, energy, subspace, seed, workers)))


def explained_share(
    images_of: Generator, energy: Energy, subspace: Subspace, seed: int, workers: Workers = ALONE
) -> float:
    """The share of the energy's variance that the subspace explains, the rest of the latent drawn anew; 0 to 1."""
    rng = generator(seed, len(subspace))
    z = torch.randn(POINTS, len(subspace), generator=rng).to(subspace.basis).repeat_interleave(REDRAWS, 0)
    x0 = subspace.moved(images_of.model.noise(POINTS * REDRAWS, seed), z)
    share = Share(len(x0), workers, images_of.model.batch)
    values = share.gather(torch.cat([images_of.energy(energy, x0[part]) for part in share.parts]))
    return min(max(float(explained(values.view(POINTS, REDRAWS))), 0.0), 1.0)
