"""What a model draws, in figures and pictures for its card: held-out loss, curvature, faces, a judge's answers."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from directions.measure.evaluation import JUDGE
from directions.photo import faces
from directions.photo.reading import to_images
from directions.progress import Reporter
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path
from flowgrad.guidance.judge import Judge, load_judge
from flowgrad.markdown import table
from flowgrad.models import Model, ModelConfig, build_model, load_config
from flowgrad.ode import Grid, require_finite
from flowgrad.resources import FOLDER_CONFIG
from flowgrad.training.data.images import to_model_range
from flowgrad.training.data.pictures import UnusableImageError, list_images, read_splits, read_square, side_of
from flowgrad.training.flow.config import FlowTraining
from flowgrad.training.flow.objective import ImagePairs, held_out_loss
from flowgrad.training.flow.reflow import curvature, sample
from flowgrad.training.loop.pictures import write_curve, write_sheet

STEPS = 25  # Euler steps of a sample, unless told otherwise, and of the paths whose curvature is measured
BATCH = 25  # samples drawn at once
STRAIGHT = ("diffusers-unet", "rf-ncsnpp")  # families that are trained on straight lines from noise to pixels
SHEET = 64  # samples on a sheet
SECTION = "## Measured"
SEED = 1000


@dataclass(frozen=True)
class PortraitJob:
    """What to measure a model with, and beside.

    before: another model (name, folder, or a bare diffusers folder of the same sizes); photos: a folder or
    archive of photos that neither was trained on, or whose test rows in the table `splits` are such; log: records of
    its training as JSON lines with `seen`, `loss` and `held_out`; count: samples to judge; steps: Euler steps of each
    (None: STEPS), few to see what straight paths are worth.
    """

    before: str = ""
    photos: Path | None = None
    splits: Path | None = None
    log: Path | None = None
    count: int = 1000
    device: str = "auto"
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or self.sample_steps < 1:
            told = f"{self.count} and {self.sample_steps}"
            raise UsageError(f"a model is measured by one sample of one step or more; got {told}")
        if self.splits is not None and self.photos is None:
            raise UsageError("--splits says which of --photos to take: give both")
        for path in (self.photos, self.splits, self.log):
            if path is not None and not path.exists():
                raise UsageError(f"{path} does not exist: there is nothing to measure with")

    @property
    def sample_steps(self) -> int:
        """Euler steps of each sample."""
        return STEPS if self.steps is None else self.steps


@dataclass(frozen=True)
class Portrait:
    """Figures of a set of images; None where they do not apply.

    held_out: loss over fixed noise and times; curvature: 0 for straight paths; faces: share in which dlib finds a face;
    distance: Frechet's, of the judge's features, to the photos; answers: the judge's mean probabilities.
    """

    held_out: float | None
    curvature: float | None
    faces: float | None
    distance: float | None
    answers: dict[str, float]


@dataclass(frozen=True)
class Material:
    """What a model is measured with: the model before it, photos (N, 3, H, W) in [-1, 1], records of its training."""

    before: Model | None
    photos: Tensor | None
    log: list[dict[str, Any]]


def gather(job: PortraitJob, config: ModelConfig, reporter: Reporter) -> Material:
    """Read all that the model of `config` is to be measured with, so that what is wrong shows before it is replaced.

    Raises UsageError for a model without a folder for its card, or one to compare with that is unknown or of another
    size; FlowgradError for damaged weights, and for photos or a log that cannot be read.
    """
    if config.card_folder is None:
        raise UsageError(f"{config.name} has no folder for a card: `flowgrad models add` makes one of it that has")
    log = read_log(job.log) if job.log else []
    photos = _read_photos(job, config.size, reporter) if job.photos else None
    return Material(_open_before(job, config) if job.before else None, photos, log)


def _open_before(job: PortraitJob, like: ModelConfig) -> Model:
    """The model to compare with; a folder without configuration is read as weights of the model `like`."""
    folder = Path(job.before)
    bare = (folder / "config.json").is_file() and not (folder / FOLDER_CONFIG).is_file()
    config = like.model_copy(update={"weights": str(folder.resolve())}) if bare else load_config(job.before)
    if config.size != like.size:
        raise UsageError(f"{job.before} draws {config.size} pixels and {like.name} {like.size}: compare equal sizes")
    return build_model(config, job.device)


def portray(config: ModelConfig, material: Material, job: PortraitJob, reporter: Reporter) -> dict[str, Portrait]:
    """Measure a model, the one before it and the photos; write the card's section and its pictures beside the weights.

    Returns the figures by column. Raises FlowgradError for samples that are not finite, or where the disk refuses.
    """
    folder, photos, log = config.card_folder or config.folder, material.photos, material.log
    model = build_model(config, job.device)
    judge = load_judge(JUDGE, model.device) if config.aligned_faces else None
    columns, pictures = {}, {}
    for name, each in (("before", material.before), ("now", model)):
        if each is not None:
            images = _draw(each, job, reporter, name)
            columns[name] = _measure(each, images, photos, judge, reporter)
            pictures[_sheet(folder, name, images)] = f"{min(SHEET, job.count)} samples, uncurated: {name}"
    if photos is not None:
        columns["photos"] = _measure(None, photos, photos, judge, reporter)
    if log:
        write_curve(folder / "curve.png", log)
        pictures["curve.png"] = f"Loss over the images seen in this training ({log[-1]['seen']:,})"
    write_section(folder / "README.md", _section(columns, pictures, job, photos))
    return columns


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records with `seen`, `loss` and `held_out` (numbers or None) by images seen, of a file of JSON lines.

    A record replaces earlier ones that saw more, and figures of the same `seen`, as after a resumption; of several
    held-out losses (of several averages of the weights) the least counts. Raises FlowgradError for a file that is no
    such log.
    """
    found: dict[int, dict[str, Any]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            held_out = record.get("held_out", record.get("heldout"))
            held_out = min(held_out.values()) if isinstance(held_out, dict) else held_out
            seen = int(record["seen"])
            found = {earlier: each for earlier, each in found.items() if earlier <= seen}
            old = found.get(seen, {"loss": None, "held_out": None})
            new = {"seen": seen, "loss": record.get("loss"), "held_out": held_out}
            found[seen] = {key: old[key] if value is None else value for key, value in new.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FlowgradError(f"{path} is not a log of training, lines of JSON with seen and loss ({error}).") from error
    return list(found.values())


def _read_photos(job: PortraitJob, size: int, reporter: Reporter) -> Tensor:
    """(N, 3, size, size) in [-1, 1], prepared as for training; what cannot be used is left out with a warning."""
    source, splits = Path(job.photos or ""), None if job.splits is None else read_splits(job.splits)
    entries = [(name, read) for name, read in list_images(source) if splits is None or side_of(name, splits) == "test"]
    squares: list[Tensor] = []
    for _, read in reporter.track(entries, "reading photos", len(entries)):
        with suppress(UnusableImageError):
            squares.append(torch.from_numpy(read_square(read, size).copy()).permute(2, 0, 1))
    if not squares:
        raise UsageError(f"there are no photos to measure with in {source}: give some, or a table with test rows")
    if len(squares) < len(entries):
        reporter.warn(f"{len(entries) - len(squares)} of {len(entries)} photos in {source} cannot be used: left out")
    return to_model_range(torch.stack(squares))


def _draw(model: Model, job: PortraitJob, reporter: Reporter, name: str) -> Tensor:
    """(count, 3, H, W) samples in [-1, 1]."""

    def parts() -> Iterator[Tensor]:
        for x0 in model.noise(job.count, SEED).split(BATCH):
            x1 = require_finite(sample(model.velocity, x0, Grid.full(job.sample_steps)), "a sample")
            yield model.decode(x1).clamp(-1, 1).cpu()

    return torch.cat(list(reporter.track(parts(), f"sampling ({name})", -(-job.count // BATCH))))


def _measure(
    model: Model | None, images: Tensor, photos: Tensor | None, judge: Judge | None, reporter: Reporter
) -> Portrait:
    """The figures of `images`; of the model that drew them too, if one did."""
    seen = judge is not None and faces.available()
    return Portrait(
        held_out=_held_out(model, photos) if model and model.config.family in STRAIGHT and photos is not None else None,
        curvature=curvature(model.velocity, model.noise(16, 0), STEPS) if model else None,
        faces=_share_of_faces(images, reporter) if seen else None,
        distance=frechet(_features(judge, images), _features(judge, photos))
        if judge and model and photos is not None and min(len(images), len(photos)) > 1
        else None,
        answers=_answers(judge, images) if judge else {},
    )


def _held_out(model: Model, photos: Tensor) -> float:
    pixels = ((photos + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return held_out_loss(model.velocity, ImagePairs(pixels, np.arange(len(pixels))), FlowTraining(), model.device)


def _share_of_faces(images: Tensor, reporter: Reporter) -> float:
    pictures = reporter.track(to_images(images), "looking for faces", len(images))
    return sum(bool(faces.find_faces(picture)) for picture in pictures) / len(images)


@torch.no_grad()
def _features(judge: Judge, images: Tensor) -> Tensor:
    """(B, C) float64."""
    place = next(judge.parameters()).device
    return torch.cat([judge.features(part.to(place)).cpu().double() for part in images.split(256)])


@torch.no_grad()
def _answers(judge: Judge, images: Tensor) -> dict[str, float]:
    place = next(judge.parameters()).device
    parts = [judge.probabilities(part.to(place)) for part in images.split(256)]
    return {name: float(torch.cat([part[name] for part in parts]).mean()) for name in parts[0]}


def frechet(a: Tensor, b: Tensor) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), A and B covariances of features (N, C) (Heusel et al., 2017)."""
    A, B = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(A @ B).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * root)


def _sheet(folder: Path, name: str, images: Tensor) -> str:
    file = "samples.jpg" if name == "now" else f"samples-{name}.jpg"
    write_sheet(folder / file, images[:SHEET], 8)
    return file


def _section(
    columns: Mapping[str, Portrait], pictures: Mapping[str, str], job: PortraitJob, photos: Tensor | None
) -> str:
    rows = portrait_rows(list(columns.values()))
    many = 0 if photos is None else len(photos)
    titles = {"before": f"before ({Path(job.before).name})", "now": "now", "photos": f"{many:,} test photos"}
    steps = f"{job.sample_steps} Euler step{'s' * (job.sample_steps > 1)}"
    text = (
        f"{job.count:,} samples of {steps}, seed {SEED}, by `flowgrad models measure`.\n"
        "Losses: over fixed noise and times, on the test photos. Curvature: 0 for straight paths."
    )
    shown = [f"{caption}\n\n![{caption}]({name})" for name, caption in pictures.items()]
    return "\n\n".join([SECTION, text, table(("", *(titles[name] for name in columns)), rows), *shown])


def portrait_rows(portraits: Sequence[Portrait]) -> list[tuple[str, ...]]:
    """One row for each figure that any of them has."""

    def row(title: str, values: Sequence[float | None], form: str) -> tuple[str, ...]:
        return (title, *("" if value is None else format(value, form) for value in values))

    rows = [
        row("held-out loss", [p.held_out for p in portraits], ".5f"),
        row("curvature", [p.curvature for p in portraits], ".4f"),
        row("dlib finds a face", [p.faces for p in portraits], ".1%"),
        row("Frechet distance to the test photos, judge's features", [p.distance for p in portraits], ".2f"),
    ]
    answers = dict.fromkeys(name for p in portraits for name in p.answers)
    rows += [row(f"judged {name}", [p.answers.get(name) for p in portraits], ".1%") for name in answers]
    return [each for each in rows if any(each[1:])]


def write_section(card: Path, section: str) -> None:
    """Put a section into a card, in place of the one with the same heading if there is one, else at its end."""
    heading = section.splitlines()[0]
    old = card.read_text(encoding="utf-8") if card.is_file() else ""
    pattern = rf"^{re.escape(heading)}\n.*?(?=^## |\Z)"
    if re.search(pattern, old, re.MULTILINE | re.DOTALL):
        new = re.sub(pattern, lambda _: section + "\n\n", old, count=1, flags=re.MULTILINE | re.DOTALL)
    else:
        new = f"{old.rstrip()}\n\n{section}" if old else section
    with atomic_path(card) as temporary:
        temporary.write_text(new.strip() + "\n", encoding="utf-8")
