"""A run of train-flow in a folder: data, checkpoints, sheets of samples, and at the end the model's folder."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowgrad.errors import UsageError
from flowgrad.files import file_fingerprint, remove_leftovers
from flowgrad.models import ModelConfig, load_config, load_model, resolve_device
from flowgrad.models.config import check_model_name
from flowgrad.models.diffusers_unet import WEIGHTS, load_unet
from flowgrad.models.own import place_guide
from flowgrad.ode import Grid
from flowgrad.resources import FOLDER_CONFIG
from flowgrad.seeds import generator
from flowgrad.training.data.pictures import ImageStep, load_images, prepare_images, read_splits
from flowgrad.training.flow.config import FlowConfig
from flowgrad.training.flow.model_folder import Card, write_card, write_curve, write_log, write_model, write_sheet
from flowgrad.training.flow.reflow import PairPlan, PairStep, curvature, draw_pairs, drawn_plan, load_pairs, sample
from flowgrad.training.flow.trainer import (
    Budget,
    FlowStep,
    FlowTrainer,
    ImagePairs,
    Pairs,
    new_unet,
    read_checkpoint,
    refuse_other_recipe,
    save_checkpoint,
    train_flow,
)
from flowgrad.training.workers import Workers
from flowgrad.velocity import Velocity

FAMILY = "diffusers-unet"  # of the models that are trained here
NOT_INHERITED = {"folder", "source", "download", "sha256", "gate"}  # of the weights that training began with
OF_A_SUBJECT = {"guide", "mirror", "aligned_faces", "probes"}  # what does not fit pictures of something else
LOG_EVERY = 25  # steps whose mean loss is one record of the log
LONG_STEPS, LONG_MINUTES = 20_000, 120  # from here on, compiling pays
SHEET_STEPS = 25  # Euler steps for the pictures
BEFORE = "samples-before.png"
WRITTEN = ("README.md", "config.json", "*.safetensors", "samples.png", BEFORE, "curve.png")  # after the last checkpoint


@dataclass(frozen=True)
class FlowData:
    """Pairs to train on and held-out ones; `key` changes with the data, `description` is for the card."""

    train: Pairs
    held_out: Pairs
    key: str
    description: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOptions:
    """How a run is done: none of this changes what a step computes, except `start`, the budget, which the learning rate
    follows, and `compiled` (None: if long, or as the run that goes on was).

    start: the model whose weights it begins with. samples: pictures on a sheet. half: weights in float16 at the end.
    """

    output: Path
    budget: Budget
    resume: bool = False
    start: str | None = None
    compiled: bool | None = None
    device: str = "auto"
    evaluate_every: int = 500
    checkpoint_minutes: float = 2.0
    samples: int = 64
    half: bool = False

    @property
    def state(self) -> Path:
        """The folder of what only training needs."""
        return self.output / "training"

    @property
    def checkpoint(self) -> Path:
        """The file from which the run goes on."""
        return self.state / "checkpoint.pt"

    @property
    def start_fingerprint(self) -> str:
        """Of the weights that training begins with; empty if they are random."""
        return "" if self.start is None else file_fingerprint(load_config(self.start).weights_path / WEIGHTS)

    def refuse_unwanted(self) -> None:
        """Raise UsageError if the folder has a run that is not to go on, or files that a run would overwrite."""
        if self.checkpoint.exists():
            if self.resume:
                return
            remedy = "give --resume to go on with it (up to the budget), or choose another folder"
            raise UsageError(f"{self.output} has a run already: {remedy}.")
        if (self.output / FOLDER_CONFIG).exists():
            raise UsageError(f"{self.output} has a model already, and no run that goes on: choose another folder.")
        if taken := sorted(path.name for name in WRITTEN for path in self.output.glob(name)):
            raise UsageError(f"{self.output} has a {taken[0]} that no run left there: choose another folder.")

    def __post_init__(self) -> None:
        if self.evaluate_every < 1 or self.samples < 1 or self.checkpoint_minutes < 0:
            raise UsageError(
                "evaluate_every and samples must be 1 or more, checkpoint_minutes 0 or more; "
                f"got {self.evaluate_every}, {self.samples}, {self.checkpoint_minutes}"
            )


@dataclass(frozen=True)
class FlowResult:
    """What a run made: a model's folder, and the held-out loss (averaged weights) at its start and end."""

    folder: Path
    steps: int
    seen: int
    held_out_start: float
    held_out_end: float


