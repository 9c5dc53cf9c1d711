"""The pool of samples that a sampler is made from: drawn in parts, each kept until all is done."""

import hashlib
import shutil
from dataclasses import dataclass
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
    """Where the parts of a pool are kept while it is drawn, so that an interrupted run goes on where it was.

    identity: everything that the images depend on beside model, grid and seed, such as precision and parent.
    """

    folder: Path
    identity: tuple[str, ...] = ()

    def path(self, model: Model, grid: Grid, keys: list[Key]) -> Path:
        """The file of one part."""
        facts = (*self.identity, model.fingerprint, str(model.device), grid.starts, grid.steps, keys)
        return self.folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.safetensors"

    def remove(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def draw(model: Model, grid: Grid, count: int, seed: int, reporter: Reporter, parts: Parts | None = None) -> Tensor:
    """(count, 3, H, W) images of the model's source in [-1, 1], on a grid; those that `parts` has are read."""
    keys: list[Key] = [(seed, i) for i in range(count)]
    batches = [keys[start : start + model.batch] for start in range(0, count, model.batch)]
    generator = Generator(model, grid)
    drawn = (_part(generator, batch, parts) for batch in batches)
    return torch.cat(list(reporter.track(drawn, "sampling", len(batches))))


def _part(generator: Generator, keys: list[Key], parts: Parts | None) -> Tensor:
    """The images of some keys, read if they are kept, else drawn and kept."""
    if parts is None:
        return generator.images(generator.model.latents(keys))
    path = parts.path(generator.model, generator.grid, keys)
    try:
        return load_file(path)["images"].to(generator.model.device)
    except (OSError, SafetensorError, KeyError):
        images = generator.images(generator.model.latents(keys))
    with atomic_path(path) as temporary:
        save_file({"images": images.cpu().contiguous()}, temporary)
    return images
