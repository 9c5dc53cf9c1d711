"""Fills EVIDENCE.md with the tables and figures of what was measured: evidence/benchmark-*.json, recipes-*.json,
grids-*.json, settings-*.json, photos-*.json, comparison-*.json and range-*.json.

python direction_bank/evidence.py: a second; the page says which commands measure.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from directions.benchmark.run import draw as draw_benchmarks
from directions.compare.summary import draw as draw_comparisons
from flowgrad.files import atomic_path
from flowgrad.markdown import picture, table

HERE = Path(__file__).parent
PAGE, DATA = HERE / "EVIDENCE.md", HERE / "evidence"
AS_GOOD = 0.95  # share of an effect from which another is as good
PUBLISHED = "paper"
ENDS = ("recipes", "grids", "settings")  # kinds of benchmarks of which only what trainings reach is shown

Data = Mapping[str, Any]


def read(kind: str) -> list[Data]:
    """The JSON of all benchmarks or comparisons, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(DATA.glob(f"{kind}-*.json"))]


def gradients(benchmarks: Sequence[Data]) -> str:
    """A row for each way to the gradient and text."""
    head = ("text", "N", "gradient", "products", "cosine", "of the full chain's time", "MB more")
    rows = [
        (
            text["target"],
            f"{data['bench']['steps']}",
            way["way"],
            f"{way['products']}",
            f"{way['cosine']:.4f}",
            f"{way['share']:.1%}",
            f"{way['memory'] / 1e6:.0f}",
        )
        for data, text in _texts(benchmarks)
        for way in text["gradients"]
    ]
    return table(head, rows, numbers=True)


def updates(benchmarks: Sequence[Data]) -> str:
    """What an update by each recipe costs."""
    head = ("text", "recipe", "seconds", "simulate", "guide", "back-propagate", "evaluations", "products", "MB more")
    rows = []
    for _, text in _texts(benchmarks):
        for course in text["courses"]:
            spent = course["spent"]
            guide = spent["seconds"] - spent["simulating"] - spent["propagating"]
            parts = (spent["seconds"], spent["simulating"], guide, spent["propagating"])
            numbers = [f"{part:.1f}" for part in parts] + [f"{spent[name]:.0f}" for name in ("evaluations", "products")]
            rows.append((text["target"], course["recipe"], *numbers, f"{course['memory'] / 1e6:.0f}"))
    return table(head, rows, numbers=True)


def speed(benchmarks: Sequence[Data]) -> str:
    """When each recipe is as good as the published algorithm after all its updates, and at its best stopping point."""
    head = (
        "text",
        "recipe",
        "updates",
        "effect at last",
        "seconds",
        "as good as published",
        "of its whole run",
        "of its best stop",
    )
    rows = []
    for _, text in _texts(benchmarks):
        courses = {course["recipe"]: course["points"] for course in text["courses"]}
        published = courses[PUBLISHED]
        whole, best = published[-1], max(published, key=lambda point: point["effect"])
        stop = _first(published, AS_GOOD * best["effect"]) or best
        for recipe, points in courses.items():
            last, reached = points[-1], _first(points, AS_GOOD * whole["effect"])
            shares = [f"{reached['seconds'] / other['seconds']:.1%}" if reached else "-" for other in (whole, stop)]
            rows.append(
                (
                    text["target"],
                    recipe,
                    f"{last['updates']}",
                    f"{last['effect']:+.2f} ± {last['error']:.2f}",
                    f"{last['seconds']:.1f}",
                    f"{reached['seconds']:.1f} s" if reached else "not reached",
                    *shares,
                )
            )
    return table(head, rows, numbers=True)


def photos(trainings: Sequence[Data]) -> str:
    """What trainings on some numbers of samples reach, over their seeds."""
    by_count: dict[int, list[Data]] = {}
    for data, text in _texts(trainings):
        by_count.setdefault(data["bench"]["samples"], []).append(text["courses"][0]["points"][-1])
    head = ("photos", "trainings", "effect, mean", "lowest", "highest", "seconds")
    rows = []
    for count, ends in sorted(by_count.items()):
        effects = [end["effect"] for end in ends]
        numbers = [f"{value:+.2f}" for value in (fmean(effects), min(effects), max(effects))]
        rows.append((f"{count}", f"{len(ends)}", *numbers, f"{fmean(end['seconds'] for end in ends):.0f}"))
    return table(head, rows, numbers=True)


def ends(trainings: Sequence[Data]) -> str:
    """What trainings by several recipes reach in the end."""
    head = ("text", "recipe", "updates", "effect", "seconds")
    rows = []
    for _, text in _texts(trainings):
        for course in text["courses"]:
            end = course["points"][-1]
            effect = f"{end['effect']:+.2f} ± {end['error']:.2f}"
            rows.append((text["target"], course["recipe"], f"{end['updates']}", effect, f"{end['seconds']:.1f}"))
    return table(head, rows, numbers=True)


def _first(points: Sequence[Data], effect: float) -> Data | None:
    """The first point with at least this effect."""
    return next((point for point in points if point["effect"] >= effect), None)