def read_run(config: FlowConfig, options: RunOptions) -> dict[str, Any] | None:
    """The state of the run in the folder, which is to go on; None if there is none.

    Raises UsageError if it is not to go on, has another recipe or began with other weights, or if files would be
    overwritten; FlowgradError if its checkpoint is damaged.
    """
    options.refuse_unwanted()
    if not options.checkpoint.exists():
        return None
    saved = read_checkpoint(options.checkpoint)
    refuse_other_recipe(saved, config)
    if "start" in saved and saved["start"] != options.start_fingerprint:  # checkpoints of old do not say
        raise UsageError(
            f"the run in {options.output} began with other weights: resume with the same --from or --reflow, or choose "
            "another folder."
        )
    return saved


def prepare_image_data(
    source: str | Path, size: int, output: Path, workers: Workers, key: str = ""
) -> Iterator[ImageStep]:
    """Bring a source's pictures to one size, in the leading process; see `prepare_images`.

    key: that of the data of the run that goes on.
    """
    if workers.leads:
        yield from prepare_images(source, size, output / "training", key.partition(" ")[0])
    workers.wait()


def image_data(source: str | Path, config: FlowConfig, output: Path, splits: Path | None = None) -> FlowData:
    """The prepared pictures as pairs with fresh noise. Raises FlowgradError if they are too few to train on."""
    images = load_images(output / "training")
    settings = config.training
    train, held_out = images.split(settings.held_out, None if splits is None else read_splits(splits))
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(images.skipped.items())) or "none"
    description = {
        "pictures": f"{Path(source).name}: {len(train)} trained on, {len(held_out)} held out",
        "left out": left_out,
        "size": f"{config.network.size}x{config.network.size}, central square, Lanczos",
        "augmentation": _augmentation(settings.flips, settings.augment),
    }
    pairs = ImagePairs(images.pixels, train, settings.flips, settings.augment)
    key = f"{images.key} {hashlib.sha256(np.concatenate([train, held_out]).tobytes()).hexdigest()[:16]}"
    return FlowData(pairs, ImagePairs(images.pixels, held_out), key, description)


def _augmentation(flips: bool, augment: bool) -> str:
    names = ["horizontal flips"] * flips + ["small shifts, brightness and contrast"] * augment
    return ", ".join(names) or "none"


def prepare_reflow_data(
    origin: str, count: int, steps: int, seed: int, options: RunOptions, workers: Workers
) -> Iterator[PairStep]:
    """Draw pairs from the model `origin`; see `draw_pairs`.

    Raises UsageError if what it draws are no images, or if the folder's run had other pairs, which are kept then.
    """
    model = load_model(origin, workers.device(options.device))
    if model.shape != (3, model.config.size, model.config.size):
        raise UsageError(f"{origin} draws latents {model.shape}: a flow of images is needed to draw pairs from")
    plan, folder = PairPlan(model.fingerprint, count, steps, seed), options.state / "pairs"
    if options.checkpoint.exists() and drawn_plan(folder) != plan:
        raise UsageError(
            f"the run in {options.output} had other pairs: resume with the same --reflow, --pairs, --pair-steps and "
            "--seed, or choose another folder."
        )
    yield from draw_pairs(model, plan, folder, workers)


def reflow_data(origin: str, config: FlowConfig, output: Path) -> FlowData:
    """The drawn pairs."""
    train, held_out = load_pairs(output / "training" / "pairs", config.training.held_out)
    fingerprint = (output / "training" / "pairs" / "pairs.json").read_text(encoding="utf-8")
    description = {"pairs": f"drawn from {origin}: {len(train)} trained on, {len(held_out)} held out"}
    return FlowData(train, held_out, fingerprint, description)


def config_of(name: str, config: FlowConfig) -> FlowConfig:
    """The recipe with the network's sizes of an existing model, whose training it continues.

    Raises UsageError for a model of another family than this training makes.
    """
    model = load_config(name)
    if model.family != FAMILY:
        raise UsageError(f"{name} is of the family {model.family}: train-flow goes on from its own, {FAMILY}, alone")
    unet: Any = load_unet(model.weights_path)
    attention = tuple("Attn" in block for block in unet.config["down_block_types"])
    return config.change(
        size=model.size,
        patch=model.patch,
        time_scale=model.time_scale,
        channels=tuple(unet.config["block_out_channels"]),
        attention=attention,
        layers=unet.config["layers_per_block"],
        head_dim=unet.config["attention_head_dim"],
        groups=unet.config["norm_num_groups"],
    )


