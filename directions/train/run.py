"""The jobs behind `train-direction` and `edit`: photos in, files out, able to go on after an interruption."""

import dataclasses
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor

from directions.apply.edit import Edit, keep_identity
from directions.apply.identity import SURELY_THE_SAME, compares_faces
from directions.apply.illustration import PREVIEW_SAMPLES, add_illustrated
from directions.apply.inversion import Inverted, invert_images, join
from directions.apply.steer import steer, sweep, to_control
from directions.bank.bank import Entry
from directions.figures import before_after, curves, strength_label
from directions.file.calibration import at_strength
from directions.file.direction import Direction
from directions.photo.reading import to_images
from directions.photo.writing import save_image
from directions.progress import Reporter, timed
from directions.train.calibration import Labels, finish, held_out
from directions.train.checkpoint import train_resumably
from directions.train.folder import CHECKPOINT, CURVES, FIGURE, SUMMARY, Run
from directions.train.recipe import Recipe
from directions.train.task import Task
from directions.train.training import Training, train
from flowgrad.files import atomic_path, remove_leftovers
from flowgrad.guidance.text import log_odds
from flowgrad.models import Model
from flowgrad.ode import Control
from flowgrad.straightness import pooled, straightness
from flowgrad.workers import ALONE, Workers


def invert_photos(
    model: Model,
    images: Tensor,
    recipe: Recipe,
    reporter: Reporter,
    control: Control | None = None,
    workers: Workers = ALONE,
) -> Inverted:
    """Images (B, 3, H, W) in [-1, 1] inverted as a recipe says, on all N steps, or as a control is applied to them.

    Processes share them out, and each has all of what becomes of them.
    """
    share, way = recipe.share(len(images), model.batch, workers), recipe.way
    grid = way.grid(control) if control else None
    inverted = (join(invert_images(model, images[part], way, grid)) for part in share.parts)
    return join(list(reporter.track(inverted, "inverting photos", len(share.parts)))).gather(share)


def train_into_bank(
    task: Task,
    run: Run,
    labels: Labels,
    reporter: Reporter,
    *,
    calibrate_on: Tensor | None,
    calibration_photos: int,
    origin: Sequence[str],
) -> tuple[Entry, dict[str, Any]] | None:
    """Train, calibrate on held-out photos or samples, put the direction into the bank, and draw the run's figures.

    calibrate_on: photos (n, 3, H, W) in [-1, 1]; without them, `calibration_photos` samples of the model. origin: see
    `task_hash`.
    The caller has claimed the name; see `Run.claimed`. Samples of the model illustrate the direction in the bank; the
    user's photos appear in the run's folder alone.
    Returns the bank's entry, and what the training was and did as plain values, which its folder holds as JSON too. Of
    several processes all train and calibrate, and the leading one alone writes; to the others there is None.
    """
    clock, overwrite = [perf_counter()], run.overwrite or run.was_ending
    for file in (CHECKPOINT, SUMMARY, FIGURE, CURVES) if task.workers.leads else ():
        remove_leftovers(run.folder / file)
    _warn_of_unknown_words(task, reporter)
    steps = train_resumably(task, run.checkpoint, run.resume, origin, reporter)
    for training in reporter.track(steps, "training", task.recipe.iterations + 1):
        control = training.control
    clock.append(perf_counter())
    count = max(calibration_photos, PREVIEW_SAMPLES) if calibrate_on is None else PREVIEW_SAMPLES
    samples = timed(reporter, "sampling", lambda: held_out(task, control, count))
    photos, source = samples.select(range(min(count, calibration_photos))), "samples"
    if calibrate_on is not None:
        photos = invert_photos(task.model, calibrate_on, task.recipe, reporter, control, task.workers)
        source = "photos"
    direction = timed(reporter, "calibrating", lambda: finish(task, control, training.losses, photos, labels, source))
    if not task.workers.leads:
        return None
    warn_of_weakness(direction, reporter)
    clock.append(perf_counter())
    timed(reporter, "drawing", lambda: _draw(task, direction, training, run.folder))
    clock.append(perf_counter())
    summary = _write_summary(task, run, training, direction, clock)
    shown = samples.select(range(PREVIEW_SAMPLES))
    entry = add_illustrated(task.model, direction, run.name, run.bank, shown, overwrite, claimed=True)
    run.checkpoint.unlink(missing_ok=True)
    return entry, summary


