"""The pool of samples that a sampler is made from, and what else takes long: kept in parts until all is done."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from directions.progress import Reporter
from flowgrad.files import atomic_path
from flowgrad.models import Model
from flowgrad.ode import Grid
from flowgrad.sampling.latent import Generator
from flowgrad.seeds import Key


@dataclass(frozen=True)
class Parts:
    """Where parts of a run are kept until it is done, so that an interrupted one goes on where it was.

    identity: everything that all of them depend on beside model, grid and keys, such as precision and parent.
    """

    folder: Path
    identity: tuple[object, ...] = ()

    def of(self, *facts: object) -> "Parts":
        """Parts in the same folder that depend on more facts."""
        return replace(self, identity=(*self.identity, *facts))

    def path(self, generator: Generator, keys: list[Key]) -> Path:
        """The file of one part: what is made of these latents."""
        model, grid = generator.model, generator.grid
        facts = (*self.identity, model.fingerprint, str(model.device), grid.starts, grid.steps, keys)
        return self.folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.safetensors"

    def kept(self, generator: Generator, keys: list[Key], make: Callable[[Tensor], Tensor]) -> Tensor:
        """What `make` makes of the latents of some keys: read if it is kept, else made and kept."""
        path = self.path(generator, keys)
        try:
            return load_file(path)["made"].to(generator.model.device)
        except (OSError, SafetensorError, KeyError):
            made = make(generator.model.latents(keys))
        with atomic_path(path) as temporary:
            save_file({"made": made.cpu().contiguous()}, temporary)
        return made

    def remove(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def draw(model: Model, grid: Grid, count: int, seed: int, reporter: Reporter, parts: Parts | None = None) -> Tensor:
    """(count, 3, H, W) images of the model's source in [-1, 1], on a grid; those that `parts` has are read."""
    generator = Generator(model, grid)
    return made_of(generator, generator.images, count, seed, reporter, "sampling", parts)


def made_of(
    generator: Generator,
    make: Callable[[Tensor], Tensor],
    count: int,
    seed: int,
    reporter: Reporter,
    label: str,
    parts: Parts | None = None,
) -> Tensor:
    """What `make` makes of `count` latents of the model's source, one batch at a time; what `parts` has is read."""
    keys: list[Key] = [(seed, i) for i in range(count)]
    size, latents = generator.model.batch, generator.model.latents
    batches = [keys[start : start + size] for start in range(0, count, size)]
    made = (parts.kept(generator, batch, make) if parts else make(latents(batch)) for batch in batches)
    return torch.cat(list(reporter.track(made, label, len(batches))))
