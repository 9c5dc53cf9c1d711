"""The job behind `train-flow`: pictures, or pairs drawn from a flow, become a model's folder."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from directions.progress import Reporter
from flowgrad.errors import UsageError
from flowgrad.models.config import load_config
from flowgrad.training.flow.config import FlowConfig, load_flow_config
from flowgrad.training.flow.reflow import SHARD, own_shards
from flowgrad.training.flow.run import (
    FlowData,
    FlowResult,
    FlowRun,
    RunOptions,
    config_of,
    image_data,
    model_config,
    prepare_image_data,
    prepare_reflow_data,
    read_run,
    reflow_data,
    worth_compiling,
)
from flowgrad.training.flow.trainer import Budget, FlowStep
from flowgrad.training.workers import Workers

Follow = Callable[[Iterator[FlowStep]], Iterable[FlowStep]]


@dataclass(frozen=True)
class FlowJob:
    """What to train on, and how: `images` (see `flowgrad.training.data.pictures`) or pairs of the model `reflow`.

    splits: a CSV file with the columns file and split; start: a model to begin with (that of `reflow` if there is
    one); changes: of the recipe's keys, those that are None excepted. Raises UsageError unless one source is given.
    """

    output: Path
    budget: Budget
    images: str | Path | None = None
    reflow: str | None = None
    pairs: int | None = None
    pair_steps: int | None = None
    splits: Path | None = None
    start: str | None = None
    recipe: str = "faces64"
    changes: dict[str, object] = field(default_factory=dict)
    resume: bool = False
    compiled: bool | None = None
    device: str = "auto"
    evaluate_every: int = 500
    half: bool = False
    name: str = ""
    title: str = ""
    licence: str = ""
    subject: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        if (self.images is None) == (self.reflow is None):
            raise UsageError("give either pictures to train on, or --reflow with a model to straighten")
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
        config = load_flow_config(self.recipe)
        if self.origin is not None:
            config = config_of(self.origin, config)
            self._refuse_other_size(config)
        config = config.change(**self.changes)
        if self.reflow is not None and (config.training.flips or config.training.augment):
            raise UsageError("flips and augment are for pictures; --reflow trains on pairs as they are drawn")
        return config

    def refuse_output_among_images(self) -> None:
        """Raise UsageError if what is written would be found among the pictures when the run goes on."""
        source = Path(self.images or "")
        if self.images is not None and source.is_dir() and self.output.resolve().is_relative_to(source.resolve()):
            raise UsageError(f"{self.output} lies among the pictures in {source}: choose another folder by --output")

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
    workers = workers or Workers()
    job.refuse_output_among_images()
    config = job.config
    model = model_config(job.output, config, job.origin, job.name, job.title, job.licence, job.subject)
    options = RunOptions(
        output=job.output,
        budget=job.budget,
        resume=job.resume,
        start=job.origin,
        compiled=job.compiled,
        device=job.device,
        evaluate_every=job.evaluate_every,
        half=job.half,
    )
    workers.share(config.training.batch)
    worth_compiling(options)
    saved = read_run(config, options)
    data = _data(job, config, options, saved["data"] if saved else "", reporter, workers)
    run = FlowRun(data, config, options, workers)
    for _ in follow(run.steps()):
        pass
    return run.finish(model, job.command)


def _data(
    job: FlowJob, config: FlowConfig, options: RunOptions, key: str, reporter: Reporter, workers: Workers
) -> FlowData:
    """Pictures or pairs, brought to where training reads them; `key` is that of the run that goes on."""
    if job.reflow is not None:
        seed = config.training.seed
        drawn = prepare_reflow_data(job.reflow, *job.drawn, seed, options, workers)
        total = len(own_shards(job.drawn[0], workers))
        for _ in reporter.track(drawn, f"drawing pairs, {SHARD} at a time", total):
            pass
        return reflow_data(job.reflow, config, job.output)
    source = job.images or ""
    prepared = prepare_image_data(source, config.network.size, job.output, workers, key)
    for _ in reporter.track(prepared, "preparing pictures"):
        pass
    data = image_data(source, config, job.output, job.splits)
    if workers.leads and data.description["left out"] != "none":
        reporter.warn(f"left out of {source}: {data.description['left out']}")
    return data
