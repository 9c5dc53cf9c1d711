"""Pictures of what a sampler does: samples before and after, and the shares of classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from directions.bank.sampler_card import HEADS
from directions.figures import COLOURS, before_after
from directions.file.sampler import MEASURES
from flowgrad.files import atomic_path, refuse_existing


def sheet(before: Sequence[Image.Image], after: Sequence[Image.Image], title: str) -> Image.Image:
    """Samples of the model above, and of the sampler below."""
    return before_after({"model": before, "sampler": after}, title)


def shares_chart(measured: Mapping[str, Mapping[str, float]], path: Path, title: str, overwrite: bool = False) -> Path:
    """Draw the shares of classes before and after into a PNG. Returns the path.

    Raises UsageError for a file that exists (unless `overwrite`).
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    refuse_existing(path, overwrite)
    shown = [measure for measure in MEASURES if any(measure in row for row in measured.values())]
    style: dict[Any, Any] = {"font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(max(6, 0.7 * len(measured)), 3.6), dpi=120, layout="constrained")
        axes = figure.subplots()
        for k, measure in enumerate(shown):
            at = [i + (k - (len(shown) - 1) / 2) * 0.8 / len(shown) for i in range(len(measured))]
            heights = [row.get(measure, 0.0) for row in measured.values()]
            axes.bar(at, heights, 0.8 / len(shown), color=COLOURS[k], label=HEADS[measure])
        axes.set_xticks(range(len(measured)), list(measured), rotation=30, ha="right")
        axes.set(ylabel="share", title=title)
        axes.legend(frameon=False, fontsize=8)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
    return path
