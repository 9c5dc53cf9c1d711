"""What composes and what does not: how much applying one direction changes the texts of the others."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from directions.apply.inversion import Inverted
from directions.apply.steer import steer, to_control
from directions.bank.bank import Entry
from directions.figures import COLOURS, write_png
from directions.measure.texts import texts_of
from flowgrad.files import atomic_path
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.text import log_odds
from flowgrad.models import Model

_ROOM = 2.5  # inches beside and around a heat map, for its words


@dataclass(frozen=True, eq=False)
class Interference:
    """changes[i, j]: mean change of the log-odds of direction j's text where direction i was applied at strength 1."""

    names: tuple[str, ...]
    changes: np.ndarray

    def shares(self) -> np.ndarray:
        """(n, n): the changes as shares of what each text's own direction does to it; 1 on the diagonal."""
        own = np.diagonal(self.changes)
        return self.changes / np.where(np.abs(own) > 1e-6, own, np.nan)


def measure_rows(
    model: Model, guide: Guide, entries: Sequence[Entry], photos: Inverted, force: bool = False
) -> Iterator[np.ndarray]:
    """For each direction in turn, the change (n,) of all texts' log-odds on photos that it was applied to."""
    texts = texts_of(entries)
    before = log_odds(guide, photos.images, texts)
    for entry in entries:
        edited = steer(model, photos, to_control(entry.load(), model, force))
        yield (log_odds(guide, edited, texts) - before).mean(0).cpu().numpy()


def save_table(matrix: Interference, path: Path) -> Path:
    """Write the matrix as CSV, replacing what is there: a row for each direction applied, a column for each text."""
    rows = [(name, *(f"{value:.4f}" for value in row)) for name, row in zip(matrix.names, matrix.changes, strict=True)]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("applied", *matrix.names), *rows])
    return path


def save_heat_map(matrix: Interference, path: Path) -> Path:
    """Draw the matrix: numbers are changes of log-odds, colours their share of the own effect. Returns the path."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    count = len(matrix.names)
    side = 0.62 * count + _ROOM
    buffer = io.BytesIO()
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10}):
        figure = Figure(figsize=(side + 1, side), dpi=120, layout="constrained")
        axes = figure.subplots()
        shares = matrix.shares()
        image = axes.imshow(shares, cmap="RdBu", vmin=-1, vmax=1)
        for i, j in np.ndindex(count, count):
            ink = "white" if abs(shares[i, j]) > 0.6 else "black"
            axes.text(j, i, f"{matrix.changes[i, j]:+.1f}", ha="center", va="center", color=ink, fontsize=9)
        axes.set_xticks(range(count), matrix.names, rotation=40, ha="right")
        axes.set_yticks(range(count), matrix.names)
        axes.set(xlabel="its text's log-odds change by", ylabel="applied at strength 1")
        figure.colorbar(image, label="share of the text's own direction", shrink=0.8)
        axes.set_title("Interference", color=COLOURS[0])
        figure.savefig(buffer, format="png")
    return write_png(buffer.getvalue(), path)
