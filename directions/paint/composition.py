"""Composition directions: one control that makes every seed follow the same painting, as a direction of the bank."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from directions.apply.inversion import ANCHORED_EULER, Inverted, join, sample_images
from directions.apply.steer import steer
from directions.file.direction import Direction
from directions.file.header import DirectionInfo
from directions.file.metadata import today
from flowgrad.errors import FlowgradError
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.models import TIME_CONVENTION, Model
from flowgrad.ode import Control, Grid
from flowgrad.optimize import Settings, Step, optimize
from flowgrad.painting.blur import rmse
from flowgrad.painting.objective import PaintingObjective, Words

LATENTS = 10  # that a composition is trained over
TRAINED_SEED = 2_000_000  # of them: far from those that people look at
INTERVALS = 10  # of its grid
STEPS, RATE = 16, 0.3


@dataclass(frozen=True)
class Composed:
    """A shared control (M, 1, *D), the samples it was trained on, and the loss of every evaluation."""

    control: Control
    samples: Inverted
    losses: tuple[float, ...]


def settings(steps: int | None, seed: int) -> Settings:
    """How a composition's control is found."""
    return Settings(iterations=steps or STEPS, optimizer="normalized", step_size=RATE, seed=seed)


def latents(model: Model) -> Inverted:
    """The samples that a composition is trained over, with the paths that led to them."""
    return join(sample_images(model, LATENTS, TRAINED_SEED))


def grid(model: Model) -> Grid:
    """The grid of a composition's control: equal intervals."""
    return Grid.uniform(model.config.steps, INTERVALS)


def compose(model: Model, strokes: Tensor, samples: Inverted, words: Words | None, how: Settings) -> Iterator[Step]:
    """Yield Algorithm 1's steps on one control for all samples, on their anchored paths: strength 0 is the sample."""
    return optimize(
        model.velocity,
        samples.x0,
        grid(model),
        PaintingObjective(strokes, words),
        how,
        path=samples.path,
        store=model.store,
        decode=model.decode,
    )


def on_seeds(model: Model, control: Control, strokes: Tensor, count: int, seed: int) -> tuple[Inverted, Tensor, Tensor]:
    """New samples, what a control makes of them (B, 3, H, W), and their RMSE (B,)."""
    samples = join(sample_images(model, count, seed, ANCHORED_EULER.grid(control)))
    images = steer(model, samples, control)
    return samples, images, rmse(images, strokes)


def to_direction(
    model: Model,
    composed: Composed,
    how: Settings,
    title: str,
    description: str,
    target: Contrast | None,
    guide: Guide | None,
    image_hash: str,
) -> Direction:
    """A composition as a direction of format 1, whose strength 1 is the trained control; `image_hash` of the painting.

    Raises FlowgradError if the training found nothing.
    """
    if not composed.control.values.any():
        raise FlowgradError("the training found no control that comes nearer to the painting: give it more --steps")
    control = composed.control.compact()
    info = DirectionInfo(
        title=title,
        model=model.name,
        fingerprint=model.fingerprint,
        steps=model.config.steps,
        time_convention=TIME_CONVENTION,
        text=target.text if target else "",
        source_text=target.source if target else "",
        description=description,
        date=today(),
        license=model.config.licence,
        tags=("painting",),
        guide=guide.name if target and guide else "",
        guide_fingerprint=guide.fingerprint if target and guide else "",
        inversion=str(ANCHORED_EULER),
        optimizer=how.optimizer,
        step_size=how.step_size,
        iterations=how.iterations,
        seed=how.seed,
        losses=tuple(round(loss, 6) for loss in composed.losses),
        images=len(composed.samples),
        image_hashes=(image_hash,),
    )
    return Direction.create(control.values.squeeze(1).float().cpu().numpy(), np.array(control.grid.starts), info)
