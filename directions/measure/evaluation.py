"""Measuring a control on photos: by a guide, by an unrelated judge, and whether faces stay the same."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from directions.apply.effects import Effects, measure
from directions.apply.inversion import Inversion, invert_for
from directions.apply.photos import Photos
from directions.apply.sheets import SHEET_COLUMNS
from directions.figures import contact_sheet, strength_label
from directions.file.direction import DirectionInfo
from directions.photo.reading import to_images
from directions.photo.writing import save_image
from directions.progress import Reporter
from flowgrad.files import atomic_path
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.judge import load_judge
from flowgrad.models import Model
from flowgrad.ode import Control

CERTAIN = 0.5  # probability from which the judge's answer counts as given
ANSWERS_SHOWN = 6


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


def evaluate_photos(
    model: Model,
    control: Control,
    images: Tensor,
    info: DirectionInfo,
    strengths: Sequence[float],
    guide: str | None,
    judge: str,
    reporter: Reporter,
) -> tuple[list[Measured], Tensor]:
    """Invert images (B, 3, H, W) in [-1, 1] and measure the direction that `info` describes.

    guide: a name or file, None for the model's; judge: likewise, "" for the model's, if it has one.
    Returns what was measured at strength 0 and each of `strengths`, and the images (1 + S, B, 3, H, W) in [-1, 1].
    Raises FlowgradError if a network is damaged, or an edited image is not finite.
    """
    network = load_guide(guide or model.config.guide, model.device)
    name = judge or model.config.judge
    unrelated = load_judge(name, model.device) if name else None
    subject = model.config.subject
    probes = [Contrast.parse(probe, subject) for probe in model.config.probes]
    inverted = invert_for(model, images, control, Inversion.parse(info.inversion))
    texts, tried = [Contrast(info.text, info.source_text or subject), *probes], (0.0, *strengths)
    batches = reporter.track(inverted, "editing", -(-len(images) // model.batch))
    parts = [measure(model, network, control, batch, texts, tried, unrelated) for batch in batches]
    effects = Effects.join([part for part, _ in parts])
    return [_measured(effects, i, list(map(str, probes))) for i in range(len(tried))], torch.cat(
        [x for _, x in parts], 1
    )


def _measured(effects: Effects, i: int, probes: Sequence[str]) -> Measured:
    """What the i-th of the strengths did."""
    effect, *others = effects.effect[i].tolist()
    means = {answer: float(p[i].mean()) for answer, p in effects.answers.items()}
    shares = {answer: float((p[i] > CERTAIN).mean()) for answer, p in effects.answers.items()}
    person = (float(effects.identity[i]), float(effects.kept[i])) if len(effects.kept) else (None, None)
    return Measured(effects.strengths[i], effect, dict(zip(probes, others, strict=True)), means, shares, *person)


def evaluation_rows(measured: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table, a column for each strength; of the judge's answers, those that changed most."""
    before, after = measured[0].answers, measured[-1].answers
    shown = sorted(before, key=lambda answer: -abs(after[answer] - before[answer]))[:ANSWERS_SHOWN]
    rows = [["effect (log-odds)", *(f"{m.effect:+.2f}" for m in measured)]]
    rows += [[f"  {text}", *(f"{m.side_effects[text]:+.2f}" for m in measured)] for text in measured[0].side_effects]
    rows += [[f"judged {answer}", *(f"{100 * m.shares[answer]:.0f} %" for m in measured)] for answer in shown]
    if measured[0].kept is not None:
        rows.append(["same person", *(f"{100 * (m.kept or 0):.0f} %" for m in measured)])
        rows.append(["identity distance", *(f"{m.identity or 0:.2f}" for m in measured)])
    return ["measured", *(strength_label(m.strength) for m in measured)], rows


def save_evaluation(
    measured: Sequence[Measured], images: Tensor, read: Photos, sheet: Path, table: Path, title: str
) -> dict[str, object]:
    """Write a contact sheet of the images and the measurements as JSON, replacing what is there; return the latter."""
    shown = [image for i in range(len(read.sources)) for image in to_images(images[:, i])]
    after = [strength_label(m.strength) for m in measured[1:]]
    labels = [label for photo in read.sources for label in (photo.name, *after)]
    columns = len(measured) * max(1, SHEET_COLUMNS // len(measured))
    save_image(contact_sheet(shown, labels, columns, title), sheet, overwrite=True)
    data: dict[str, object] = {
        "direction": title,
        "photos": len(read.sources),
        "unedited": list(map(str, read.unedited)),
        "measured": [asdict(m) for m in measured],
        "contact_sheet": str(sheet),
    }
    with atomic_path(table) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8")
    return data