def _write_summary(
    task: Task, run: Run, training: Training, direction: Direction, clock: Sequence[float]
) -> dict[str, Any]:
    """Write what the training was and did as JSON, and return it; the header's picture is left out."""
    stages = zip(("training", "calibration", "figures"), pairwise(clock), strict=True)
    summary = {
        "name": run.name,
        "direction": str(run.bank.path_for(run.name, task.model.name)),
        "files": [str(run.folder / file) for file in (FIGURE, CURVES, SUMMARY)],
        "seconds": {stage: round(end - begin, 2) for stage, (begin, end) in stages},
        "recipe": task.recipe.model_dump(),
        "grid": list(task.grid().knots),
        "history": [dataclasses.asdict(record) for record in training.history],
        "info": {key: value for key, value in direction.info.as_dict().items() if key != "thumbnail"},
    }
    with atomic_path(run.folder / SUMMARY) as temporary:
        temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
    return summary


def _warn_of_unknown_words(task: Task, reporter: Reporter) -> None:
    for word in task.unknown_words:
        reporter.warn(f"the guide has never seen the word {word!r}: the result may have little to do with it")


def warn_of_weakness(direction: Direction, reporter: Reporter) -> None:
    """Warn if no strength is safe, or if what strength 1 does may be nothing but chance."""
    calibration = direction.info.calibration
    if calibration is None:
        return
    error = at_strength(calibration, calibration.error, 1.0) if calibration.error else 0.0
    if calibration.safe[1] <= 0:
        reporter.warn(
            "no strength that was tried is safe: faces turn into other people, or the effect does not grow. "
            "Try another --text or --source."
        )
    elif calibration.level <= error:
        reporter.warn(
            f"strength 1 changes the text's log-odds by {calibration.level:.2f}, within {error:.2f} of nothing: "
            "more was not safe. Try another --text or --source, or more --iterations."
        )


def _draw(task: Task, direction: Direction, training: Training, folder: Path) -> None:
    shown = _shown_strengths(direction)
    edited = sweep(task.model, task.photos, to_control(direction, task.model), shown)
    rows = {"photo": to_images(task.photos.images)}
    rows |= {strength_label(s): to_images(images) for s, images in zip(shown, edited, strict=True)}
    figure = before_after(rows, f"{direction.info.title}: the photos it was trained on")
    save_image(figure, folder / FIGURE, overwrite=True)
    bends = pooled(straightness(task.photos.trajectory.velocities)).tolist()
    curves(training.history, bends, task.grid().knots, folder / CURVES, overwrite=True)


def _shown_strengths(direction: Direction) -> tuple[float, ...]:
    """Strength 1, and -1 or the lowest that is safe."""
    calibration = direction.info.calibration
    lowest = max(-1.0, calibration.safe[0]) if calibration else -1.0
    return (1.0, lowest) if lowest < 0 else (1.0,)


def edit(task: Task, strength: float, reporter: Reporter) -> tuple[Edit, float]:
    """Find a control for the task's one photo alone (section 5.1 of the paper) and apply it.

    Strength 1 is all of it or, of a face that dlib can compare, the largest share at which the distance to the photo
    stays below SURELY_THE_SAME. Returns the edit, whose share that is, and the change of the text's log-odds.
    """
    _warn_of_unknown_words(task, reporter)
    for training in reporter.track(train(task, shared=False), "editing", task.recipe.iterations + 1):
        control = training.control
    share = 1.0
    if compares_faces(task.model):
        share = keep_identity(task.model, control, task.photos, SURELY_THE_SAME)[0].share
    images = steer(task.model, task.photos, control * (strength * share))
    before, after = (log_odds(task.guide, x, [task.target]) for x in (task.photos.images, images))
    return Edit(task.photos.images[0].clamp(-1, 1), images, share), float((after - before).mean())
