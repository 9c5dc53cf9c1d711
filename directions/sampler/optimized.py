"""The alternative to a sampler: every sample of the model optimised on its own, and what either costs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from directions.progress import Reporter
from flowgrad.guidance.energies import Energy
from flowgrad.models import Model
from flowgrad.models.metering import Account, metered
from flowgrad.ode import Grid, integrate
from flowgrad.optimize import Settings, optimize


@dataclass(frozen=True)
class Drawn:
    """Images (n, 3, H, W) in [-1, 1], and how often the velocity was evaluated for each on average.

    A vector-Jacobian product counts as one evaluation, though it takes about three times as long.
    """

    images: Tensor
    evaluations: float

    @classmethod
    def of(cls, images: Tensor, account: Account) -> "Drawn":
        """Images, and what the velocity of a metered model was asked for to draw them."""
        return cls(images, (account.spent.evaluations + account.spent.products) / len(images))


def optimize_each(
    model: Model, energy: Energy, grid: Grid, count: int, seed: int, settings: Settings, reporter: Reporter
) -> Drawn:
    """Optimise a control of its own for each of the samples that the model draws with a seed (Algorithm 1)."""
    own, account = metered(model)

    def optimized(x0: Tensor) -> Tensor:
        for step in optimize(own.velocity, x0, grid, objective, settings, shared=False, decode=own.decode):
            control = step.state.best
        with torch.no_grad():
            return own.decode(integrate(own.velocity, x0, grid, control).x1)

    def objective(images: Tensor, _: torch.Generator, __: slice) -> dict[str, Tensor]:
        return {"energy": energy(images)}

    latents = own.noise(count, seed).split(1)  # one at a time: which control is best is decided for each alone
    images = torch.cat(list(reporter.track(map(optimized, latents), "optimising", count)))
    return Drawn.of(images, account)