def model_config(
    output: Path,
    config: FlowConfig,
    start: str | None,
    name: str = "",
    title: str = "",
    licence: str = "",
    subject: str = "",
) -> ModelConfig:
    """The model's configuration, before it is trained, so that a wrong name shows at once.

    A model that continues another keeps its guide, words and alignment, unless `subject` is another than its
    own, and its licence, unless `licence` says another; the ranges of its gate were measured on the other's weights.
    Trained with flips, it knows no left and right. Raises UsageError for a name that models cannot have.
    """
    slug = name or re.sub(r"[^a-z0-9._-]+", "-", Path(output).resolve().name.lower()).strip("-._") or "flow"
    check_model_name(slug)
    inherited: dict[str, Any] = {}
    if start is not None:
        other = load_config(start)
        left = NOT_INHERITED | (set() if subject in ("", other.subject) else OF_A_SUBJECT)
        inherited = other.model_dump(exclude=left, exclude_unset=True)
    size, network = config.network.size, config.network
    own: dict[str, Any] = {
        "name": slug,
        "title": title or slug,
        "description": f"Rectified flow on {size}x{size} images, trained with flowgrad train-flow.",
        "licence": licence or inherited.get("licence") or "not stated: ask who trained it",
        "family": FAMILY,
        "weights": ".",
        "size": size,
        "patch": network.patch,
        "time_scale": network.time_scale,
        **({"subject": subject} if subject else {}),
        **({"mirror": True} if config.training.flips else {}),
    }
    return ModelConfig(**{**inherited, **own})


