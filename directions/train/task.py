"""Training a direction: about ten images and a sentence become one shared control, calibrated and described."""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from directions.apply.inversion import Inverted, join, sample_images
from directions.file.direction import Direction, DirectionInfo
from directions.train.calibration import calibrate
from directions.train.recipe import Recipe, load_recipe
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.preserve import load_distance
from flowgrad.guidance.text import Contrast, TextObjective, log_odds
from flowgrad.models import TIME_CONVENTION, Model
from flowgrad.ode import Control, Grid
from flowgrad.optimize import State, Step, optimize

HELD_OUT = 8  # samples that the strength is calibrated on
HELD_OUT_SEED = 1_000_000  # their latents: far from those that people train on


@dataclass(frozen=True)
class Task:
    """What is asked for: raise `target` on all of `photos`, keep the texts of `keep`."""

    model: Model
    guide: Guide
    photos: Inverted
    target: Contrast
    keep: tuple[Contrast, ...]
    recipe: Recipe
    seed: int = 0

    @classmethod
    def create(
        cls,
        model: Model,
        photos: Inverted,
        text: str,
        *,
        guide: Guide | None = None,
        source: str | None = None,
        keep: Sequence[str] = (),
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> "Task":
        """Fill in what a model's configuration says: its guide, and its subject as source text.

        Raises UsageError for an empty text, or no photo.
        """
        if not len(photos):
            raise UsageError("a direction needs at least one photo; ten are a good number")
        subject, chosen = model.config.subject, recipe or load_recipe()
        return cls(
            model,
            guide or load_guide(model.config.guide, model.device),
            replace(photos, anchored=chosen.way.anchored),
            Contrast.parse(text, source or subject),
            tuple(Contrast.parse(written, subject) for written in keep),
            chosen,
            seed,
        )

    @property
    def unknown_words(self) -> list[str]:
        """Words of the texts that the guide has never seen, once each."""
        texts = [t for c in (self.target, *self.keep) for t in (c.text, c.source)]
        return list(dict.fromkeys(word for text in texts for word in self.guide.unknown_words(text)))

    def grid(self) -> Grid:
        """The grid that the control lives on, from the straightness of the photos' trajectories."""
        return self.photos.grid(self.recipe.intervals, self.recipe.xi)

    def steps(self, shared: bool = True, resume: State | None = None) -> Iterator[Step]:
        """Run Algorithm 1 and yield every evaluation; a control for each photo unless `shared`."""
        r = self.recipe
        objective = TextObjective(
            self.guide,
            self.target,
            self.photos.images,
            load_distance(r.preserve, self.model.device),
            self.model.decode,
            self.keep,
            r.eta,
            r.keep_weight,
            r.augmentations,
        )
        return optimize(
            self.model.velocity,
            self.photos.x0,
            self.grid(),
            objective,
            replace(r.settings(self.seed), mirror=shared and self.model.config.mirror),
            shared=shared,
            anchor=self.photos.residual,
            resume=resume,
            store=self.model.store,
        )


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
    *,
    source: str = "samples",
    title: str = "",
    image_hashes: Sequence[str] = (),
    description: str = "",
    tags: Sequence[str] = (),
    licence: str = "",
) -> Direction:
    """Calibrate a trained control (M, 1, *D) on held-out `photos` and describe it.

    The control of the direction is the trained one times the calibration's unit, compacted, in F16.
    Raises FlowgradError if the control is zero: the training found nothing better.
    """
    if not control.values.any():
        raise FlowgradError(
            "the training found nothing better than no change at all: lower --step-size, raise --eta (less is "
            "preserved), give fewer --keep or a lower --set keep_weight, or put the text differently"
        )
    model, r = task.model, task.recipe
    probes = [Contrast.parse(probe, model.config.subject) for probe in model.config.probes]
    calibration = calibrate(model, task.guide, control, photos, task.target, probes, source)
    scaled = (control * calibration.unit).compact()
    info = DirectionInfo(
        title=title or task.target.text,
        model=model.name,
        fingerprint=model.fingerprint,
        steps=model.config.steps,
        time_convention=TIME_CONVENTION,
        text=task.target.text,
        source_text=task.target.source,
        keep=tuple(map(str, task.keep)),
        description=description,
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        license=licence or model.config.licence,
        tags=tuple(tags),
        guide=task.guide.name,
        guide_fingerprint=task.guide.fingerprint,
        inversion=str(r.way),
        forward=r.forward,
        xi=r.xi,
        eta=r.eta,
        lam=r.penalty,
        optimizer=r.optimizer,
        step_size=r.step_size,
        seed=task.seed,
        iterations=r.iterations,
        losses=tuple(round(loss, 6) for loss in losses),
        images=len(task.photos),
        image_hashes=tuple(image_hashes),
        calibration=calibration,
    )
    u = scaled.values.squeeze(1).float().cpu().numpy()
    return Direction.create(u, np.array(scaled.grid.starts), info)
