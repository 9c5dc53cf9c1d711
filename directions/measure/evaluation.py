"""Measuring a direction on photos: by its guide, by an unrelated judge, and whether faces stay the same."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from directions.apply.files import SHEET_COLUMNS
from directions.apply.identity import SAME_PERSON, distances, has_faces
from directions.apply.inversion import Inversion, Inverted, invert_for
from directions.apply.steer import sweep
from directions.figures import contact_sheet, strength_label
from directions.file.direction import DirectionInfo
from directions.photo.reading import to_images
from directions.photo.writing import save_image
from directions.progress import Reporter
from flowgrad.errors import UsageError
from flowgrad.files import atomic_path
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.judge import Judge, load_judge
from flowgrad.guidance.text import Contrast, log_odds
from flowgrad.models import Model
from flowgrad.ode import Control

JUDGE = "faces64-judge"
CERTAIN = 0.5  # probability from which the judge's answer counts as given


@dataclass(frozen=True)
class Measured:
    """What photos look like at one strength.

    effect, side_effects: mean change of log-odds of the text and of others; answers: the judge's mean probability of
    each, and shares: how many photos have it above one half; identity: mean dlib distance from the photo and kept:
    the share below SAME_PERSON, None where not measured.
    """

    strength: float
    effect: float
    side_effects: dict[str, float]
    answers: dict[str, float]
    shares: dict[str, float]
    identity: float | None
    kept: float | None


@dataclass(frozen=True)
class Evaluation:
    """The photos at each strength, 0 (as they were) first: measurements, and images (1 + S, B, 3, H, W) in [-1, 1]."""

    measured: tuple[Measured, ...]
    images: Tensor


@dataclass(frozen=True)
class Tools:
    """The networks that measure; the judge is None for a model of other things than faces."""

    guide: Guide
    judge: Judge | None


def load_tools(model: Model, guide: str | None = None, judge: str = "") -> Tools:
    """The guide named, else the model's; the judge named, else the shipped one for faces.

    Raises FlowgradError if one that is named is missing or damaged.
    """
    judging = bool(judge) or model.config.aligned_faces
    found = load_judge(judge or JUDGE, model.device) if judging else None
    return Tools(load_guide(guide or model.config.guide, model.device), found)


def evaluate_photos(
    model: Model,
    tools: Tools,
    control: Control,
    images: Tensor,
    info: DirectionInfo,
    strengths: Sequence[float],
    reporter: Reporter,
) -> Evaluation:
    """Invert images (B, 3, H, W) in [-1, 1] and measure the direction that `info` describes, batch by batch.

    Raises UsageError for no strength.
    """
    if not strengths:
        raise UsageError("give at least one strength to measure, for example --strengths 1")
    target = Contrast(info.text, info.source_text or model.config.subject)
    probes = [Contrast.parse(probe, model.config.subject) for probe in model.config.probes]
    inverted = invert_for(model, images, control, Inversion.parse(info.inversion))
    batches = reporter.track(inverted, "measuring", -(-len(images) // model.batch))
    found = [evaluate(model, tools.guide, tools.judge, control, batch, target, probes, strengths) for batch in batches]
    return found[0] if len(found) == 1 else _pooled(found)


def _pooled(parts: Sequence[Evaluation]) -> Evaluation:
    """Several batches as one: means weighted by their sizes."""
    sizes = np.array([part.images.shape[1] for part in parts])
    measured = [_mean(batch, sizes / sizes.sum()) for batch in zip(*(part.measured for part in parts), strict=True)]
    return Evaluation(tuple(measured), torch.cat([part.images for part in parts], 1))


def _mean(parts: Sequence[Measured], weights: np.ndarray) -> Measured:
    def number(name: str) -> float:
        return float(np.dot([getattr(part, name) for part in parts], weights))

    def table(name: str) -> dict[str, float]:
        keys = getattr(parts[0], name)
        return {key: float(np.dot([getattr(part, name)[key] for part in parts], weights)) for key in keys}

    known = parts[0].identity is not None
    identity, kept = (number("identity"), number("kept")) if known else (None, None)
    tables = (table("side_effects"), table("answers"), table("shares"))
    return Measured(parts[0].strength, number("effect"), *tables, identity, kept)


def save_evaluation(
    found: Evaluation, photos: Sequence[Path], sheet: Path, table: Path, title: str
) -> dict[str, object]:
    """Write a contact sheet and the measurements as JSON, replacing what is there; return the latter."""
    strengths = [measured.strength for measured in found.measured]
    pictures = [to_images(images) for images in found.images]
    shown = [pictures[s][i] for i in range(len(photos)) for s in range(len(strengths))]
    labels = [label for photo in photos for label in (photo.name, *map(strength_label, strengths[1:]))]
    columns = len(strengths) * max(1, SHEET_COLUMNS // len(strengths))
    save_image(contact_sheet(shown, labels, columns, title), sheet, overwrite=True)
    data: dict[str, object] = {
        "direction": title,
        "photos": len(photos),
        "measured": [asdict(measured) for measured in found.measured],
        "contact_sheet": str(sheet),
    }
    with atomic_path(table) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8")
    return data


@torch.no_grad()
def evaluate(
    model: Model,
    guide: Guide,
    judge: Judge | None,
    control: Control,
    photos: Inverted,
    target: Contrast,
    probes: Sequence[Contrast],
    strengths: Sequence[float],
) -> Evaluation:
    """Apply a control to photos at every strength and measure each. Raises FlowgradError if an image is not finite."""
    images = torch.cat([photos.images[None], sweep(model, photos, control, strengths)])
    texts = [target, *probes]
    before = log_odds(guide, photos.images, texts)
    measured = []
    for strength, edited in zip((0.0, *strengths), images, strict=True):
        effects = (log_odds(guide, edited, texts) - before).mean(0).tolist()
        others = dict(zip(map(str, probes), effects[1:], strict=True))
        measured.append(
            Measured(strength, effects[0], others, *_judged(judge, edited), *_identity(model, photos, edited))
        )
    return Evaluation(tuple(measured), images)


def _judged(judge: Judge | None, images: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Mean probabilities of the judge's answers, and shares of images with each above one half; empty without one."""
    found = judge.probabilities(images) if judge else {}
    means = {answer: float(p.mean()) for answer, p in found.items()}
    return means, {answer: float((p > CERTAIN).float().mean()) for answer, p in found.items()}


def _identity(model: Model, photos: Inverted, edited: Tensor) -> tuple[float | None, float | None]:
    """Mean descriptor distance and the share that is the same person; a face no longer found is another person."""
    if not (has_faces() and model.config.aligned_faces):
        return None, None
    apart = np.nan_to_num(distances(photos.images, edited), nan=2 * SAME_PERSON)
    return float(apart.mean()), float((apart < SAME_PERSON).mean())
