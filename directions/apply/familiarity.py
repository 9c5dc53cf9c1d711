"""Whether a model knows an image at all: what inverting it says, against what it said of the model's own test photos.

A photo like those a flow was trained on comes from a latent like those it was trained from: independent normal numbers.
One that it does not know comes from a latent that is too large or too small, or in which the picture is still to be
seen, and the way there is bent, so that the solver misses the photo.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from directions.apply.inversion import Inverted, invert_images, join, quarter_grid
from directions.apply.looks import are_grey, looks, tinted
from directions.bank.bank import Bank
from directions.photo.faces import Prepared
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.models import Model
from flowgrad.ode import Grid
from flowgrad.training.data.images import read_images, to_model_range
from flowgrad.training.data.pictures import find_source, list_images, read_splits

SHARE = 0.005  # of the test photos lie below a range, and as many above

Fit = dict[str, float]  # what each measure says of an image
Ranges = dict[str, tuple[float, float]]  # of each measure, over the model's test photos


# Of each measure: what lies outside its range, in figures, and what it means where it is below and where it is above.
_REASONS = {
    "norm": ("its latent has size {:.3f}", "smoother than they are", "rougher than they are"),
    "correlation": ("neighbours in its latent agree by {:.3f}", "put together unlike them", "put together unlike them"),
    "reconstruction": ("the model misses it by {:.3f}", "unlike them", "hard to draw for the model"),
}


@torch.no_grad()
def fits(model: Model, inverted: Inverted, names: Collection[str] = tuple(_REASONS)) -> list[Fit]:
    """Measure every image of a batch whose trajectory has N / 4 equal steps among its knots (as all for editing do).

    norm: root mean square of its latent, 1 for the prior; correlation: of neighbours in it, 0 for the prior;
    reconstruction: root mean square of what the solver would miss, in units of [-1, 1], to first order.
    """
    measured = {}
    if "norm" in names:
        measured["norm"] = _rms(inverted.x0)
    if "correlation" in names:
        measured["correlation"] = _correlation(inverted.x0)
    if "reconstruction" in names:
        measured["reconstruction"] = _rms(_reconstructed(model, inverted) - inverted.images)
    return [{name: float(values[i]) for name, values in measured.items()} for i in range(len(inverted))]


def _rms(x: Tensor) -> Tensor:
    """(B,) root mean squares of (B, ...)."""
    return x.float().flatten(1).square().mean(1).sqrt()


def _correlation(x: Tensor) -> Tensor:
    """(B,) correlation of neighbours along the last axis of (B, ...), about zero."""
    return (x[..., 1:] * x[..., :-1]).flatten(1).mean(1) / x.flatten(1).square().mean(1).clamp_min(1e-12)


def _reconstructed(model: Model, inverted: Inverted) -> Tensor:
    """(B, 3, H, W): where a pass without residuals would end, errors added up without what they do to each other."""
    grid = quarter_grid(inverted.trajectory.grid.steps)
    residual = inverted.missed(grid)
    missed = torch.einsum("m,mb...->b...", grid.spans(residual), residual)
    return model.decode(inverted.trajectory.x1.to(missed) - missed)


def judge_familiarity(model: Model, inverted: Inverted) -> list[str | None]:
    """A `verdict` on every image of a batch; only what the model's `gate` has a range for is computed.

    A photo that is odd and grey is judged in sepia: a model of colour photos finds all grey ones odd, and edits them no
    worse.
    """
    gate = model.config.gate
    measured = fits(model, inverted, gate)
    odd = [i for i, fit in enumerate(measured) if _outside(fit, gate)]
    grey = [i for i, is_grey in zip(odd, are_grey(inverted.images[odd]), strict=True) if is_grey] if odd else []
    if grey:
        sepia = join(list(invert_images(model, tinted(inverted.images[grey]), grid=inverted.trajectory.grid)))
        for i, fit in zip(grey, fits(model, sepia, gate), strict=True):
            measured[i] = fit
    return [verdict(fit, gate, image) for fit, image in zip(measured, inverted.images, strict=True)]


def is_face(model: Model, crop: Prepared, verdict: str | None) -> bool:
    """Whether a crop is a face: one was found in it, or it has the model's size, and the model knows such images."""
    return not crop.unconfirmed or (bool(model.config.gate) and verdict is None)


def verdict(fit: Fit, ranges: Ranges, image: Tensor) -> str | None:
    """Say what is unusual about an image (3, H, W) in [-1, 1], in words, and then in figures; None: nothing is.

    ranges: of the model's test photos.
    """
    outside = _outside(fit, ranges)
    if not outside:
        return None
    figures = [f"{_REASONS[name][0].format(fit[name])}, test photos {low:g} to {high:g}" for name, low, high in outside]
    name, low, _ = outside[0]
    words = looks(image) or _REASONS[name][1 if fit[name] < low else 2]
    return f"this photo is unlike those the model knows: it looks {words} ({'; '.join(figures)}); the edit may not fit"


def _outside(fit: Fit, ranges: Ranges) -> list[tuple[str, float, float]]:
    """The measures that lie outside their ranges, with these."""
    return [(name, *ranges[name]) for name, value in fit.items() if not _within(value, ranges.get(name))]


def _within(value: float, bounds: tuple[float, float] | None) -> bool:
    return bounds is None or bounds[0] <= value <= bounds[1]


def photo_files(images: Path, table: Path | None = None, split: str = "test", count: int | None = None) -> list[str]:
    """Names of the images of a folder or an archive: those of a table's split, or all; `count` of them, at random.

    Raises UsageError for none.
    """
    if table is None:
        names = [name for name, _ in list_images(find_source(images))]
    else:
        names = [name for name, side in read_splits(table).items() if side == split]
    if not names:
        raise UsageError(f"{table or images} names no image{f' of split {split!r}' if table else ''}. Choose another.")
    chosen = np.random.default_rng(0).permutation(len(names))[:count]
    return [names[i] for i in chosen] if count else names


def usual_grid(model: Model, bank: Bank) -> Grid:
    """The grid on which photos are inverted for a bank's directions: a latent is larger, the finer the grid."""
    steps = model.config.steps
    grid = quarter_grid(steps)
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


def ranges_of(measured: Sequence[Fit], share: float = SHARE) -> dict[str, tuple[float, float]]:
    """The range of each number over test photos, without the `share` lowest and highest of them."""
    edges = {name: np.quantile([fit[name] for fit in measured], (share, 1 - share)) for name in _REASONS}
    edges["reconstruction"][0] = 0.0  # nobody minds a photo that is met exactly
    return {name: (round(float(low), 4), round(float(high), 4)) for name, (low, high) in edges.items()}
