"""The job behind `train-guide`: images and a table of labels become a guide's folder, weights and card."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from directions.progress import Reporter
from flowgrad.errors import FlowgradError
from flowgrad.files import file_fingerprint, refuse_existing
from flowgrad.guidance.guide_files import guide_file, load_guide
from flowgrad.training.data.images import read_images, to_model_range
from flowgrad.training.guide.card import write_card
from flowgrad.training.guide.config import GuideConfig
from flowgrad.training.guide.evaluation import guide_auc, questions
from flowgrad.training.guide.labels import Part, read_labels, read_table, split_rows
from flowgrad.training.guide.trainer import GuideTrainer, export_guide, read_checkpoint, train_guide

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class GuideJob:
    """Images (as `training.data.pictures` reads them), their table (CSV), a config, and how long: `steps` or `minutes`.

    start: a guide to begin with, by name or file, of the config's sizes; random weights without one.
    """

    images: str | Path
    table: Path
    config: GuideConfig
    folder: Path
    part: Part = "all"
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    device: str = "auto"
    resume: bool = True
    start: str | None = None

    @property
    def checkpoint(self) -> Path:
        """The file from which the run goes on."""
        return self.folder / CHECKPOINT

    def refuse_unwanted(self, overwrite: bool) -> None:
        """Raise UsageError if the folder has files that may not be overwritten, unless they are of a run that goes on.

        Raises FlowgradError if a checkpoint that would be deleted is not of a guide's training.
        """
        if self.checkpoint.exists():
            read_checkpoint(self.checkpoint)
            if self.resume:
                return
        for name in ("model.safetensors", "README.md"):
            refuse_existing(self.folder / name, overwrite)


def run_guide_job(job: GuideJob, reporter: Reporter, overwrite: bool = False) -> tuple[Path, dict[str, float]]:
    """Train, export to the job's folder, measure on the table's test split; the weights' path and the AUC figures.

    It goes on from an interrupted run's checkpoint in the folder, which is removed at the end. Raises UsageError if
    that was another run, or if there are files that may not be overwritten.
    """
    job.refuse_unwanted(overwrite)
    table = read_table(job.table)
    labels = read_labels(table, job.config)
    rows = split_rows(table, job.config.table, job.config.table.train, job.part)
    chosen = labels.rows(rows)
    start = None if job.start is None else guide_file(job.start)
    trainer = GuideTrainer(_images(job, chosen.files, reporter), chosen, job.config, job.seed, job.device)
    if start:
        trainer.start_from(start)
    if not job.resume:
        job.checkpoint.unlink(missing_ok=True)
    for _ in reporter.track(
        train_guide(trainer, steps=job.steps, minutes=job.minutes, checkpoint=job.checkpoint), "training", job.steps
    ):
        pass
    recipe = {"images": f"{len(rows)} of {job.table.name}", "part": job.part, "seed": str(job.seed)}
    recipe |= {"begins with": f"{job.start} ({file_fingerprint(start)})"} if start else {}
    path = export_guide(trainer, job.folder, recipe)
    areas = _measure(job, table, path, reporter)
    write_card(job.folder, job.config.card, recipe, {"AUC": areas} if areas else {})
    job.checkpoint.unlink(missing_ok=True)
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
