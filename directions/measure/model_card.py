"""What a model draws, in figures and pictures for its card: held-out loss, curvature, faces, a judge's answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from directions.apply.effects import judged
from directions.photo.faces import available
from directions.photo.sets import read_photos, share_of_faces
from directions.progress import Reporter
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path
from flowgrad.guidance.frechet import features, frechet
from flowgrad.guidance.judge import Judge, load_judge
from flowgrad.markdown import picture, table, with_section
from flowgrad.models import Model, ModelConfig, build_model, load_config
from flowgrad.ode import Grid, require_finite
from flowgrad.resources import FOLDER_CONFIG
from flowgrad.training.data.latents import LatentPairs
from flowgrad.training.flow.config import FlowTraining
from flowgrad.training.flow.objective import held_out_loss
from flowgrad.training.flow.reflow import curvature, sample
from flowgrad.training.loop.pictures import write_curve, write_sheet

STEPS = 25  # Euler steps of the paths whose curvature is measured, and of a sample where no other number is given
BATCH = 25  # samples drawn at once
STRAIGHT = ("diffusers-unet", "rf-ncsnpp")  # families that are trained on straight lines from noise to data
SHEET = 64  # samples on a sheet
SEED = 1000


@dataclass(frozen=True)
class Portrait:
    """Figures of a set of images; None where they do not apply.

    held_out: loss over fixed noise and times; returned: decibels with which the autoencoder returns photos;
    curvature: 0 for straight paths; faces: share in which dlib finds a face; distance: Frechet's, of the judge's
    features, to the photos; answers: the judge's mean probabilities.
    """

    held_out: float | None
    returned: float | None
    curvature: float | None
    faces: float | None
    distance: float | None
    answers: dict[str, float]


@dataclass(frozen=True)
class Material:
    """What a model is measured with: the model before it, photos (N, 3, H, W) in [-1, 1], records of its training.

    trained_on: photos likewise, of those that it was trained on; folder: where its card and pictures are written.
    """

    folder: Path
    before: Model | None
    photos: Tensor | None
    trained_on: Tensor | None
    log: list[dict[str, Any]]


def gather(
    config: ModelConfig,
    before: str,
    photos: Path | None,
    splits: Path | None,
    log: Path | None,
    device: str,
    reporter: Reporter,
) -> Material:
    """Read all that the model of `config` is to be measured with, so that what is wrong shows before it is replaced.

    before: another model (name, folder, or a bare diffusers folder of the same sizes), if any; photos: a folder or
    archive of photos that neither was trained on, or whose test rows in the table `splits` are such (some of its train
    rows are compared with them as the samples are); log: records of its training as JSON lines with `seen`, `loss` and
    `held_out`.
    Raises UsageError for a model without a folder for its card, or one to compare with that is unknown or of another
    size; FlowgradError for damaged weights, and for photos or a log that cannot be read.
    """
    if config.card_folder is None:
        raise UsageError(f"{config.name} has no folder for a card: `flowgrad models add` makes one of it that has")
    records = read_log(log) if log else []
    sides = ("test", "train") if splits else ("test",)
    read = [read_photos(photos, splits, side, config.size, reporter) if photos else None for side in sides]
    other = _open_before(before, config, device) if before else None
    return Material(config.card_folder, other, read[0], read[1] if splits else None, records)


def _open_before(name: str, like: ModelConfig, device: str) -> Model:
    """The model to compare with; a folder without configuration is read as weights of the model `like`."""
    folder = Path(name)
    bare = (folder / "config.json").is_file() and not (folder / FOLDER_CONFIG).is_file()
    own = {"name": folder.name, "weights": str(folder.resolve())}
    config = like.model_copy(update=own) if bare else load_config(name)
    if config.size != like.size:
        raise UsageError(f"{name} draws {config.size} pixels and {like.name} {like.size}: compare equal sizes")
    return build_model(config, device)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records with `seen`, `loss` and `held_out` (numbers or None) by images seen, of a file of JSON lines.

    A record replaces earlier ones that saw more, as after a resumption, and figures of the same `seen`. Raises
    FlowgradError for a file that is no such log.
    """
    records: dict[int, dict[str, Any]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            seen = int(record["seen"])
            records = {earlier: old for earlier, old in records.items() if earlier <= seen}
            figures = {key: record[key] for key in ("loss", "held_out") if record.get(key) is not None}
            records[seen] = {"seen": seen, "loss": None, "held_out": None, **records.get(seen, {}), **figures}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FlowgradError(f"{path} is not a log of training, lines of JSON with seen and loss ({error}).") from error
    return list(records.values())


def portray(
    config: ModelConfig, material: Material, device: str, reporter: Reporter, count: int, steps: int = STEPS
) -> dict[str, Portrait]:
    """Measure a model, the one before it and the photos; write the card's section and its pictures beside the weights.

    count: samples to judge; steps: Euler steps of each, few to see what straight paths are worth.
    Returns the figures by column. Raises FlowgradError for samples that are not finite, or where the disk refuses.
    """
    model, card = build_model(config, device), material.folder / "README.md"
    photos = None if material.photos is None else material.photos.to(model.device)
    judge = load_judge(config.judge, model.device) if config.judge else None
    heads, columns, pictures = [""], {}, []
    for name, drawing in (("before", material.before), ("now", model)):
        if drawing is not None:
            heads.append(f"before ({drawing.name})" if name == "before" else name)
            images = _draw(drawing, count, steps, reporter, name)
            columns[name] = _measure(drawing, images, photos, judge, reporter)
            sheet = "samples.jpg" if name == "now" else f"samples-{name}.jpg"
            write_sheet(material.folder / sheet, images[:SHEET], 8)
            pictures.append(picture(sheet, f"{len(images[:SHEET])} samples, uncurated: {name}"))
    if material.trained_on is not None:
        heads.append(f"{len(material.trained_on):,} photos of the training")
        columns["trained_on"] = _measure(None, material.trained_on.to(model.device), photos, judge, reporter)
    if photos is not None:
        heads.append(f"{len(photos):,} test photos")
        columns["photos"] = _measure(None, photos, None, judge, reporter)
    if material.log:
        write_curve(material.folder / "curve.png", material.log)
        seen = f"Loss over the images seen in this training ({material.log[-1]['seen']:,})"
        pictures.append(picture("curve.png", seen))
    figures = table(heads, portrait_rows(columns))
    how = (
        f"{count:,} samples of {steps} Euler step{'s' * (steps > 1)}, seed {SEED}, by `flowgrad models measure`.\n"
        "Losses: over fixed noise and times, on the test photos. Curvature: 0 for straight paths."
    )
    old = card.read_text(encoding="utf-8") if card.is_file() else ""
    with atomic_path(card) as temporary:
        new = with_section(old, "\n\n".join(["## Measured", how, figures, *pictures]))
        temporary.write_text(new, encoding="utf-8")
    return columns


def portrait_rows(columns: Mapping[str, Portrait]) -> list[list[str]]:
    """One row for each figure that any of the columns has."""
    portraits = columns.values()

    def row(title: str, values: Sequence[float | None], form: str, unit: str = "") -> list[str]:
        return [title, *("" if value is None else format(value, form) + unit for value in values)]

    rows = [
        row("held-out loss", [p.held_out for p in portraits], ".5f"),
        row("autoencoder returns test photos with", [p.returned for p in portraits], ".1f", " dB"),
        row("curvature", [p.curvature for p in portraits], ".4f"),
        row("dlib finds a face", [p.faces for p in portraits], ".1%"),
        row("Frechet distance to the test photos, judge's features", [p.distance for p in portraits], ".2f"),
    ]
    answers = dict.fromkeys(name for p in portraits for name in p.answers)
    rows += [row(f"judged {name}", [p.answers.get(name) for p in portraits], ".1%") for name in answers]
    return [cells for cells in rows if any(cells[1:])]


def _draw(model: Model, count: int, steps: int, reporter: Reporter, name: str) -> Tensor:
    """(count, 3, H, W) samples in [-1, 1]."""
    images = []
    for x0 in reporter.track(model.noise(count, SEED).split(BATCH), f"sampling ({name})", -(-count // BATCH)):
        x1 = require_finite(sample(model.velocity, x0, Grid.full(steps)), "a sample")
        images.append(model.decode(x1).clamp(-1, 1))
    return torch.cat(images)


def _measure(
    model: Model | None, images: Tensor, photos: Tensor | None, judge: Judge | None, reporter: Reporter
) -> Portrait:
    """The figures of `images`, against `photos` if there are any; of the model that drew them too, if one did."""
    held_out = returned = distance = None
    if model and photos is not None:
        states = _states(model, photos)
        held_out = _held_out(model, states) if model.config.family in STRAIGHT else None
        returned = _returned(model, photos, states)
    if judge and photos is not None and min(len(images), len(photos)) > 1:
        distance = frechet(features(judge, images), features(judge, photos))
    return Portrait(
        held_out,
        returned,
        curvature=curvature(model.velocity, model.noise(16, 0), STEPS) if model else None,
        faces=share_of_faces(images, reporter) if judge and available() else None,
        distance=distance,
        answers={name: float(p.mean()) for name, p in judged(judge, images).items()} if judge else {},
    )


@torch.no_grad()
def _states(model: Model, photos: Tensor) -> Tensor:
    """(N, *D) states of photos (N, 3, H, W), a batch at a time."""
    return torch.cat([model.encode(part) for part in photos.split(model.batch)])


def _held_out(model: Model, states: Tensor) -> float:
    pairs = LatentPairs(states.unsqueeze(1).cpu().numpy(), np.arange(len(states)))
    return held_out_loss(model.velocity, pairs, FlowTraining(), model.device)


@torch.no_grad()
def _returned(model: Model, photos: Tensor, states: Tensor) -> float | None:
    """The mean over photos of PSNR in decibels, of what decoding their states returns; None for a model in pixels."""
    batches = zip(photos.split(model.batch), states.split(model.batch), strict=True)
    parts = [(model.decode(encoded).clamp(-1, 1) - shown).square() for shown, encoded in batches]
    errors = torch.cat(parts).flatten(1).mean(1) / 4
    return float(-10 * errors.log10().mean()) if errors.any() else None
