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
from torch import Tensor

from directions.apply.edit import Edit
from directions.apply.files import Photos, read_photos
from directions.apply.inversion import Inverted, invert_for, invert_images, join
from directions.apply.steer import steer, sweep, to_control
from directions.bank.bank import Bank, Entry
from directions.bank.card import to_card
from directions.figures import before_after, curves, preview, strength_label, thumbnail
from directions.file.direction import Direction
from directions.photo.reading import Align, to_images
from directions.photo.writing import save_image
from directions.progress import Reporter
from directions.train.checkpoint import Checkpoint, Record, load_checkpoint, save_checkpoint, task_hash
from directions.train.recipe import Recipe
from directions.train.task import Task, finish, held_out, samples_without
from directions.train.training import train, warn_of_unknown_words
from flowgrad.errors import UsageError
from flowgrad.files import atomic_path, refuse_existing
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.text import Contrast, log_odds
from flowgrad.models import Model
from flowgrad.ode import Control
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
    parts = invert_images(model, photos.images, recipe.way)
    return join(list(reporter.track(parts, "inverting photos")))


def draw(model: Model, guide: Guide, target: Contrast, count: int, seed: int, reporter: Reporter) -> Inverted:
    """`count` samples to train on, of those that show the target's text least; see `samples_without`."""
    work = (samples_without(model, guide, target, n, seed) for n in (count,))
    return next(iter(reporter.track(work, "sampling")))


def train_resumably(task: Task, run: Run, reporter: Reporter, *conditions: str) -> Checkpoint:
    """Train with a checkpoint after every evaluation; return the last.

    It goes on from the run's checkpoint if that is of exactly this task, and says which is the case; `conditions`: see
    `task_hash`.
    """
    warn_of_unknown_words(task, reporter)
    identity = task_hash(task, *conditions)
    begun = _resumed(task, run, identity, reporter) if run.resume else None
    left = task.recipe.iterations + 1 - (len(begun.history) - 1 if begun else 0)
    for training in reporter.track(train(task, begun=begun, identity=identity), "training", left):
        if training is not begun:
            save_checkpoint(run.checkpoint, training)
    return training


def _resumed(task: Task, run: Run, identity: str, reporter: Reporter) -> Checkpoint | None:
    """The run's checkpoint, if it is of this task; says which is the case where there is one."""
    found = load_checkpoint(run.checkpoint, identity, task.model.device)
    if found:
        reporter.warn(f"going on after {found.state.iteration} of {task.recipe.iterations + 1} evaluations")
    elif run.checkpoint.is_file():
        other = "is of another training (photos, texts, recipe, ...) or version of flowgrad"
        reporter.warn(f"{run.checkpoint} {other}: it is replaced, and this one starts from the beginning")
    return found


def train_into_bank(
    task: Task,
    labels: Labels,
    run: Run,
    reporter: Reporter,
    *,
    hashes: Sequence[str] = (),
    calibrate_on: Tensor | None = None,
    calibration_photos: int = 8,
    conditions: Sequence[str] = (),
) -> Trained:
    """Train, calibrate on held-out photos or samples, put the direction into the bank, and draw the run's figures.

    calibrate_on: photos (n, 3, H, W) in [-1, 1]; without them, `calibration_photos` samples of the model.
    Samples of the model illustrate the direction in the bank; the user's photos appear in the run's folder alone.
    """
    check_free(run, labels.name, task.model.name)
    started = perf_counter()
    training = train_resumably(task, run, reporter, *conditions)
    trained = perf_counter()
    photos, samples = _held_out(task, training.control, calibrate_on, calibration_photos, reporter)
    source = "samples" if calibrate_on is None else "photos"
    direction = _calibrated(task, labels, training, photos, source, hashes, reporter)
    calibrated = perf_counter()
    files = _draw(task, direction, training.history, run, reporter)
    entry, direction = add_illustrated(task.model, direction, labels, run.bank, samples, run.overwrite)
    seconds = {
        "training": trained - started,
        "calibration": calibrated - trained,
        "figures": perf_counter() - calibrated,
    }
    result = Trained(entry, direction, files, training.history, {stage: round(s, 2) for stage, s in seconds.items()})
    summary = _write_summary(task, result, run)
    run.checkpoint.unlink(missing_ok=True)
    return dataclasses.replace(result, files=(*files, summary))


def _held_out(
    task: Task, control: Control, given: Tensor | None, count: int, reporter: Reporter
) -> tuple[Inverted, Inverted]:
    """What to calibrate on, inverted as it will be for applying, and samples that may be shown with the direction."""
    if count < 1:
        raise UsageError(f"--calibration-photos must be at least 1; got {count}")
    number = PREVIEW_SAMPLES if given is not None else max(count, PREVIEW_SAMPLES)
    samples = next(iter(reporter.track((held_out(task, control, n) for n in (number,)), "sampling")))
    shown = samples.select(range(PREVIEW_SAMPLES))
    if given is None:
        return samples.select(range(count)), shown
    parts = invert_for(task.model, given, control, task.recipe.way)
    return join(list(reporter.track(parts, "inverting photos"))), shown


def _calibrated(
    task: Task,
    labels: Labels,
    training: Checkpoint,
    photos: Inverted,
    source: str,
    hashes: Sequence[str],
    reporter: Reporter,
) -> Direction:
    def work() -> Iterator[Direction]:
        yield finish(
            task,
            training.control,
            training.losses,
            photos,
            source=source,
            title=labels.title,
            image_hashes=hashes,
            description=labels.description,
            tags=labels.tags,
        )

    direction = next(iter(reporter.track(work(), "calibrating")))
    calibration = direction.info.calibration
    wanted = task.model.config.effect_level
    if calibration and calibration.safe[1] <= 0:
        reporter.warn(
            "no strength that was tried is safe: faces turn into other people, or the effect does not grow. "
            "Try another --text or --source."
        )
    elif calibration and calibration.level < 0.99 * wanted:
        reached = f"strength 1 has an effect of {calibration.level:.2f}, not of {wanted:g}"
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
    warn_of_unknown_words(task, reporter)
    for training in reporter.track(train(task, shared=False), "editing", task.recipe.iterations + 1):
        control = training.control
    images = steer(task.model, task.photos, control * strength)
    before, after = (log_odds(task.guide, x, [task.target]) for x in (task.photos.images, images))
    photo, edited = to_images(torch.cat([task.photos.images, images]))
    difference = Edit(task.photos.images[0].clamp(-1, 1), images).difference()
    return Edited(photo, edited, float((after - before).mean()), difference)
