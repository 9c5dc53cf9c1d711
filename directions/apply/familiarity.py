"""Whether a model knows an image at all: what inverting it says, against what it said of the model's own test photos.

A photo like those a flow was trained on comes from a latent like those it was trained from: independent normal numbers.
One that it does not know comes from a latent that is too large or too small, or in which the picture is still to be
seen, and the way there is bent, so that the solver misses the photo.
"""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from directions.apply.inversion import Inverted, invert_images
from directions.bank.bank import Bank
from directions.photo.reading import SUFFIXES, find_photos
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.models import Model
from flowgrad.ode import Grid
from flowgrad.training.data.images import read_images, to_model_range
from flowgrad.training.guide.labels import read_table

SHARE = 0.005  # of the test photos lie below a range, and as many above

_TOLD = {
    "norm": "its latent has size {value:.3f}",
    "correlation": "its latent still shows the picture (neighbours agree by {value:.3f})",
    "reconstruction": "the model misses it by {value:.3f}",
}


@dataclass(frozen=True)
class Fit:
    """What inverting an image says of it.

    norm: root mean square of its latent, 1 for the prior; correlation: of neighbours in it, 0 for the prior;
    reconstruction: root mean square of what the solver would miss, in units of [-1, 1], to first order.
    """

    norm: float
    correlation: float
    reconstruction: float


@torch.no_grad()
def fits(model: Model, inverted: Inverted) -> list[Fit]:
    """Measure every image of a batch whose trajectory has N / 4 equal steps among its knots (as all for editing do)."""
    x0 = inverted.x0
    columns = (_rms(x0), _correlation(x0), _rms(_reconstructed(model, inverted) - inverted.images))
    return [Fit(*(float(value) for value in row)) for row in zip(*columns, strict=True)]


def judge_familiarity(model: Model, inverted: Inverted) -> list[str | None]:
    """A `verdict` on every image of a batch; nothing is computed for a model without `gate` ranges."""
    if not model.config.gate:
        return [None] * len(inverted)
    return [verdict(fit, model.config.gate) for fit in fits(model, inverted)]


def photo_files(images: Path, table: Path | None = None, split: str = "test", count: int | None = None) -> list[str]:
    """Names of the images of a folder or a zip: those of a table's split, or all; `count` of them, drawn at random.

    Raises UsageError for none.
    """
    found = _all_files(images, table, split)
    chosen = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[i] for i in chosen] if count else found


def _all_files(images: Path, table: Path | None, split: str) -> list[str]:
    if table is not None:
        return _rows_of(table, split)
    if images.is_dir():
        return [path.name for path in find_photos([images])]
    try:
        archive = zipfile.ZipFile(images)
    except (OSError, zipfile.BadZipFile) as error:
        raise FlowgradError(f"{images} is neither a folder nor a readable zip ({error}). Give one of them.") from error
    with archive:
        return [name for name in archive.namelist() if Path(name).suffix.lower() in SUFFIXES]


def _rows_of(table: Path, split: str) -> list[str]:
    rows = read_table(table)
    if "file" not in rows[0]:
        raise UsageError(f"{table} has no column 'file'. Name the images in one.")
    found = [row["file"] for row in rows if row.get("split", split) == split]
    if not found:
        raise UsageError(f"no row of {table} has split = {split!r}. Name another with --split.")
    return found


def usual_grid(model: Model, bank: Bank) -> Grid:
    """The grid on which photos are inverted for a bank's directions: a latent is larger, the finer the grid."""
    steps = model.config.steps
    grid = Grid.uniform(steps, -(-steps // 4))
    for entry in bank.list(model.name):
        if entry.info and entry.info.steps == steps and entry.info.fingerprint == model.fingerprint:
            with suppress(FlowgradError):  # a damaged direction is refused where it is used
                grid = grid | Grid(tuple(entry.load().starts.tolist()), steps)
    return grid


def measure_photos(model: Model, images: Path, files: Sequence[str], grid: Grid) -> Iterator[Fit]:
    """Measure aligned photos of a folder or a zip, inverted on a grid that has N / 4 equal steps among its knots."""
    read = iter(read_images(images, files, model.config.size))
    while batch := list(islice(read, model.batch)):
        for inverted in invert_images(model, to_model_range(torch.stack(batch)), grid=grid):
            yield from fits(model, inverted)


def verdict(fit: Fit, ranges: dict[str, tuple[float, float]]) -> str | None:
    """Say plainly what is unusual about an image, against the ranges of the model's test photos; None: nothing.

    ranges: those of a model's configuration; where there are none, nothing is said.
    """
    odd = []
    for name, value in asdict(fit).items():
        low, high = ranges.get(name, (value, value))
        if not low <= value <= high:
            odd.append(f"{_TOLD[name].format(value=value)}, test photos {low:g} to {high:g}")
    return f"the model does not know such an image ({'; '.join(odd)}): the edit may not fit" if odd else None


def ranges_of(found: Sequence[Fit], share: float = SHARE) -> dict[str, tuple[float, float]]:
    """The range of each number over test photos, without the `share` lowest and highest of them."""
    table = {name: [getattr(fit, name) for fit in found] for name in _TOLD}
    edges = {name: np.quantile(values, (share, 1 - share)) for name, values in table.items()}
    edges["reconstruction"][0] = 0.0  # nobody minds a photo that is met exactly
    return {name: (round(float(low), 4), round(float(high), 4)) for name, (low, high) in edges.items()}


def _rms(x: Tensor) -> Tensor:
    """(B,) root mean squares of (B, ...)."""
    return x.float().flatten(1).square().mean(1).sqrt()


def _correlation(x: Tensor) -> Tensor:
    """(B,) correlation of neighbours along the last axis of (B, ...), about zero."""
    both = (x[..., 1:] * x[..., :-1]).flatten(1).mean(1)
    return both / x.flatten(1).square().mean(1).clamp_min(1e-12)


def _reconstructed(model: Model, inverted: Inverted) -> Tensor:
    """(B, 3, H, W): where a pass without residuals would end, errors added up without what they do to each other."""
    steps = inverted.trajectory.grid.steps
    grid = Grid.uniform(steps, -(-steps // 4))
    residual = inverted.missed(grid)
    missed = torch.einsum("m,mb...->b...", grid.spans(residual), residual)
    return model.decode(inverted.trajectory.x1.to(missed) - missed)