def _texts(benchmarks: Sequence[Data]) -> Iterator[tuple[Data, Data]]:
    for data in benchmarks:
        for text in data["texts"]:
            yield data, text


def methods(comparisons: Sequence[Data]) -> str:
    """Each method at the identity distance that methods are compared at."""
    head = ("direction", "method", "photos", "effect", "judge", "L1", "LPIPS", "evaluations", "products", "seconds")
    rows = []
    for data in comparisons:
        for method in data["methods"]:
            at = [
                _interval(method, name, form)
                for name, form in (("effect", "+.1f"), ("judged", ".2f"), ("l1", ".3f"), ("lpips", ".3f"))
            ]
            costs = [f"{method['evaluations']:.0f}", f"{method['products']:.0f}", f"{method['seconds']:.2f}"]
            rows.append(
                (f"{data['title']}, {data['distance']:g}", method["method"], f"{method['photos']}", *at, *costs)
            )
    return table(head, rows, numbers=True)


def strengths(comparisons: Sequence[Data]) -> str:
    """The range of each method: identity distance and effect at every strength."""
    head = ("direction", "method", "strengths", "identity distance", "effect")
    rows = [
        (
            data["title"],
            method["method"],
            ", ".join(f"{strength:g}" for strength in method["strengths"]),
            ", ".join(f"{mean:.2f}" for mean, *_ in method["identity"]),
            ", ".join(f"{mean:+.1f}" for mean, *_ in method["means"]["effect"]),
        )
        for data in comparisons
        for method in data["methods"]
    ]
    return table(head, rows)


def ranges(evaluations: Sequence[Data]) -> str:
    """What each direction does at every strength."""
    head = ("direction", "strength", "effect", "identity distance", "same person")
    rows = [
        (data["direction"], f"{m['strength']:g}", f"{m['effect']:+.1f}", *_identity(m))
        for data in evaluations
        if "+" not in data["direction"]
        for m in data["measured"]
        if m["strength"]
    ]
    return table(head, rows, numbers=True)


def sums(evaluations: Sequence[Data]) -> str:
    """What directions do to each other's texts at strength 1, and what their sum does."""
    texts = [text for data in evaluations for text in [_own(data)] if "+" not in data["direction"]]
    rows = []
    for data in evaluations:
        (full,) = (m for m in data["measured"] if m["strength"] == 1)
        rows.append((data["direction"], *(f"{full['side_effects'][text]:+.1f}" for text in texts), *_identity(full)))
    return table(("directions", *texts, "identity distance", "same person"), rows, numbers=True)


def _own(data: Data) -> str:
    """The text of an evaluated direction, which is among those that are measured of every one."""
    last = data["measured"][-1]
    return next(text for text, effect in last["side_effects"].items() if effect == last["effect"])


def _identity(measured: Data) -> tuple[str, str]:
    return f"{measured['identity']:.2f}", f"{measured['kept']:.0%}"


def _interval(method: Data, name: str, form: str) -> str:
    """A measure at the distance, with its interval; "-" for one that was not measured."""
    if name not in method["means"]:
        return "-"
    if (values := method["at"].get(name)) is None:
        return "not reached"
    mean, low, high = (format(value, form) for value in values)
    return f"{mean} ({low} to {high})"


def fill(page: str, parts: Mapping[str, str]) -> str:
    """A page with each `<!-- NAME -->` ... `<!-- end -->` filled. Raises KeyError for a name that is not known."""
    return re.sub(
        r"<!-- (\w+) -->\n.*?<!-- end -->",
        lambda found: f"<!-- {found[1]} -->\n\n{parts[found[1]]}\n\n<!-- end -->",
        page,
        flags=re.DOTALL,
    )


def write() -> Path:
    """Draw the figures and fill the page."""
    benchmarks, comparisons = read("benchmark"), read("comparison")
    joined = {**benchmarks[0], "texts": [text for _, text in _texts(benchmarks)]}
    drawn: Mapping[str, Callable[[Path], Path]] = {
        "training": lambda path: draw_benchmarks(joined, path),
        "methods": lambda path: draw_comparisons(comparisons, path),
    }
    figures = {f"figure_{name}": draw(DATA / f"{name}.svg") for name, draw in drawn.items()}
    captions = {
        "figure_training": "Effect on unseen samples at equal identity distance, against seconds of training",
        "figure_methods": "Effect against identity distance on test photos, with bootstrap intervals",
    }
    parts = {name: picture(f"{DATA.name}/{path.name}", captions[name]) for name, path in figures.items()}
    parts |= {part.__name__: part(benchmarks) for part in (gradients, updates, speed)}
    parts |= {part.__name__: part(comparisons) for part in (methods, strengths)}
    parts |= {part.__name__: part(read("range")) for part in (ranges, sums)}
    parts |= {photos.__name__: photos(read("photos")), **{kind: ends(read(kind)) for kind in ENDS}}
    with atomic_path(PAGE) as temporary:
        temporary.write_text(fill(PAGE.read_text(encoding="utf-8"), parts), encoding="utf-8")
    return PAGE


if __name__ == "__main__":
    write()
