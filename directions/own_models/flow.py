"""The job behind `train-flow`: pictures, or pairs drawn from a flow, become a model's folder."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from directions.own_models.flow_source import FlowSource
from directions.own_models.pictures import prepare_pictures, refuse_among
from directions.progress import Reporter
from flowgrad.errors import UsageError
from flowgrad.model_config import load_config
from flowgrad.models import resolve_device, resolve_precision
from flowgrad.models.autoencoder import load_first_stage
from flowgrad.models.diffusers_folder import fingerprints
from flowgrad.training.data.latents import load_latents, prepare_latents
from flowgrad.training.data.shards import SHARD, ShardStep, own_starts
from flowgrad.training.flow.config import FlowConfig, load_flow_config
from flowgrad.training.flow.run import (
    FlowData,
    FlowResult,
    FlowRun,
    config_of,
    image_data,
    latent_data,
    latents_of,
    model_config,
    prepare_reflow_data,
    reflow_data,
    run_identity,
)
from flowgrad.training.loop.run import Follow, RunOptions
from flowgrad.workers import Workers


@dataclass(frozen=True)
class FlowJob:
    """Train a flow on what `source` names.

    recipe: its name or file; without one, faces64 in pixels and faces128 in latents. changes: of the recipe's keys;
    name, title, licence, subject: for the model's configuration; command: for its card.
    """

    options: RunOptions
    source: FlowSource
    recipe: str | None = None
    changes: dict[str, object] = field(default_factory=dict)
    name: str = ""
    title: str = ""
    licence: str = ""
    subject: str = ""
    command: str = ""

    @property
    def config(self) -> FlowConfig:
        """The recipe with its changes, and with the network's sizes of the model it begins with."""
        config = load_flow_config(self.recipe or ("faces128" if self.source.autoencoder else "faces64"))
        if self.source.origin is not None:
            config = config_of(self.source.origin, config)
            self._refuse_other_size(config)
        config = config.change(**self.changes)
        if self.source.reflow is not None and (config.training.flips or config.training.augment):
            raise UsageError("flips and augment are for pictures; --reflow trains on pairs as they are drawn")
        return config

    def _refuse_other_size(self, config: FlowConfig) -> None:
        wanted, origin, reflow = self.changes.get("size"), self.source.origin, self.source.reflow
        if wanted is not None and wanted != config.network.size:
            raise UsageError(f"{origin} is of size {config.network.size}, not {wanted}: leave --size out")
        if reflow is not None and (drawn := load_config(reflow).size) != config.network.size:
            raise UsageError(f"{reflow} draws {drawn} pixels, and {origin} {config.network.size}: leave --from out")


def run_flow_job(job: FlowJob, reporter: Reporter, follow: Follow, workers: Workers | None = None) -> FlowResult:
    """Prepare the data, train, and write the model's folder; `follow` passes the steps on and may show them.

    Raises UsageError for what is wrong in the call before data are prepared.
    """
    options, workers = job.options, workers or Workers()
    if job.source.images is not None:
        refuse_among(job.source.images, options.output)
    config = job.config
    place = latents_of(job.source.autoencoder, job.source.origin)
    named = (job.name, job.title, job.licence, job.subject)
    model = model_config(options.output, config, job.source.origin, *named, in_pixels=place is None)
    workers.equal_part(config.training.batch)
    options.begin()
    saved = options.saved(**run_identity(config, job.source.origin, place))
    data = _data(job, config, place, saved["data"] if saved else "", reporter, workers)
    run = FlowRun(data, config, options, job.source.origin, place, workers)
    for _ in follow(run.steps()):
        pass
    return run.finish(model, job.command)


def _data(
    job: FlowJob, config: FlowConfig, place: Path | None, key: str, reporter: Reporter, workers: Workers
) -> FlowData:
    """Pictures, their latents or pairs, brought to where training reads them.

    place: the folder of the latents' autoencoder; key: of the data of the run that goes on.
    """
    options = job.options
    if job.source.reflow is not None:
        drawn = prepare_reflow_data(job.source.reflow, *job.source.drawn, config.training.seed, options, workers)
        _follow(drawn, "drawing pairs", job.source.drawn[0], reporter, workers)
        return reflow_data(job.source.reflow, config, options.output)
    images = prepare_pictures(job.source.images or "", config.network.size, options.output, key, reporter, workers)
    if place is None:
        return image_data(images, config, job.source.splits)
    folder, device = options.state / "latents", resolve_device(workers.device(options.device))
    stage = load_first_stage(place, device, resolve_precision(config.training.precision, device))
    encoded = prepare_latents(stage, fingerprints(place)[0], images, folder, device, workers)
    _follow(encoded, "encoding pictures", len(images.names), reporter, workers)
    return latent_data(images, load_latents(folder, images), stage.decode, config, job.source.splits)


def _follow(steps: Iterator[ShardStep], label: str, count: int, reporter: Reporter, workers: Workers) -> None:
    """Show how many shards of this process's are made."""
    for _ in reporter.track(steps, f"{label}, {SHARD} at a time", len(own_starts(count, workers))):
        pass
