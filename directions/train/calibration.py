"""Strength as a unit: a trained control is measured on images that it was not trained on, and becomes a direction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from directions.apply.effects import Effects, kept_at_least, measure, spread
from directions.apply.inversion import Inverted, join, sample_images
from directions.file.calibration import Calibration
from directions.file.direction import Direction
from directions.file.header import DirectionInfo
from directions.file.metadata import today
from directions.train.task import Task
from flowgrad.errors import FlowgradError
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.judge import load_judge
from flowgrad.guidance.text import Contrast, log_odds
from flowgrad.models import TIME_CONVENTION, Model
from flowgrad.ode import Control, Grid
from flowgrad.workers import Share

HELD_OUT = 48  # samples that the strength is calibrated on
HELD_OUT_SEED = 1_000_000  # their latents: far from those that people train on
KEPT = 0.98  # share of faces that must stay the same person, by its lower bound
SATURATED = 0.98  # share of the greatest effect at which more strength is not worth its price
TRIED = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)  # multiples of the trained control, close where faces change
WEAKEST = 0.25  # multiple that strength 1 is where none is safe
FINE = 401  # points of a fine scale of strengths
MOVED = 0.05  # change of a judge's mean probability from which its answer is recorded
NOTICED = 1e-4  # change of log-odds from which a wrong sign is one: the last decimal that files record


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
    samples = samples_without(task.model, task.guide, task.target, count, HELD_OUT_SEED, way.grid(control), task.share)
    return replace(samples, anchored=way.anchored)


def samples_without(
    model: Model,
    guide: Guide,
    target: Contrast,
    count: int,
    seed: int,
    grid: Grid | None = None,
    deal: Callable[[int], Share] | None = None,
) -> Inverted:
    """Of half as many samples again, those that show the target's text least.

    To be trained and calibrated on: what a direction does is seen on images that lack its text. deal: makes
    this process's share of so many; without it, this process draws all, as many at a time as the model takes. Each
    process has all that the others draw.
    """
    wanted = count + -(-count // 2)
    share = deal(wanted) if deal else Share(wanted, group=model.batch)
    drawn = [join(sample_images(model, share.count, seed, grid, part)) for part in share.parts]
    scores = share.gather(torch.cat([log_odds(guide, part.images, [target])[:, 0] for part in drawn]))
    return join(drawn).gather(share).select(sorted(scores.argsort()[:count].tolist()))


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
    config, recipe = task.model.config, task.recipe
    scaled = control * calibration.unit
    if recipe.over_time == "free":  # the intervals of others are alike, and photos are edited on them all the same
        scaled = scaled.compact()
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
        date=today(),
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
    """Measure a trained control on held-out `photos` and find the multiple of it that strength 1 stands for.

    That is the strongest at which KEPT of the faces stay the same person, or the one at which the effect saturates,
    whichever is less; the weakest where none is safe. Raises FlowgradError if it lowers the text's own score by more
    than can be chance and than a file records.
    """
    config, target = task.model.config, task.target
    probes = [Contrast.parse(probe, config.subject) for probe in config.probes]
    judge = load_judge(config.judge, task.model.device) if config.judge else None
    share, texts = task.share(len(photos)), [target, *probes]
    own = [
        measure(task.model, task.guide, control, photos.select(part), texts, TRIED, judge)[0] for part in share.parts
    ]
    effects = Effects.join(own).gather(share)
    low, high = safe_range(effects)
    unit = min(high, saturation(effects)) or WEAKEST
    level, error = (float(np.interp(unit, TRIED, values)) for values in (effects.effect[:, 0], effects.error))
    if level < -max(error, NOTICED):
        raise FlowgradError(
            f"on images that it was not trained on, the control changes the log-odds of {target} by {level:g}: "
            "it does the opposite. Put the text differently, choose another source text, or train on more photos"
        )
    means = {name: p.mean(1) for name, p in effects.answers.items()}
    return Calibration(
        level=round(max(level, 0.0), 4),
        unit=round(unit, 6),
        strengths=tuple(round(s / unit, 4) for s in TRIED),
        effect=_rounded(effects.effect[:, 0]),
        error=_rounded(effects.error),
        identity=_rounded(effects.identity),
        kept=_rounded(effects.kept),
        judged={name: _rounded(p) for name, p in means.items() if np.ptp(p) >= MOVED},
        side_effects={str(p): _rounded(effects.effect[:, i + 1]) for i, p in enumerate(probes)},
        safe=(round(low / unit, 2), round(high / unit, 2)),
        photos=len(photos),
        source=source,
    )


def saturation(effects: Effects, sign: int = 1) -> float:
    """How far one has to go in this direction until the effect has SATURATED of the most that any strength has."""
    far = np.linspace(0, max(sign * effects.strengths[0], sign * effects.strengths[-1]), FINE)[1:]
    effect = sign * np.interp(sign * far, effects.strengths, effects.effect[:, 0])
    return float(far[np.argmax(effect >= SATURATED * effect.max())])


def safe_range(effects: Effects) -> tuple[float, float]:
    """The strengths around 0 through which the effect keeps growing and faces stay the same people; (0, 0) if none.

    Images that lack a text can lose little of it: below 0 the range ends where there is no more to lose, since more
    strength would only deform them.
    """
    return -min(_last_safe(effects, -1), saturation(effects, -1)), _last_safe(effects, 1)


def _last_safe(effects: Effects, sign: int) -> float:
    """How far one may go in this direction: `effects` are taken to be straight between the strengths measured."""
    far = np.linspace(0, max(sign * effects.strengths[0], sign * effects.strengths[-1]), FINE)
    order = np.argsort(sign * np.array(effects.strengths))
    measured = sign * np.array(effects.strengths)[order]

    def along(values: np.ndarray) -> np.ndarray:
        return np.interp(far, measured, values[order])

    safe = np.diff(along(sign * effects.effect[:, 0]), prepend=-np.inf) > 0
    if effects.distances.size:
        mean, deviation = along(effects.identity), along(spread(effects.distances))
        safe &= kept_at_least(mean, deviation, effects.distances.shape[1]) >= KEPT
    return float(far[-1] if safe.all() else far[max(int(np.argmin(safe)) - 1, 0)])


def _rounded(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)
