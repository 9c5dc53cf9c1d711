"""What a comparison of methods comes to: means with bootstrap intervals, and effects at equal identity."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from directions.compare.comparison import Record
from directions.figures import chart, legend_below, line_styles
from flowgrad.files import atomic_path
from flowgrad.seeds import generator

RESAMPLED = 1000  # draws of photos, with replacement
MEASURES = ("effect", "judged", "l1", "lpips")

Interval = tuple[float, float, float]  # the mean, and the ends of its 95 % interval


@dataclass(frozen=True)
class Outcome:
    """One method: its means along `strengths`, and each measure at the identity distance that methods are compared at.

    at: None where that distance lies beyond what the method's strengths do. The costs are those of one edit.
    """

    method: str
    photos: int
    strengths: tuple[float, ...]
    identity: tuple[Interval, ...]
    means: dict[str, tuple[Interval, ...]]
    at: dict[str, Interval | None]
    evaluations: float
    products: float
    seconds: float


def summarize(records: Sequence[Record], distance: float) -> list[Outcome]:
    """An outcome for each method, in the order in which they appear."""
    methods = dict.fromkeys(record.method for record in records)
    return [_outcome([record for record in records if record.method == method], distance) for method in methods]


def _outcome(records: Sequence[Record], distance: float) -> Outcome:
    first, count = records[0], len(records)
    draws = torch.randint(count, (RESAMPLED, count), generator=generator(0, count)).numpy()
    draws = np.concatenate([np.arange(count)[None], draws])  # the first is the photos themselves

    def means(name: str) -> np.ndarray:
        """(1 + RESAMPLED, S) means over photos; the judge's first value, of the photo itself, is left out."""
        values = np.array([getattr(record, name) for record in records])[:, -len(first.strengths) :]
        return values[draws].mean(1)

    known = [name for name in MEASURES if getattr(first, name)]
    identity = means("identity")
    curves = {name: means(name) for name in known}
    reached = {name: _at(identity, curve, distance) for name, curve in curves.items()}
    costs = {name: float(np.mean([getattr(r, name) for r in records])) for name in ("evaluations", "products")}
    return Outcome(
        first.method,
        count,
        tuple(first.strengths),
        tuple(map(_interval, identity.T)),
        {name: tuple(map(_interval, curve.T)) for name, curve in curves.items()},
        {name: None if np.isnan(values[0]) else _interval(values) for name, values in reached.items()},
        **costs,
        seconds=float(np.median([record.seconds for record in records])),
    )


def _interval(values: np.ndarray) -> Interval:
    """The first value, and the middle 95 % of the others."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)


def _at(identity: np.ndarray, curve: np.ndarray, distance: float) -> np.ndarray:
    """(R,) each curve (R, S) where its identity distance (R, S) is `distance`, in straight lines; NaN beyond."""
    values = []
    for x, y in zip(identity, curve, strict=True):
        order = np.argsort(x)
        values.append(float(np.interp(distance, x[order], y[order], left=np.nan, right=np.nan)))
    return np.array(values)


def outcome_rows(outcomes: Sequence[Outcome], distance: float) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table, a row for each method."""
    known = [name for name in MEASURES if any(name in outcome.at for outcome in outcomes)]
    head = [f"at identity {distance:g}", *known, "evaluations", "products", "seconds"]
    rows = []
    for outcome in outcomes:
        values = [_written(outcome.at.get(name)) for name in known]
        costs = [f"{outcome.evaluations:.0f}", f"{outcome.products:.0f}", f"{outcome.seconds:.2f}"]
        rows.append([outcome.method, *values, *costs])
    return head, rows


def _written(interval: Interval | None) -> str:
    return "-" if interval is None else "{:.2f} ({:.2f} to {:.2f})".format(*interval)


def save(outcomes: Sequence[Outcome], title: str, distance: float, table: Path, picture: Path) -> dict[str, Any]:
    """Write outcomes as JSON and their curves as a figure, replacing what is there; the JSON's values."""
    data = {"title": title, "distance": distance, "methods": [asdict(outcome) for outcome in outcomes]}
    with atomic_path(table) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8")
    draw([data], picture)
    return data


def draw(comparisons: Sequence[Mapping[str, Any]], picture: Path) -> Path:
    """Draw the (identity, effect) curves of comparisons' JSON side by side."""
    styles = line_styles(method["method"] for comparison in comparisons for method in comparison["methods"])
    with chart(picture, (4.2 * len(comparisons), 4.2), len(comparisons)) as places:
        for axes, comparison in zip(places, comparisons, strict=True):
            for method in comparison["methods"]:
                x = [mean for mean, *_ in method["identity"]]
                y, low, high = zip(*method["means"]["effect"], strict=True)
                axes.plot(x, y, **styles[method["method"]], lw=1.5, marker="o", ms=3)
                axes.fill_between(x, low, high, color=styles[method["method"]]["color"], alpha=0.1, lw=0)
            axes.axvline(comparison["distance"], color="0.7", lw=0.8)
            axes.set(xlabel="identity distance", ylabel="log-odds gained", title=comparison["title"])
        legend_below(places)
    return picture
