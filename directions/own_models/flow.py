"""The job behind `train-flow`: pictures, or pairs drawn from a flow, become a model's folder."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
    """What to train on: `images` (see `flowgrad.training.data.pictures`) or pairs of the model `reflow`.

    autoencoder: whose latents of the images the flow is in: a folder, a model's name, or a name on the Hugging Face
    hub; a model to begin with has its own. splits: a CSV file with the columns file and split; start: a model to begin
    with (that of `reflow` if there is one); changes: of the recipe's keys; name, title, licence, subject: for the
    model's configuration; command: for its card. Raises UsageError unless one source is given.
    """

    options: RunOptions
    images: str | Path | None = None
    reflow: str | None = None
    pairs: int | None = None
    pair_steps: int | None = None
    splits: Path | None = None
    start: str | None = None
    autoencoder: str | None = None
    recipe: str | None = None
    changes: dict[str, object] = field(default_factory=dict)
    name: str = ""
    title: str = ""
    licence: str = ""
    subject: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        if (self.images is None) == (self.reflow is None):
            raise UsageError("give either pictures to train on, or --reflow with a model to straighten")
        if self.autoencoder and self.origin:
            raise UsageError(f"--autoencoder is for a new flow; {self.origin} has its own, or none")
        if self.reflow is not None and self.splits is not None:
            raise UsageError("--splits is for pictures; --reflow trains on pairs that it draws")
        if self.reflow is None and (self.pairs, self.pair_steps) != (None, None):
            raise UsageError("--pairs and --pair-steps are of what --reflow draws: name the model to straighten by it")

    @property
    def drawn(self) -> tuple[int, int]:
        """How many pairs --reflow draws, and Euler steps of each."""
        return (20_000 if self.pairs is None else self.pairs), (50 if self.pair_steps is None else self.pair_steps)

    @property
    def origin(self) -> str | None:
        """The model whose weights training begins with."""
        return self.start or self.reflow

    @property
    def config(self) -> FlowConfig:
        """The recipe with its changes, and with the network's sizes of the model it begins with."""
        config = load_flow_config(self.recipe or ("faces128" if self.autoencoder else "faces64"))
        if self.origin is not None:
            config = config_of(self.origin, config)
            self._refuse_other_size(config)
        config = config.change(**self.changes)
        if self.reflow is not None and (config.training.flips or config.training.augment):
            raise UsageError("flips and augment are for pictures; --reflow trains on pairs as they are drawn")
        return config

    def _refuse_other_size(self, config: FlowConfig) -> None:
        wanted = self.changes.get("size")
        if wanted is not None and wanted != config.network.size:
            raise UsageError(f"{self.origin} is of size {config.network.size}, not {wanted}: leave --size out")
        if self.reflow is not None and (drawn := load_config(self.reflow).size) != config.network.size:
            raise UsageError(
                f"{self.reflow} draws {drawn} pixels, and {self.origin} {config.network.size}: leave --from out"
            )


def run_flow_job(job: FlowJob, reporter: Reporter, follow: Follow, workers: Workers | None = None) -> FlowResult:
    """Prepare the data, train, and write the model's folder; `follow` passes the steps on and may show them.

    Raises UsageError for what is wrong in the call before data are prepared.
    """
    options, workers = job.options, workers or Workers()
    if job.images is not None:
        refuse_among(job.images, options.output)
    config = job.config
    place = latents_of(job.autoencoder, job.origin)
    named = (job.name, job.title, job.licence, job.subject)
    model = model_config(options.output, config, job.origin, *named, in_pixels=place is None)
    workers.equal_part(config.training.batch)
    options.begin()
    saved = options.saved(**run_identity(config, job.origin, place))
    data = _data(job, config, place, saved["data"] if saved else "", reporter, workers)
    run = FlowRun(data, config, options, job.origin, place, workers)
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
    if job.reflow is not None:
        drawn = prepare_reflow_data(job.reflow, *job.drawn, config.training.seed, options, workers)
        _follow(drawn, "drawing pairs", job.drawn[0], reporter, workers)
        return reflow_data(job.reflow, config, options.output)
    images = prepare_pictures(job.images or "", config.network.size, options.output, key, reporter, workers)
    if place is None:
        return image_data(images, config, job.splits)
    folder, device = options.state / "latents", resolve_device(workers.device(options.device))
    stage = load_first_stage(place, device, resolve_precision(config.training.precision, device))
    encoded = prepare_latents(stage, fingerprints(place)[0], images, folder, device, workers)
    _follow(encoded, "encoding pictures", len(images.names), reporter, workers)
    return latent_data(images, load_latents(folder, images), stage.decode, config, job.splits)


def _follow(steps: Iterator[ShardStep], label: str, count: int, reporter: Reporter, workers: Workers) -> None:
    """Show how many shards of this process's are made."""
    for _ in reporter.track(steps, f"{label}, {SHARD} at a time", len(own_starts(count, workers))):
        pass
