"""What trainings by several recipes reach, and when: effect on unseen samples at equal identity, against seconds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from statistics import median
from typing import Any

import numpy as np

from directions.apply.effects import measure
from directions.apply.inversion import Inverted
from directions.progress import Reporter
from directions.train.calibration import HELD_OUT_SEED, samples_without
from directions.train.recipe import Recipe
from directions.train.task import Task
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.models import Model
from flowgrad.models.metering import Account, Spent, metered, with_peak
from flowgrad.ode import Control
from flowgrad.optimize import Step

SHOWN = (1, 2, 3, 5, 8)  # updates after which a control is measured, and the last
ATTEMPTS = 2  # at an identity distance, before the effect is read off between them
MOVED = 0.12  # root mean square displacement of the latents from which the search for the distance starts


@dataclass(frozen=True)
class Point:
    """A control after some updates: seconds until it is found, and what it does at the distance.

    effect: mean change of the text's log-odds on unseen samples, with half its 95 % interval; identity: the distance
    nearest to the one asked for that was measured.
    """

    updates: int
    seconds: float
    effect: float
    error: float
    identity: float


@dataclass(frozen=True)
class Course:
    """A training by one recipe: medians of what one of its updates spent, and bytes by which the memory's peak rose."""

    recipe: str
    step_size: float
    spent: Spent
    memory: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Update:
    """One step of a training, what it spent and the memory it took."""

    step: Step
    spent: Spent
    memory: int


def compare_trainings(
    model: Model,
    guide: Guide,
    target: Contrast,
    recipes: Mapping[str, Recipe],
    factors: Sequence[float],
    images: int,
    held_out: int,
    distance: float,
    seed: int,
    reporter: Reporter,
) -> Iterator[Course]:
    """Train by each recipe, an update of each in turn, and measure the controls on unseen samples at one distance.

    Recipes with plain gradient descent get the best of their step size times `factors`, by the loss after one update,
    which is not counted. distance: mean of dlib's between samples before and after. Seconds after k updates: see
    `seconds_after`.
    """
    measured, meter = metered(model)
    photos, unseen = (
        samples_without(model, guide, target, count, start)
        for count, start in ((images, seed), (held_out, HELD_OUT_SEED))
    )
    tasks = {
        name: _searched(
            Task(measured, guide, replace(photos, anchored=recipe.anchored), target, (), recipe, seed), factors
        )
        for name, recipe in recipes.items()
    }
    updates = _in_turn(tasks, meter, reporter)
    for name, task in tasks.items():
        taken = [update for update in updates[name] if update.spent.products]
        spent = _median([update.spent for update in taken])
        samples = replace(unseen, anchored=task.recipe.anchored)
        points = _points(model, guide, target, samples, updates[name], distance)
        memory = max(update.memory for update in taken)
        yield Course(name, task.recipe.step_size, spent, memory, tuple(reporter.track(points, f"measuring {name}")))


def _searched(task: Task, factors: Sequence[float]) -> Task:
    """The task with the best of several step sizes, if its recipe descends plain gradients."""
    if task.recipe.optimizer != "sgd":
        return task

    def with_size(factor: float, iterations: int) -> Task:
        changes = {"step_size": task.recipe.step_size * factor, "iterations": iterations}
        return replace(task, recipe=task.recipe.model_copy(update=changes))

    if len(factors) == 1:
        return with_size(factors[0], task.recipe.iterations)
    losses = {factor: _after_one_update(with_size(factor, 2)) for factor in factors}
    return with_size(min(losses, key=losses.__getitem__), task.recipe.iterations)


def _after_one_update(task: Task) -> float:
    """The loss after the first of several updates: a last one would be halved until it helps."""
    _, step = islice(task.steps(), 2)
    return step.compared


