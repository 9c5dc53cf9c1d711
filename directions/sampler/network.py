"""Training a network in place of rejection: its subspace, what that tells of the pool, and the updates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from directions.progress import Reporter, timed
from directions.sampler.pool import Parts, made_of
from flowgrad.errors import UsageError
from flowgrad.guidance.energies import Energy
from flowgrad.models import Model
from flowgrad.ode import Grid
from flowgrad.sampling.conditional import ConditionalMean, explained, fit_mean
from flowgrad.sampling.latent import Generator
from flowgrad.sampling.moments import solve_moments
from flowgrad.sampling.network import Coupling, NetworkSampler, NetworkSizes
from flowgrad.sampling.network_training import NetworkTraining, train_network
from flowgrad.sampling.subspace import Subspace, leading
from flowgrad.seeds import Key, generator
from flowgrad.workers import ALONE, Workers

LEAST_EXPLAINED = 0.5  # share of the energy's variance below which a network can hardly do what is asked
NORMAL = 20_000  # points of the subspace that moments are solved on


@dataclass(frozen=True)
class NetworkPlan:
    """How a network is trained; see `flowgrad.sampling.network`.

    gradients: latents at which the features' gradients are taken, whose means span the subspace; intervals: of their
    grid; drawn: images to measure the network by in the end.
    """

    gradients: int = 96
    updates: int = 400
    intervals: int = 6
    layers: int = 6
    width: int = 64
    drawn: int = 256

    @classmethod
    def of(cls, gradients: int | None, updates: int | None) -> "NetworkPlan":
        """A plan with these numbers; None for the usual ones."""
        return cls(gradients or cls.gradients, updates=updates or cls.updates)


@dataclass(frozen=True)
class Pool:
    """Samples of the model as a network learns from them: the keys of their latents, and their energies (n,).

    values: (n, K) of what draws shall have the means `target` (K,): where moments are all that is asked for, the
    probabilities of all answers, of which `answers` says how many each question has; otherwise the energies alone.
    """

    keys: Sequence[Key]
    energies: Tensor
    values: Tensor
    target: Tensor
    answers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """A trained sampler, and the share of the energy's variance that its subspace explains."""

    sampler: NetworkSampler
    explained: float


def fit_network(
    model: Model,
    energy: Energy,
    pool: Pool,
    plan: NetworkPlan,
    seed: int,
    reporter: Reporter,
    parts: Parts | None = None,
    workers: Workers = ALONE,
) -> Fitted:
    """Find the subspace, regress what the pool has on its coordinates, and train a network on that.

    parts: where gradients are kept, from which an interrupted training goes on; the rest takes seconds. workers:
    processes that share the gradients; all have the leading one's network in the end.
    Raises UsageError if the model draws from another sampler already, or for means that the subspace does not reach;
    FlowgradError where the loss is not finite.
    """
    if model.source is not None:
        raise UsageError("a network is trained on a model's own noise: draw on another sampler by rejection")
    coarse = Generator(model, Grid.uniform(model.config.steps, plan.intervals))

    def gradients_of(x0: Tensor) -> Tensor:
        return coarse.gradients(energy.features, x0)

    gradients = made_of(coarse, gradients_of, plan.gradients, seed, reporter, "gradients", parts, workers)
    subspace = Subspace(workers.broadcast(leading(gradients).basis, 0))
    z = torch.cat([subspace.inside(model.latents([key])) for key in pool.keys])
    share = workers.agree(timed(reporter, "regression", lambda: explained(z, pool.energies.to(z), seed)))
    if share < LEAST_EXPLAINED:
        reporter.warn(
            f"{len(subspace)} dimensions of the latent explain {share:.0%} of the energy's variance: a network moves "
            "nothing else. See whether its draws are what you asked for, or draw by rejection"
        )
    mean = fit_mean(z, pool.values.to(z), pool.answers, seed)
    beta = _beta(mean, pool.target, len(subspace), seed)
    network = Coupling(NetworkSizes(len(subspace), plan.layers, plan.width), seed).to(model.device)
    settings = NetworkTraining(plan.updates, seed=seed)
    for _ in reporter.track(train_network(network, lambda z: -mean(z) @ beta, settings), "training", plan.updates):
        pass
    for parameter in network.parameters():
        parameter.copy_(workers.broadcast(parameter, 0))
    return Fitted(NetworkSampler(subspace, network), share)


def _beta(mean: ConditionalMean, target: Tensor, dimensions: int, seed: int) -> Tensor:
    """(K,) beta of the tilt exp(beta . E[y | z]) of normal z whose means of y are the target."""
    z = torch.randn(NORMAL, dimensions, generator=generator(seed, dimensions)).to(mean.means)
    names = [] if mean.answers else ["what the subspace tells of the energy"]
    return solve_moments(mean(z).cpu(), target.cpu(), names).beta.to(mean.means)
