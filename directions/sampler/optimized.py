"""The alternative to a sampler: every sample of the model optimised on its own, and what either costs."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from directions.progress import Reporter
from flowgrad.guidance.energies import Energy
from flowgrad.memory import Batched
from flowgrad.models import Model
from flowgrad.ode import Grid, integrate
from flowgrad.optimize import Settings, optimize


class Counted(Batched):
    """A velocity that counts what it is asked for: values and vector-Jacobian products, for one image each."""

    def __init__(self, inner: Batched) -> None:
        super().__init__(inner.inner, inner.limit)
        self.values = self.products = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.values += len(x)
        return super().__call__(x, t)

    def vjp(self, x: Tensor, t: Tensor, g: Tensor) -> Tensor:
        self.products += len(x)
        return super().vjp(x, t, g)


@dataclass(frozen=True)
class Drawn:
    """Images (n, 3, H, W) in [-1, 1], and how often the velocity was evaluated for each on average.

    A vector-Jacobian product counts as one evaluation, though it takes about three times as long.
    """

    images: Tensor
    evaluations: float

    @classmethod
    def of(cls, images: Tensor, velocity: Counted) -> "Drawn":
        """What a counted velocity was asked for to draw images."""
        return cls(images, (velocity.values + velocity.products) / len(images))


def counted(model: Model) -> tuple[Model, Counted]:
    """The same model with a velocity that counts; before a sampler is put on it."""
    velocity = Counted(model.velocity)
    return replace(model, velocity=velocity), velocity


def optimize_each(
    model: Model, energy: Energy, grid: Grid, count: int, seed: int, settings: Settings, reporter: Reporter
) -> Drawn:
    """Optimise a control of its own for each of the samples that the model draws with a seed (Algorithm 1)."""
    own, velocity = counted(model)

    def optimized(x0: Tensor) -> Tensor:
        for step in optimize(velocity, x0, grid, objective, settings, shared=False):
            control = step.state.best
        with torch.no_grad():
            return own.decode(integrate(velocity, x0, grid, control).x1)

    def objective(x1: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        return {"energy": energy(own.decode(x1))}

    latents = own.noise(count, seed).split(1)  # one at a time: the steps of one are not scaled by the others' gradients
    images = torch.cat(list(reporter.track(map(optimized, latents), "optimising", count)))
    return Drawn.of(images, velocity)