def _in_turn(tasks: Mapping[str, Task], meter: Account, reporter: Reporter) -> dict[str, list[Update]]:
    """The updates of every task, an update of each after the other, so that a drift of the machine meets all."""
    running = {name: task.steps() for name, task in tasks.items()}
    updates: dict[str, list[Update]] = {name: [] for name in tasks}
    most = max(task.recipe.iterations for task in tasks.values())
    for _ in reporter.track(range(most + 1), "training", most + 1):
        for name, steps in running.items():
            (step, spent), memory = with_peak(
                partial(meter.measure, partial(next, steps, None)), tasks[name].model.device
            )
            if step is not None:
                updates[name].append(Update(step, spent, memory))
    return updates


def _median(spent: Sequence[Spent]) -> Spent:
    rows = [asdict(one) for one in spent]
    values: dict[str, Any] = {name: median(row[name] for row in rows) for name in rows[0]}
    return Spent(**values)


def _points(
    model: Model,
    guide: Guide,
    target: Contrast,
    samples: Inverted,
    updates: Sequence[Update],
    distance: float,
) -> Iterator[Point]:
    """What the best controls after some numbers of updates do; a control that has not changed is not measured again."""
    last = len(updates) - 1
    known: tuple[Control, tuple[float, float, float]] | None = None
    for k in sorted({k for k in SHOWN if k < last} | {last}):
        control = updates[k].step.state.best
        if known is None or known[0] is not control:
            known = control, effect_at(model, guide, target, samples, control, distance)
        yield Point(k, seconds_after(k, [update.spent.seconds for update in updates]), *known[1])


def seconds_after(updates: int, spent: Sequence[float]) -> float:
    """What a training of so many updates takes, by what those of a longer one and its last evaluation `spent`.

    The first one's, which an anchored path saves its simulation, as often as needed the median of the others', and the
    last evaluation's, which decides what is best.
    """
    first, *others, last = spent
    return first + (updates - 1) * median(others or [first]) + last


def effect_at(
    model: Model, guide: Guide, target: Contrast, samples: Inverted, control: Control, distance: float
) -> tuple[float, float, float]:
    """Mean change of the text's log-odds where a control, at some strength, moves faces by `distance`.

    The strength is searched for by regula falsi from 0; the effect is read off between the strengths tried. Returns the
    effect, half its 95 % interval, and the nearest distance that was measured: (0, 0, 0) for a control that is zero.
    """
    moved = (control.values * control.grid.spans_of(control.values)).sum(0).square().mean().sqrt()
    if not moved:
        return 0.0, 0.0, 0.0
    strength, tried = MOVED / float(moved), [(0.0, 0.0, 0.0)]
    for _ in range(ATTEMPTS):
        effects, _ = measure(model, guide, control, samples, [target], (strength,))
        tried.append((float(effects.identity[0]), float(effects.effect[0, 0]), float(effects.error[0])))
        strength *= distance / max(tried[-1][0], 1e-6)
    identity, effect, error = map(np.array, zip(*sorted(tried), strict=True))
    nearest = float(identity[np.abs(identity - distance).argmin()])
    return float(np.interp(distance, identity, effect)), float(np.interp(distance, identity, error)), nearest


def course_rows(courses: Sequence[Course]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table, a row for each course."""
    head = ["recipe", "step", "s an update", "simulate", "guide", "back-propagate", "evaluations", "products", "MB"]
    head += ["updates", "seconds", "effect"]
    rows = []
    for course in courses:
        spent, best = course.spent, max(course.points, key=lambda point: point.effect)
        parts = (spent.seconds, spent.simulating, spent.guiding, spent.propagating)
        numbers = [f"{part:.2f}" for part in parts] + [f"{spent.evaluations}", f"{spent.products}"]
        reached = [f"{best.updates}", f"{best.seconds:.1f}", f"{best.effect:+.2f} ± {best.error:.2f}"]
        rows.append([course.recipe, f"{course.step_size:g}", *numbers, f"{course.memory / 1e6:.0f}", *reached])
    return head, rows
