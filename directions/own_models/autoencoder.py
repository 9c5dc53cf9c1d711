"""The job behind `train-autoencoder`: pictures become a folder in diffusers' format."""

from dataclasses import dataclass, field
from pathlib import Path

from directions.own_models.pictures import prepare_pictures, refuse_among
from directions.progress import Reporter
from flowgrad.training.autoencoder.config import load_autoencoder_config
from flowgrad.training.autoencoder.run import AutoencoderData, AutoencoderRun, run_identity
from flowgrad.training.loop.run import Follow, RunOptions
from flowgrad.workers import Workers


@dataclass(frozen=True)
class AutoencoderJob:
    """What to train on: `images` (see `flowgrad.training.data.pictures`).

    splits: a CSV file with the columns file and split; start: the folder of an autoencoder to begin with; changes: of
    the recipe's keys; licence, command: for the card.
    """

    options: RunOptions
    images: str | Path
    splits: Path | None = None
    start: Path | None = None
    recipe: str = "faces128"
    changes: dict[str, object] = field(default_factory=dict)
    licence: str = ""
    command: str = ""


def run_autoencoder_job(
    job: AutoencoderJob, reporter: Reporter, follow: Follow, workers: Workers | None = None
) -> float:
    """Prepare the pictures, train, and write the folder; the PSNR of held-out images in decibels.

    `follow` passes the steps on and may show them. Raises UsageError for what is wrong in the call before pictures are
    prepared.
    """
    options, workers = job.options, workers or Workers()
    refuse_among(job.images, options.output)
    config = load_autoencoder_config(job.recipe).change(**job.changes)
    workers.equal_part(config.training.batch)
    options.begin()
    saved = options.saved(**run_identity(config, job.start))
    key = saved["data"] if saved else ""
    images = prepare_pictures(job.images, config.network.size, options.output, key, reporter, workers)
    data = AutoencoderData(images, *images.split(config.training.held_out, job.splits))
    run = AutoencoderRun(data, config, options, job.start, workers)
    for _ in follow(run.steps()):
        pass
    return run.finish(job.licence, job.command)
