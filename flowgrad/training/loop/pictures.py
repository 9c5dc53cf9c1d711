"""Pictures of a run: a sheet of images, and the curve of its losses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from flowgrad.files import atomic_path


def write_sheet(path: Path, images: Tensor, columns: int = 8) -> None:
    """Write one picture of all images (B, 3, H, W) in [-1, 1], in rows of `columns`, two pixels of white between."""
    grid = make_grid(images.clamp(-1, 1).cpu() / 2 + 0.5, nrow=columns, padding=2, pad_value=1.0)
    with atomic_path(path) as temporary:
        to_pil_image(grid).save(temporary, quality=92)


def write_curve(path: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Draw the training loss (means between records) and the held-out loss over the images seen."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for key, style, label in (("loss", "-", "training"), ("held_out", "o-", "held out, averaged weights")):
        points = [(record["seen"], record[key]) for record in log if record[key] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3)
    known = [record["held_out"] for record in log if record["held_out"] is not None]
    if known and max(known) > 3 * min(known):  # the first steps would flatten all that follows
        axes.set_ylim(0, 3 * min(known))
    axes.set(xlabel="images seen", ylabel="loss")
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
