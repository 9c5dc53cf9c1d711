"""Strength as a unit: a trained control is measured on images that it was not trained on, and becomes a direction."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from directions.apply.effects import Effects, measure
from directions.apply.inversion import Inverted, join, sample_images
from directions.file.direction import Direction
from directions.file.header import Calibration, DirectionInfo
from directions.train.task import Task
from flowgrad.errors import FlowgradError
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.text import Contrast, log_odds
from flowgrad.models import TIME_CONVENTION, Model
from flowgrad.ode import Control, Grid

HELD_OUT = 8  # samples that the strength is calibrated on
HELD_OUT_SEED = 1_000_000  # their latents: far from those that people train on
KEPT = 0.9  # share of faces that must stay the same person within the safe range
TRIED = (-1.5, -1.0, -0.5, 0.0, 0.5, 0.75, 1.0, 1.5)  # multiples of the trained control
WEAKEST = min(strength for strength in TRIED if strength > 0)


@dataclass(frozen=True)
class Labels:
    """What a direction's file says for people, with hashes of the photos' files; its title is by default the text."""

    title: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()


def held_out(task: Task, control: Control, count: int = HELD_OUT) -> Inverted:
    """Samples that no training uses, to calibrate a control on; drawn on the grid that photos are inverted on."""
    way = task.recipe.way
    samples = samples_without(task.model, task.guide, task.target, count, HELD_OUT_SEED, way.grid(control))
    return replace(samples, anchored=way.anchored)


def samples_without(
    model: Model, guide: Guide, target: Contrast, count: int, seed: int, grid: Grid | None = None
) -> Inverted:
    """Of half as many samples again, those that show the target's text least.

    To be trained and calibrated on: what a direction does is seen on images that lack its text.
    """
    drawn = join(sample_images(model, count + -(-count // 2), seed, grid))
    scores = log_odds(guide, drawn.images, [target])[:, 0]
    return drawn.select(sorted(scores.argsort()[:count].tolist()))


def finish(
    task: Task,
    control: Control,
    losses: Sequence[float],
    photos: Inverted,
    labels: Labels = Labels(),
    source: str = "samples",
) -> Direction:
    """Calibrate a trained control (M, 1, *D) on held-out `photos` and describe it; `source` says what the photos are.

    The control of the direction is the trained one times the calibration's unit, compacted, in F16.
    Raises FlowgradError if the control is zero: the training found nothing better.
    """
    if not control.values.any():
        raise FlowgradError(
            "the training found nothing better than no change at all: lower --step-size, raise --eta (less is "
            "preserved), give fewer --keep or a lower --set keep_weight, or put the text differently"
        )
    calibration = calibrate(task, control, photos, source)
    scaled = (control * calibration.unit).compact()
    config, recipe = task.model.config, task.recipe
    same = {"forward", "xi", "eta", "optimizer", "step_size", "iterations"}  # that the file says as the recipe does
    info = DirectionInfo(
        title=labels.title or task.target.text,
        model=config.name,
        fingerprint=task.model.fingerprint,
        steps=config.steps,
        time_convention=TIME_CONVENTION,
        text=task.target.text,
        source_text=task.target.source,
        keep=tuple(map(str, task.keep)),
        description=labels.description,
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        license=config.licence,
        tags=labels.tags,
        guide=task.guide.name,
        guide_fingerprint=task.guide.fingerprint,
        inversion=str(recipe.way),
        lam=recipe.penalty,
        seed=task.seed,
        losses=tuple(round(loss, 6) for loss in losses),
        images=len(task.photos),
        image_hashes=labels.hashes,
        calibration=calibration,
        **recipe.model_dump(include=same),
    )
    return Direction.create(scaled.values.squeeze(1).float().cpu().numpy(), np.array(scaled.grid.starts), info)


def calibrate(task: Task, control: Control, photos: Inverted, source: str) -> Calibration:
    """Measure a trained control on held-out `photos` and find the multiple of it that has the model's effect level.

    Where that level is out of reach, strength 1 is the strongest safe multiple, or the weakest that was tried where
    none is safe, and the calibration's `level` says which effect that has.
    Raises FlowgradError if that multiple lowers the text's score by more than 1 % of the model's effect level.
    """
    config, target = task.model.config, task.target
    probes = [Contrast.parse(probe, config.subject) for probe in config.probes]
    effects = measure(task.model, task.guide, control, photos, [target, *probes], TRIED)
    effect = effects.effects[:, 0]
    low, high = safe_range(effects)
    unit = reach(effects.strengths, effect, config.effect_level, high or WEAKEST)
    level = round(float(np.interp(unit, effects.strengths, effect)), 4)
    if level < -0.01 * config.effect_level:
        raise FlowgradError(
            f"on images that it was not trained on, the control changes the log-odds of {target} by {level:g}: "
            "it does the opposite. Put the text differently, choose another source text, or train on more photos"
        )
    return Calibration(
        level=max(level, 0.0),
        unit=round(unit, 6),
        strengths=tuple(round(s / unit, 4) for s in effects.strengths),
        effect=_rounded(effect),
        identity=_rounded(effects.identity),
        kept=_rounded(effects.kept),
        side_effects={str(p): _rounded(effects.effects[:, i + 1]) for i, p in enumerate(probes)},
        safe=(round(low / unit, 2), round(high / unit, 2)),
        photos=len(photos),
        source=source,
    )


def reach(strengths: Sequence[float], effect: np.ndarray, level: float, most: float) -> float:
    """The smallest positive strength, `most` at the most, where the effect (piecewise linear) reaches `level`."""
    points = [(s, e) for s, e in zip(strengths, effect.tolist(), strict=True) if s >= 0]
    for (a, below), (b, above) in pairwise(points):
        if below < level <= above:
            return min(most, a + (b - a) * (level - below) / (above - below))
    return most


def safe_range(effects: Effects) -> tuple[float, float]:
    """The strengths around 0 through which the effect keeps growing and faces stay the same people; (0, 0) if none."""
    zero = effects.strengths.index(0.0)
    return _last_safe(effects, range(zero, -1, -1)), _last_safe(effects, range(zero, len(effects.strengths)))


def _last_safe(effects: Effects, path: range) -> float:
    """Follow the strengths from 0 outwards while it is safe."""
    last, sign = path[0], path.step
    for i in path[1:]:
        grows = sign * (effects.effects[i, 0] - effects.effects[i - sign, 0]) > 0
        same = not effects.kept or effects.kept[i] >= KEPT
        if not (grows and same):
            break
        last = i
    return effects.strengths[last]


def _rounded(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)
