"""The pool of samples that a sampler is made from, and what else takes long: kept in parts until all is done."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from directions.progress import Reporter
from flowgrad.files import atomic_path
from flowgrad.models import Model
from flowgrad.ode import Grid
from flowgrad.sampling.latent import Generator
from flowgrad.seeds import Key
from flowgrad.workers import ALONE, Share, Workers


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

    def read(self, generator: Generator, keys: list[Key], workers: Workers = ALONE) -> Tensor | None:
        """What was made of the latents of some keys, as the leading process kept it; None if it has nothing whole."""
        try:
            content = self.path(generator, keys).read_bytes() if workers.leads else None
        except OSError:
            content = None
        try:
            return load(workers.tell(content) or b"")["made"].to(generator.model.device)
        except (SafetensorError, KeyError):
            return None

    def write(self, generator: Generator, keys: list[Key], made: Tensor) -> None:
        """Keep what was made of the latents of some keys. Raises FlowgradError where the disk refuses."""
        with atomic_path(self.path(generator, keys)) as temporary:
            save_file({"made": made.cpu().contiguous()}, temporary)

    def remove(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def draw(
    model: Model,
    grid: Grid,
    count: int,
    seed: int,
    reporter: Reporter,
    parts: Parts | None = None,
    workers: Workers = ALONE,
) -> Tensor:
    """(count, 3, H, W) images of the model's source in [-1, 1], on a grid; those that `parts` has are read."""
    generator = Generator(model, grid)
    return made_of(generator, generator.images, count, seed, reporter, "sampling", parts, workers)


def made_of(
    generator: Generator,
    make: Callable[[Tensor], Tensor],
    count: int,
    seed: int,
    reporter: Reporter,
    label: str,
    parts: Parts | None = None,
    workers: Workers = ALONE,
) -> Tensor:
    """What `make` makes of `count` latents of the model's source, one batch at a time; what `parts` has is read.

    Several processes make a batch each at a time, which the leading one keeps; all of them have everything in the end.
    """
    keys: list[Key] = [(seed, i) for i in range(count)]
    size = generator.model.batch
    batches = [keys[start : start + size] for start in range(0, count, size)]
    found = [parts.read(generator, batch, workers) if parts else None for batch in batches]
    missing = [batch for batch, part in zip(batches, found, strict=True) if part is None]
    made = _made(generator, make, missing, parts, workers)
    rest = iter(list(reporter.track(made, label, len(missing))))
    return torch.cat([next(rest) if part is None else part for part in found])


def _made(
    generator: Generator,
    make: Callable[[Tensor], Tensor],
    batches: Sequence[list[Key]],
    parts: Parts | None,
    workers: Workers,
) -> Iterator[Tensor]:
    """What `make` makes of each batch, as many at a time as there are processes; only the last may be short."""
    size, latents = generator.model.batch, generator.model.latents
    for start in range(0, len(batches), workers.size):
        now = batches[start : start + workers.size]
        keys = list(chain.from_iterable(now))
        share = Share(len(keys), workers, size)
        made = share.gather(make(latents(keys[share.rows])))
        for batch, part in zip(now, made.split(size), strict=True):
            if parts and workers.leads:
                parts.write(generator, batch, part)
            yield part
