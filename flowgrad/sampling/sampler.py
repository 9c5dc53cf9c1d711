"""Samplers: new sources of latents for a frozen model, by the energies that its images shall have."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from flowgrad.guidance.energies import Energy
from flowgrad.models import Model
from flowgrad.ode import Grid
from flowgrad.sampling.exact import ATTEMPTS, accepted, rejection
from flowgrad.sampling.latent import Generator
from flowgrad.seeds import Key


@dataclass(frozen=True)
class RejectionSampler:
    """p*(x0) ~ p(x0) exp(-E(G(x0))), drawn exactly: proposals of the model's source, accepted by their images.

    The images are those of `grid`, which may be coarser than the one that samples are drawn on in the end. `limit`:
    proposals for one latent before it is given up, with a FlowgradError.
    """

    energy: Energy
    grid: Grid
    limit: int = ATTEMPTS

    def on(self, model: Model) -> Model:
        """The same model with latents of p*, p being the source that it has now: samplers add up."""
        generator = Generator(model, self.grid)

        def energy(x0: Tensor) -> Tensor:
            return generator.energy(self.energy, x0)

        def source(keys: Sequence[Key]) -> Tensor:
            found = rejection(model.latents, energy, self.energy.lowest, keys, model.batch, self.limit)
            return accepted(found, len(keys)).x0

        return replace(model, source=source)
