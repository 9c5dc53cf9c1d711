"""The benchmark: gradients and trainings compared for several texts in one run, written as JSON and as a figure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from directions.apply.identity import require_identity
from directions.benchmark.gradients import Comparison, compare_gradients
from directions.benchmark.trainings import Course, compare_trainings
from directions.figures import chart, legend_below, line_styles
from directions.progress import Reporter
from directions.train.recipe import Recipe, load_recipe
from flowgrad.files import atomic_path
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.models import Model

COMPARED = 4  # samples that gradients are compared on, at most
INCHES = (4.2, 4.0)  # of the curves of one text


@dataclass(frozen=True)
class Bench:
    """What is compared, and how. steps: N of the gradients; factors: of step sizes of plain descent.

    samples to train on, held_out to measure on at an identity `distance`; repeats: timed rounds of the gradients.
    """

    steps: int
    thresholds: tuple[float, ...]
    factors: tuple[float, ...]
    samples: int
    held_out: int
    distance: float
    repeats: int
    seed: int


@dataclass(frozen=True)
class Result:
    """What was compared for one text."""

    target: Contrast
    gradients: tuple[Comparison, ...]
    courses: tuple[Course, ...]


def compare(
    model: Model,
    guide: Guide,
    targets: Sequence[Contrast],
    recipes: Mapping[str, Recipe],
    bench: Bench,
    reporter: Reporter,
) -> list[Result]:
    """Compare gradients, and then trainings by each of the recipes, for every text.

    Raises UsageError for a model of other things than aligned faces, and where dlib is not installed.
    """
    require_identity(model)
    results = []
    for target in targets:
        usual, images = load_recipe(), min(COMPARED, bench.samples)
        intervals = min(usual.intervals, bench.steps)
        gradients = compare_gradients(
            model,
            guide,
            target,
            bench.steps,
            bench.thresholds,
            intervals,
            usual.products,
            images,
            bench.seed,
            bench.repeats,
            reporter,
        )
        courses = compare_trainings(
            model,
            guide,
            target,
            recipes,
            bench.factors,
            bench.samples,
            bench.held_out,
            bench.distance,
            bench.seed,
            reporter,
        )
        results.append(Result(target, tuple(gradients), tuple(courses)))
    return results


def save(results: Sequence[Result], bench: Bench, model: Model, figures: Path, picture: Path) -> dict[str, Any]:
    """Write the results as JSON and their curves as a figure, replacing what is there; the JSON's values."""
    data: dict[str, Any] = {
        "model": model.name,
        "steps": model.config.steps,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "bench": asdict(bench),
        "texts": [{**asdict(result), "target": str(result.target)} for result in results],
    }
    with atomic_path(figures) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8")
    draw(data, picture)
    return data


def draw(data: Mapping[str, Any], picture: Path) -> Path:
    """Draw the curves of a benchmark's JSON, texts side by side: effect at equal identity against seconds."""
    from matplotlib.ticker import LogLocator

    texts, distance = data["texts"], data["bench"]["distance"]
    styles = line_styles(sorted(course["recipe"] for text in texts for course in text["courses"]))
    with chart(picture, (INCHES[0] * len(texts), INCHES[1]), len(texts)) as places:
        for axes, text in zip(places, texts, strict=True):
            for course in text["courses"]:
                x, y = ([point[key] for point in course["points"]] for key in ("seconds", "effect"))
                axes.plot(x, y, **styles[course["recipe"]], lw=1.6, marker="o", ms=4)
            axes.set(xscale="log", xlabel="seconds of training", title=text["target"])
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
            axes.set_ylabel(f"log-odds gained, distance {distance:g}")
        legend_below(places)
    return picture
