"""The job behind `train-guide`: images and a table of labels become a guide's folder, weights and card."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from directions.progress import Reporter
from flowgrad.errors import FlowgradError
from flowgrad.files import file_fingerprint
from flowgrad.guidance.guide_files import guide_file, load_guide
from flowgrad.models import resolve_device
from flowgrad.training.data.images import read_images, to_model_range
from flowgrad.training.guide.config import GuideConfig
from flowgrad.training.guide.evaluation import guide_auc, questions
from flowgrad.training.guide.labels import Part, read_labels, read_table, split_rows
from flowgrad.training.guide.objective import WEIGHTS, GuideObjective, data_key, export_guide
from flowgrad.training.loop.card import Card
from flowgrad.training.loop.run import Follow, Run, RunOptions
from flowgrad.training.loop.trainer import Trainer
from flowgrad.workers import Workers


@dataclass(frozen=True)
class GuideJob:
    """Images (as `training.data.pictures` reads them), their table (CSV) and a config.

    part: the rows of the table that are trained on; start: a guide to begin with, by name or file, of the config's
    sizes; random weights without one.
    """

    images: str | Path
    table: Path
    config: GuideConfig
    options: RunOptions
    part: Part = "all"
    start: str | None = None


def run_guide_job(
    job: GuideJob, reporter: Reporter, follow: Follow, workers: Workers | None = None
) -> tuple[Path, dict[str, float]]:
    """Train, export to the run's folder, measure on the table's test split; the weights' path and the AUC figures.

    `follow` passes the steps on and may show them. Raises UsageError for what is wrong in the call, and what
    `RunOptions.saved` does.
    """
    options, workers = job.options, workers or Workers()
    start = None if job.start is None else guide_file(job.start)
    own = {"recipe": job.config.model_dump_json(), "start": file_fingerprint(start) if start else ""}
    options.begin()
    options.saved(**own)
    table = read_table(job.table)
    rows = split_rows(table, job.config.table, job.config.table.train, job.part)
    labels = read_labels(table, job.config).rows(rows)
    images = _images(job, labels.files, reporter)
    own["data"] = data_key(images, labels)
    saved = options.saved(**own)
    objective = GuideObjective(images, labels, job.config, resolve_device(workers.device(options.device)))
    if start:
        objective.start_from(start)
    run = Run(Trainer(objective, job.config.training, workers), options, own)
    run.restore(saved)
    for _ in follow(run.steps()):
        pass
    if not workers.leads:
        return options.output / WEIGHTS, {}
    recipe = {"images": f"{len(rows)} of {job.table.name}", "part": job.part, "steps": str(run.trainer.step)}
    recipe |= {"begins with": f"{job.start} ({own['start']})"} if start else {}
    path = export_guide(objective, run.trainer.averaged_state(), options.output, recipe)
    areas = _measure(job, table, path, reporter)
    card = job.config.card
    results = (("", "AUC"), *((name, f"{area:.3f}") for name, area in areas.items())) if areas else ()
    data = {"pictures": card.data}
    Card(card.title, card.summary, card.license, data, recipe, results, card.figures).write(options.output)
    return path, areas


def _images(job: GuideJob, files: list[str], reporter: Reporter) -> Tensor:
    """(N, 3, R, R) uint8."""
    found = read_images(job.images, files, job.config.network.resolution)
    return torch.stack(list(reporter.track(found, "reading images", len(files))))


def _measure(job: GuideJob, table: list[dict[str, str]], path: Path, reporter: Reporter) -> dict[str, float]:
    """AUC of the config's questions on its test split; empty where there is no split, or no question."""
    if job.config.table.split is None or not job.config.evaluation:
        return {}
    try:
        rows = split_rows(table, job.config.table, job.config.table.test)
        labels = read_labels(table, job.config).rows(rows)
        images = to_model_range(_images(job, labels.files, reporter))
        return guide_auc(load_guide(str(path)), images, *questions(job.config, labels))
    except FlowgradError as error:
        reporter.warn(f"not measured: {error}")
        return {}
