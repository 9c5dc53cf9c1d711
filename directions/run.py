"""The jobs behind `train-direction` and `edit`: photos in, files out, able to go on after an interruption."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image

from directions.apply import steer, sweep, to_control
from directions.bank import Bank, Entry
from directions.batch import Photos, read_photos
from directions.calibrate import LEVEL
from directions.card import to_card
from directions.checkpoint import Checkpoint, Record, load_checkpoint, save_checkpoint, task_hash
from directions.direction import Direction, refuse_existing
from directions.editing import Edit
from directions.figures import before_after, curves, preview, strength_label, thumbnail
from directions.latents import Inverted, invert_images, join
from directions.photos import Align, save_image, to_images
from directions.recipe import Recipe
from directions.report import Reporter
from directions.train import Task, finish, held_out, samples_without
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path
from flowgrad.guidance.text import Contrast, log_odds
from flowgrad.models import Model
from flowgrad.models.guide import Guide
from flowgrad.ode import Control
from flowgrad.optimize import Step
from flowgrad.straightness import pooled, straightness

CHECKPOINT, SUMMARY, FIGURE, CURVES = "checkpoint.safetensors", "summary.json", "before-after.png", "curves.png"
SHOWN_STRENGTHS = (1.0, -1.0)
PREVIEW_SAMPLES = 4


@dataclass(frozen=True)
class Labels:
    """What a direction is called: its name in the bank, and what its file says for people."""

    name: str
    title: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """Where a training keeps its files, and whether it goes on from an interrupted one (and may replace files)."""

    folder: Path
    bank: Bank
    resume: bool = True
    overwrite: bool = False

    @property
    def checkpoint(self) -> Path:
        """The file that an interrupted training goes on from."""
        return self.folder / CHECKPOINT


@dataclass(frozen=True)
class Trained:
    """A direction in the bank, the files of its run, the optimisation's history, and seconds by stage."""

    entry: Entry
    direction: Direction
    files: tuple[Path, ...]
    history: tuple[Record, ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Edited:
    """One photo edited for itself: before, after, the change of the text's log-odds, and the `Edit.difference`."""

    before: Image.Image
    after: Image.Image
    effect: float
    difference: np.ndarray


def check_free(run: Run, name: str, model: str) -> None:
    """Raise UsageError before anything is computed if the name is bad, or it or the run's files are taken.

    The figures of an unfinished run, which has a checkpoint, may be drawn again.
    """
    files = (SUMMARY,) if run.checkpoint.exists() else (SUMMARY, FIGURE, CURVES)
    for path in (run.bank.path_for(name, model), *(run.folder / file for file in files)):
        refuse_existing(path, run.overwrite)


def gather(
    model: Model, files: Sequence[Path], align: Align, recipe: Recipe, reporter: Reporter
) -> tuple[Inverted, tuple[str, ...]]:
    """Photos read, aligned and inverted, with the hashes of their files."""
    photos = read_photos(files, model, align, reporter)
    return invert_photos(model, photos, recipe, reporter), photos.hashes


def invert_photos(model: Model, photos: Photos, recipe: Recipe, reporter: Reporter) -> Inverted:
    """Photos inverted as a recipe says."""
    parts = invert_images(model, photos.images, recipe.inversion, recipe.anchored)
    return join(list(reporter.track(parts, "inverting photos")))


def draw(model: Model, guide: Guide, target: Contrast, count: int, seed: int, reporter: Reporter) -> Inverted:
    """`count` samples to train on, of those that show the target's text least; see `samples_without`."""
    work = (samples_without(model, guide, target, n, seed) for n in (count,))
    return next(iter(reporter.track(work, "sampling")))


def train(task: Task, run: Run, reporter: Reporter, *conditions: str) -> tuple[Control, tuple[Record, ...]]:
    """Run Algorithm 1 with a checkpoint after every iteration; return the best control and the history.

    It goes on from the run's checkpoint if that is of exactly this task, and says which is the case; `conditions`: see
    `task_hash`.
    """
    for word in task.unknown_words:
        reporter.warn(f"the guide has never seen the word {word!r}: the result may have little to do with it")
    identity = task_hash(task, *conditions)
    found = _resumed(task, run, identity, reporter) if run.resume else None
    history = list(found.history) if found else []
    best = found.state.best if found else None
    left = task.recipe.iterations + 1 - len(history)
    for step in reporter.track(_steps(task, found), "training", left):
        history.append(Record.of(step))
        best = step.state.best
        save_checkpoint(run.checkpoint, Checkpoint(identity, step.state, tuple(history)))
    if best is None:
        raise FlowgradError("the training made no step. Give at least one iteration.")
    return best, tuple(history)


def _resumed(task: Task, run: Run, identity: str, reporter: Reporter) -> Checkpoint | None:
    """The run's checkpoint, if it is of this task; says which is the case where there is one."""
    found = load_checkpoint(run.checkpoint, identity, task.model.device)
    if found:
        reporter.warn(f"going on after {found.state.iteration} of {task.recipe.iterations + 1} evaluations")
    elif run.checkpoint.is_file():
        told = "is of another training (photos, texts, recipe, ...) or version of flowgrad"
        reporter.warn(f"{run.checkpoint} {told}: it is replaced, and this one starts from the beginning")
    return found


def _steps(task: Task, found: Checkpoint | None) -> Iterator[Step]:
    return task.steps(resume=found.state if found else None)


def train_into_bank(
    task: Task,
    labels: Labels,
    run: Run,
    reporter: Reporter,
    *,
    hashes: Sequence[str] = (),
    calibrate_on: Inverted | None = None,
    calibration_photos: int = 8,
    conditions: Sequence[str] = (),
) -> Trained:
    """Train, calibrate on held-out photos or samples, put the direction into the bank, and draw the run's figures.

    Samples of the model illustrate the direction in the bank; the user's photos appear in the run's folder alone.
    """
    check_free(run, labels.name, task.model.name)
    started = perf_counter()
    control, history = train(task, run, reporter, *conditions)
    trained = perf_counter()
    photos, samples = _held_out(task, control, calibrate_on, calibration_photos, reporter)
    direction = _calibrated(task, labels, control, history, photos, hashes, calibrate_on, reporter)
    calibrated = perf_counter()
    files = _draw(task, direction, history, run, reporter)
    entry, direction = add_illustrated(task.model, direction, labels, run.bank, samples, run.overwrite)
    seconds = {
        "training": trained - started,
        "calibration": calibrated - trained,
        "figures": perf_counter() - calibrated,
    }
    result = Trained(entry, direction, files, history, {stage: round(s, 2) for stage, s in seconds.items()})
    summary = _write_summary(task, result, run)
    run.checkpoint.unlink(missing_ok=True)
    return dataclasses.replace(result, files=(*files, summary))


def _held_out(
    task: Task, control: Control, given: Inverted | None, count: int, reporter: Reporter
) -> tuple[Inverted, Inverted]:
    """What to calibrate on, and the samples that may be shown with the direction."""
    if count < 1:
        raise UsageError(f"--calibration-photos must be at least 1; got {count}")
    number = PREVIEW_SAMPLES if given is not None else max(count, PREVIEW_SAMPLES)
    samples = next(iter(reporter.track((held_out(task, control, n) for n in (number,)), "sampling")))
    return (given if given is not None else samples.select(range(count))), samples.select(range(PREVIEW_SAMPLES))


def _calibrated(
    task: Task,
    labels: Labels,
    control: Control,
    history: Sequence[Record],
    photos: Inverted,
    hashes: Sequence[str],
    given: Inverted | None,
    reporter: Reporter,
) -> Direction:
    def work() -> Iterator[Direction]:
        yield finish(
            task,
            control,
            [record.loss for record in history],
            photos,
            source="samples" if given is None else "photos",
            title=labels.title,
            image_hashes=hashes,
            description=labels.description,
            tags=labels.tags,
        )

    direction = next(iter(reporter.track(work(), "calibrating")))
    calibration = direction.info.calibration
    if calibration and calibration.level < 0.99 * LEVEL:
        reached = f"strength 1 has an effect of {calibration.level:.2f}, not of {LEVEL:g}"
        reporter.warn(f"{reached}: more was not safe. Try another --text or --source, or more --iterations.")
    return direction


def add_illustrated(
    model: Model, direction: Direction, labels: Labels, bank: Bank, samples: Inverted, overwrite: bool = False
) -> tuple[Entry, Direction]:
    """Illustrate a direction with samples and put it into the bank."""
    after = to_images(steer(model, samples, to_control(direction, model)))
    before = to_images(samples.images)
    info = dataclasses.replace(direction.info, thumbnail=thumbnail(before, after))
    direction = Direction(direction.u, direction.starts, info)
    card, picture = to_card(labels.name, info), preview(before, after)
    return bank.add(direction, labels.name, preview=picture, card=card, overwrite=overwrite), direction


def _draw(
    task: Task, direction: Direction, history: Sequence[Record], run: Run, reporter: Reporter
) -> tuple[Path, ...]:
    def work() -> Iterator[Path]:
        edited = sweep(task.model, task.photos, to_control(direction, task.model), SHOWN_STRENGTHS)
        rows = {"photo": to_images(task.photos.images)}
        rows |= {strength_label(s): to_images(images) for s, images in zip(SHOWN_STRENGTHS, edited, strict=True)}
        figure = before_after(rows, f"{direction.info.title}: the photos it was trained on")
        yield save_image(figure, run.folder / FIGURE, overwrite=True)
        bends = pooled(straightness(task.photos.trajectory.velocities)).tolist()
        yield curves(history, bends, task.grid().knots, run.folder / CURVES, overwrite=True)

    return tuple(reporter.track(work(), "drawing", 2))


def _write_summary(task: Task, trained: Trained, run: Run) -> Path:
    """Write what the run was and did as JSON; its path."""
    path = run.folder / SUMMARY
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(summary(task, trained), indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def summary(task: Task, trained: Trained) -> dict[str, object]:
    """What a training was and did, as plain values; the thumbnail is left out."""
    info = {key: value for key, value in trained.direction.info.as_dict().items() if key != "thumbnail"}
    return {
        "name": trained.entry.name,
        "direction": str(trained.entry.path),
        "files": [str(path) for path in trained.files],
        "seconds": trained.seconds,
        "recipe": task.recipe.model_dump(),
        "grid": list(task.grid().knots),
        "history": [dataclasses.asdict(record) for record in trained.history],
        "info": info,
    }


def edit(task: Task, strength: float, reporter: Reporter) -> Edited:
    """Find a control for the task's one photo alone (section 5.1 of the paper) and apply it."""
    for word in task.unknown_words:
        reporter.warn(f"the guide has never seen the word {word!r}: the result may have little to do with it")
    last: Step | None = None
    for step in reporter.track(task.steps(shared=False), "editing", task.recipe.iterations + 1):
        last = step
    if last is None:
        raise FlowgradError("the edit made no step. Give at least one iteration.")
    images = steer(task.model, task.photos, last.state.best * strength)
    before, after = (log_odds(task.guide, x, [task.target]) for x in (task.photos.images, images))
    photo, edited = to_images(torch.cat([task.photos.images, images]))
    difference = Edit(task.photos.images[0].clamp(-1, 1), images).difference()
    return Edited(photo, edited, float((after - before).mean()), difference)
