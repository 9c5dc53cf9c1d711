"""A painting becomes pictures: candidates, their regions, what was measured of them, and the files."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image
from torch import Tensor

from directions.apply.illustration import PREVIEW_SAMPLES, add_illustrated
from directions.apply.steer import steer
from directions.bank.bank import Bank
from directions.figures import contact_sheet
from directions.file.metadata import TITLE_LIMIT
from directions.file.texts import title_of
from directions.paint import composition
from directions.paint.job import Job, Plan, paint
from directions.paint.methods import SHEET, SUMMARY, candidate_name
from directions.paint.regions import ITERATIONS, changed, to_regions, with_words
from directions.paint.request import Strokes
from directions.photo.reading import to_images, to_tensor
from directions.photo.writing import save_image
from directions.progress import Reporter, timed
from flowgrad.files import atomic_path, file_fingerprint, printable
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.text import log_odds
from flowgrad.optimize import Settings
from flowgrad.painting.blur import blur, rmse

COLUMNS = 6  # of the sheet


@dataclass(frozen=True)
class Measured:
    """What became of each candidate: rmse of its blur against the painting's, 0 to 1; text: log-odds by text."""

    rmse: tuple[float, ...]
    text: dict[str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Images (B, 3, H, W) in [-1, 1], what was measured of them, and what else a summary says."""

    images: Tensor
    measured: Measured
    told: dict[str, Any]


def measure(images: Tensor, strokes: Tensor, guide: Guide | None, targets: Sequence[Contrast]) -> Measured:
    """Measure images (B, 3, H, W) against strokes (1 or B, 3, H, W) in [-1, 1], and by a guide if there is one."""
    odds = log_odds(guide, images, targets).T.tolist() if guide and targets else []
    texts = {str(target): tuple(row) for target, row in zip(targets, odds, strict=True)} if odds else {}
    return Measured(tuple(rmse(images, strokes).tolist()), texts)


def candidates(job: Job, painting: Strokes, plan: Plan, count: int, reporter: Reporter) -> Outcome:
    """Paint `count` candidates, add the words of masks unless the model reads them itself, and measure all."""
    strokes, began = to_tensor([painting.image]).to(job.model.device), perf_counter()
    plan = plan.with_words() if job.words else plan
    images = paint(job, strokes, plan, count, reporter)
    targets = [job.target] if job.target else []
    told: dict[str, Any] = {}
    if job.masked and job.guide and not job.reads:
        how = Settings(iterations=ITERATIONS, seed=plan.seed)
        regions, plain = to_regions(job.masked, job.guide, images.device), images
        images = with_words(job.model, plain, regions, how, reporter)
        told["changed"] = asdict(changed(plain, images, regions))
    targets += [part.target for part in job.masked]
    told |= {
        "method": plan.method.value,
        "strength": plan.used,
        "steps": plan.steps,
        "regions": [{"mask": part.path, "text": str(part.target)} for part in job.masked],
        "seconds": round(perf_counter() - began, 2),
    }
    return Outcome(images, measure(images, strokes, job.guide, targets), told)


def compose(
    job: Job,
    painting: Strokes,
    plan: Plan,
    count: int,
    path: Path,
    name: str,
    bank: Bank,
    overwrite: bool,
    reporter: Reporter,
) -> Outcome:
    """Train a composition direction, put it into the bank, and paint `count` other seeds with it."""
    strokes, began = to_tensor([painting.image]).to(job.model.device), perf_counter()
    how, model = composition.settings(plan.steps, plan.seed), job.model
    samples = timed(reporter, "sampling", lambda: composition.latents(model))
    steps = composition.compose(model, strokes, samples, job.words, how)
    taken = list(reporter.track(steps, "training", how.iterations + 1))
    composed = composition.Composed(taken[-1].state.best, samples, tuple(step.loss for step in taken))
    trained = rmse(steer(model, samples, composed.control), strokes)
    others, images, apart = composition.on_seeds(model, composed.control, strokes, count, plan.seed)
    description = (
        f"Follows a painting: the RMSE of blurs is {float(trained.mean()):.3f} on the {len(samples)} samples that it "
        f"was trained on, and {float(apart.mean()):.3f} on {count} others."
    )
    title = title_of("", job.target) if job.target else printable(f"as painted in {path.name}")[:TITLE_LIMIT]
    direction = composition.to_direction(
        model, composed, how, title, description, job.target, job.guide, file_fingerprint(path)
    )
    shown = others.select(range(min(count, PREVIEW_SAMPLES)))
    entry = add_illustrated(model, direction, name, bank, shown, overwrite, claimed=True)
    told = {
        "name": name,
        "direction": entry.path,
        "rmse_trained": trained.tolist(),
        "losses": composed.losses,
        "seconds": round(perf_counter() - began, 2),
    }
    return Outcome(images, measure(images, strokes, job.guide, [job.target] if job.target else []), told)


def labelled(outcome: Outcome, painting: Strokes) -> list[tuple[str, Image.Image]]:
    """The painting, its blur, and each candidate with its RMSE, under their labels."""
    (soft,) = to_images(blur(to_tensor([painting.image])))
    labels = [f"{i}: RMSE {value:.3f}" for i, value in enumerate(outcome.measured.rmse)]
    return [("painting", painting.image), ("its blur", soft), *zip(labels, to_images(outcome.images), strict=True)]


def write(outcome: Outcome, painting: Strokes, folder: Path, seed: int, asked: dict[str, Any]) -> dict[str, Any]:
    """Write each candidate, a sheet of all beside the painting and its blur, and a summary, which is returned."""
    labels, images = zip(*labelled(outcome, painting), strict=True)
    sheet = contact_sheet(images, labels, COLUMNS, str(asked["text"]))
    files = [save_image(sheet, folder / SHEET, overwrite=True)]
    for i, picture in enumerate(images[-len(outcome.images) :]):
        files.append(save_image(picture, folder / candidate_name(seed, i), overwrite=True))
    summary = {**asked, "seed": seed, **outcome.told, **asdict(outcome.measured)}
    summary["files"] = [*map(str, files), str(folder / SUMMARY)]
    with atomic_path(folder / SUMMARY) as temporary:
        temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False, default=str), encoding="utf-8")
    return summary


def rows(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Head and rows of what was measured of each candidate."""
    measured = outcome.measured
    columns = {"candidate": [str(i) for i in range(len(measured.rmse))]}
    columns["RMSE of blurs"] = [f"{value:.3f}" for value in measured.rmse]
    columns |= {f"log-odds of {text}": [f"{value:+.2f}" for value in row] for text, row in measured.text.items()}
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]