class FlowRun:
    """One run: `steps()` trains, `finish()` writes the model. Every process of torchrun makes one."""

    def __init__(self, data: FlowData, config: FlowConfig, options: RunOptions, workers: Workers | None = None) -> None:
        """Set up a new run, or go on with the one in the folder.

        Raises UsageError if the folder's run had other data, and what `read_run` does.
        """
        self.data, self.config, self.options = data, config, options
        self.workers = workers or Workers()
        self.checkpoint, self.start = options.checkpoint, options.start_fingerprint
        saved = self._saved()
        self.log: list[dict[str, Any]] = saved["log"] if saved else []
        as_before = saved["compiled"] if saved and options.compiled is None else options.compiled
        self.compiled = worth_compiling(replace(options, compiled=as_before))
        device = resolve_device(self.workers.device(options.device))
        self.trainer = FlowTrainer(
            self._network(), data.train, data.held_out, config, self.workers, str(device), self.compiled
        )
        if saved:
            self.trainer.restore(saved)
        if self.workers.leads:
            remove_leftovers(self.checkpoint)
        self.workers.wait()
        self.losses: list[float] = list(saved["losses"]) if saved else []
        self.written = monotonic()

    def _saved(self) -> dict[str, Any] | None:
        saved = read_run(self.config, self.options)
        if saved and saved["data"] != self.data.key:
            raise UsageError(f"the run in {self.options.output} had other pictures or pairs: choose another folder.")
        return saved

    def _network(self) -> Any:
        if self.options.start is None:
            return new_unet(self.config.network, self.config.training.seed)
        return load_unet(load_config(self.options.start).weights_path)

    def steps(self) -> Iterator[FlowStep]:
        """Train until the budget is spent, yielding each step; sheets, log and checkpoints are written on the way."""
        for record in train_flow(self.trainer, self.options.budget, self.options.evaluate_every, self._keep):
            if record.step == 0:
                self._note(record)
            yield record

    def _keep(self, record: FlowStep) -> None:
        """Log and save after a step, in the leading process."""
        self.losses.append(record.loss or 0.0)
        if record.held_out is not None or record.step % LOG_EVERY == 0:
            self._note(record)
        late = monotonic() - self.written >= 60 * self.options.checkpoint_minutes
        if self.workers.leads and (late or record.progress >= 1):
            self.save()

    def _note(self, record: FlowStep) -> None:
        mean = sum(self.losses) / len(self.losses) if self.losses else None
        self.losses = []
        self.log.append({**record.as_dict(), "loss": mean})
        if record.held_out is not None and self.workers.leads:
            write_sheet(self._sheet_path(record.step), self.samples(min(self.options.samples, 16)), 8)

    def save(self) -> None:
        """Write the checkpoint and the log."""
        state = {**self.trainer.state(), "compiled": self.compiled, "losses": self.losses, "start": self.start}
        save_checkpoint(self.checkpoint, state, self.data.key, self.log)
        write_log(self.options.state / "log.jsonl", self.log)
        self.written = monotonic()

    def _sheet_path(self, step: int) -> Path:
        return self.options.state / "samples" / f"step-{step:07d}.png"

    def noise(self, count: int) -> Tensor:
        """(count, 3, H, W) noise of the sheets: image i is the same in all of them."""
        shape = (3, self.config.network.size, self.config.network.size)
        rows = [torch.randn(shape, generator=generator(0, i)) for i in range(count)]
        return torch.stack(rows).to(self.trainer.device)

    def samples(self, count: int) -> Tensor:
        """(count, 3, H, W) samples of the averaged weights, uncurated."""
        with self.trainer.averaged():
            return self._draw(self.trainer.still, count)

    def _draw(self, velocity: Velocity, count: int) -> Tensor:
        return torch.cat([sample(velocity, part, Grid.full(SHEET_STEPS)) for part in self.noise(count).split(16)])

    def finish(self, model: ModelConfig, command: str) -> FlowResult:
        """Write the model's folder with its card and pictures, in the leading process."""
        known = [record["held_out"] for record in self.log if record["held_out"] is not None]
        result = FlowResult(
            self.options.output, self.trainer.step, self.trainer.step * self.config.training.batch, known[0], known[-1]
        )
        if self.workers.leads:
            self._write(model, command, result)
        self.workers.wait()
        return result

    def _write(self, model: ModelConfig, command: str, result: FlowResult) -> None:
        folder = self.options.output
        pictures = {"samples.png": f"{self.options.samples} samples, uncurated"}
        origin = None if self.options.start is None else load_model(self.options.start, self.options.device).velocity
        write_sheet(folder / "samples.png", self.samples(self.options.samples), 8)
        if origin is not None:
            write_sheet(folder / BEFORE, self._draw(origin, self.options.samples), 8)
            pictures[BEFORE] = "The same noise before this training"
        write_curve(folder / "curve.png", self.log)
        pictures["curve.png"] = "Loss over the images seen"
        results = self._results(result, origin)
        model = model.model_copy(update={"guide": place_guide(model.guide, folder)})  # the other's may be removed
        write_card(folder, Card(model, self.data.description, self._recipe(), results, command, pictures))
        write_model(folder, self.trainer.network, self.trainer.average, model, self.options.half)

    def _results(self, result: FlowResult, origin: Velocity | None) -> dict[str, str]:
        with self.trainer.averaged():
            now = curvature(self.trainer.still, self.noise(16), SHEET_STEPS)
        results = {
            "images seen": f"{result.seen:,} in {result.steps:,} steps",
            "held-out loss at the start": f"{result.held_out_start:.5f}",
            "held-out loss at the end": f"{result.held_out_end:.5f}",
            "curvature (0 is straight)": f"{now:.4f}",
        }
        if origin is not None:
            bent = curvature(origin, self.noise(16), SHEET_STEPS)
            results["curvature of the model it began with"] = f"{bent:.4f}"
        return results

    def _recipe(self) -> dict[str, str]:
        dtype = str(self.trainer.velocity.dtype).removeprefix("torch.")
        parts = {**self.config.network.model_dump(), **self.config.training.model_dump(), "precision": dtype}
        begins = {} if self.options.start is None else {"begins with": self.options.start}
        return {**begins, **{key.replace("_", " "): str(value) for key, value in parts.items()}}


def worth_compiling(options: RunOptions) -> bool:
    """Whether to compile: as told, else if the run is long. Raises UsageError if that was told and is impossible."""
    possible = resolve_device(options.device).type == "cuda" or shutil.which(os.environ.get("CXX", "g++")) is not None
    if options.compiled and not possible:
        raise UsageError("torch.compile needs a C++ compiler, and there is no g++: install it, or give --no-compile")
    budget = options.budget
    long = (budget.steps or 0) >= LONG_STEPS or (budget.minutes or 0) >= LONG_MINUTES
    return possible and (long if options.compiled is None else options.compiled)
