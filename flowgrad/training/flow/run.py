"""A run of train-flow: its data, and at the end the model's folder."""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from flowgrad.errors import UsageError
from flowgrad.files import atomic_path
from flowgrad.guidance.guide_files import place_guide
from flowgrad.model_config import check_model_name
from flowgrad.models import ModelConfig, load_config, load_model, resolve_device
from flowgrad.models.autoencoder import find_autoencoder
from flowgrad.models.diffusers_folder import fingerprints
from flowgrad.models.diffusers_unet import AUTOENCODER, UNET, WEIGHTS, load_unet, unet_folder, write_unet_config
from flowgrad.models.parts import identity
from flowgrad.ode import Grid
from flowgrad.resources import FOLDER_CONFIG, model_files
from flowgrad.seeds import generator
from flowgrad.training.data.latents import LatentPairs
from flowgrad.training.data.pictures import ImageSet, split_key
from flowgrad.training.data.shards import Shards, ShardStep
from flowgrad.training.flow.config import FlowConfig
from flowgrad.training.flow.objective import FlowObjective, ImagePairs, Pairs, new_unet
from flowgrad.training.flow.reflow import PairPlan, curvature, draw_pairs, drawn_plan, load_pairs, sample
from flowgrad.training.loop.card import Card, recipe_rows
from flowgrad.training.loop.pictures import write_curve, write_sheet
from flowgrad.training.loop.run import Run, RunOptions
from flowgrad.training.loop.trainer import Trainer, TrainStep
from flowgrad.training.loop.weights import write_weights
from flowgrad.velocity import Velocity
from flowgrad.workers import Workers

FAMILY = "diffusers-unet"  # of the models that are trained here
NOT_INHERITED = {"folder", "source", "download", "sha256", "gate"}  # of the weights that training began with
OF_A_SUBJECT = {"guide", "judge", "mirror", "aligned_faces", "probes"}  # what does not fit pictures of something else
SHEET_STEPS = 25  # Euler steps for the pictures
BEFORE = "samples-before.png"


@dataclass(frozen=True)
class FlowData:
    """Pairs to train on and held-out ones, of states of this shape D.

    key: changes with the data; description: for the card; decode: states (B, *D) to images (B, 3, H, W) in [-1, 1].
    """

    train: Pairs
    held_out: Pairs
    shape: tuple[int, ...]
    key: str
    description: dict[str, str] = field(default_factory=dict)
    decode: Callable[[Tensor], Tensor] = identity


@dataclass(frozen=True)
class FlowResult:
    """What a run made: a model's folder, and the held-out loss (averaged weights) at its start and end."""

    folder: Path
    steps: int
    seen: int
    held_out_start: float
    held_out_end: float


def image_data(images: ImageSet, config: FlowConfig, splits: Path | None = None) -> FlowData:
    """Prepared pictures as pairs with fresh noise. Raises FlowgradError if they are too few to train on."""
    settings = config.training
    train, held_out = images.split(settings.held_out, splits)
    pairs = ImagePairs(images.pixels, train, settings.flips, settings.augment)
    shape = (3, *images.pixels.shape[1:3])
    key = split_key(images, train, held_out)
    return FlowData(pairs, ImagePairs(images.pixels, held_out), shape, key, _described(images, train, held_out, config))


def latent_data(
    images: ImageSet, states: Shards, decode: Callable[[Tensor], Tensor], config: FlowConfig, splits: Path | None = None
) -> FlowData:
    """The latents of prepared pictures as pairs with fresh noise.

    Raises UsageError for a recipe that varies the pictures, FlowgradError if they are too few.
    """
    if config.training.augment:
        raise UsageError("augment is for pictures: latents are encoded once, before the training")
    train, held_out = images.split(config.training.held_out, splits)
    return FlowData(
        LatentPairs(states, train, config.training.flips),
        LatentPairs(states, held_out),
        states.shape[2:],
        split_key(images, train, held_out),
        _described(images, train, held_out, config),
        decode,
    )


def _described(images: ImageSet, train: np.ndarray, held_out: np.ndarray, config: FlowConfig) -> dict[str, str]:
    """What a card says of the data."""
    size, settings = config.network.size, config.training
    names = ["horizontal flips"] * settings.flips + ["small shifts, brightness and contrast"] * settings.augment
    return {
        "pictures": f"{len(train)} trained on, {len(held_out)} held out",
        "left out": images.left_out,
        "size": f"{size}x{size}, central square, Lanczos",
        "augmentation": ", ".join(names) or "none",
    }


def prepare_reflow_data(
    origin: str, count: int, steps: int, seed: int, options: RunOptions, workers: Workers
) -> Iterator[ShardStep]:
    """Draw pairs from the model `origin`; see `draw_pairs`.

    Raises UsageError if the folder's run had other pairs, which are kept then.
    """
    model = load_model(origin, workers.device(options.device))
    plan, folder = PairPlan(model.fingerprint, count, steps, seed), options.state / "pairs"
    if options.checkpoint.exists() and drawn_plan(folder) != plan:
        raise UsageError(
            f"the run in {options.output} had other pairs: resume with the same model, number, steps and seed, or "
            "choose another folder."
        )
    yield from draw_pairs(model, plan, folder, workers)


def reflow_data(origin: str, config: FlowConfig, output: Path) -> FlowData:
    """The drawn pairs."""
    folder, model = output / "training" / "pairs", load_model(origin, "cpu")
    train, held_out = load_pairs(folder, config.training.held_out)
    description = {"pairs": f"drawn from {origin}: {len(train)} trained on, {len(held_out)} held out"}
    return FlowData(train, held_out, model.shape, str(drawn_plan(folder)), description, model.decode)


def config_of(name: str, config: FlowConfig) -> FlowConfig:
    """The recipe with the network's sizes of an existing model, whose training it continues.

    Raises UsageError for a model of another family than this training makes.
    """
    model = load_config(name)
    if model.family != FAMILY:
        raise UsageError(
            f"{name} is of the family {model.family}: only models of the family {FAMILY} can be trained on"
        )
    unet: Any = load_unet(unet_folder(model.weights_path))
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
    in_pixels: bool = True,
) -> ModelConfig:
    """The model's configuration, before it is trained, so that a wrong name shows at once.

    A model that continues another keeps its guide, words and alignment, unless `subject` is another than its
    own, and its licence, unless `licence` says another; the ranges of its gate were measured on the other's weights.
    Trained with flips, a model in pixels knows no left and right; the mirror image's latent is not the latent's mirror
    image. Raises UsageError for a name that models cannot have.
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
        **({"mirror": True} if config.training.flips and in_pixels else {}),
    }
    return ModelConfig(**{**inherited, **own})


class FlowRun:
    """One run: `steps()` trains, `finish()` writes the model. Every process of torchrun makes one."""

    def __init__(
        self,
        data: FlowData,
        config: FlowConfig,
        options: RunOptions,
        start: str | None = None,
        autoencoder: Path | None = None,
        workers: Workers | None = None,
    ) -> None:
        """Set up a new run, or go on with the one in the folder.

        start: the model whose weights it begins with; autoencoder: the folder of the one whose latents the data are.
        Raises what `RunOptions.saved` does.
        """
        self.data, self.config, self.options, self.start, self.autoencoder = data, config, options, start, autoencoder
        workers = workers or Workers()
        own = {**run_identity(config, start, autoencoder), "data": data.key}
        options.begin()
        saved = options.saved(**own)
        compiled = options.compile_wanted(saved["compiled"] if saved else None)
        self.device = resolve_device(workers.device(options.device))
        self.objective = FlowObjective(self._network(), data.train, data.held_out, config, self.device, compiled)
        self.trainer = Trainer(self.objective, config.training, workers)
        self.run = Run(self.trainer, options, own, compiled, self._draw_sheet)
        self.run.restore(saved)

    def _network(self) -> Any:
        if self.start is not None:
            return load_unet(unet_folder(load_config(self.start).weights_path))
        channels, side, _ = self.data.shape
        return new_unet(self.config.network, channels, side, self.config.training.seed)

    def steps(self) -> Iterator[TrainStep]:
        """Train until the budget is spent, yielding each step."""
        return self.run.steps()

    def noise(self, count: int) -> Tensor:
        """(count, *D) noise of the sheets: image i is the same in all of them."""
        rows = [torch.randn(self.data.shape, generator=generator(0, i)) for i in range(count)]
        return torch.stack(rows).to(self.device)

    def _draw_sheet(self, count: int) -> Tensor:
        return self._draw(self.objective.velocity, count)

    def _draw(self, velocity: Velocity, count: int) -> Tensor:
        """(count, 3, H, W) samples of a velocity field, uncurated."""
        parts = [sample(velocity, part, Grid.full(SHEET_STEPS)) for part in self.noise(count).split(16)]
        return torch.cat([self.data.decode(part) for part in parts])

    def finish(self, model: ModelConfig, command: str) -> FlowResult:
        """Write the model's folder with its card and pictures, in the leading process."""
        step, batch = self.trainer.step, self.config.training.batch
        result = FlowResult(self.options.output, step, step * batch, *self.run.held_out)
        if self.trainer.workers.leads:
            self._write(model, command, result)
        self.trainer.workers.wait()
        return result

    def _write(self, model: ModelConfig, command: str, result: FlowResult) -> None:
        folder, count = self.options.output, self.options.samples
        pictures = {"samples.png": f"{count} samples, uncurated"}
        origin = None if self.start is None else load_model(self.start, self.options.device).velocity
        write_sheet(folder / "samples.png", self.run.pictures(count))
        if origin is not None:
            write_sheet(folder / BEFORE, self._draw(origin, count))
            pictures[BEFORE] = "The same noise before this training"
        write_curve(folder / "curve.png", self.run.log)
        pictures["curve.png"] = "Loss over the images seen"
        results = self._results(result, origin)
        model = model.model_copy(update={"guide": place_guide(model.guide, folder)})  # the other's may be removed
        Card(
            model.title,
            model.description,
            model.licence,
            self.data.description,
            self._recipe(),
            (("", ""), *results.items()),
            command=command,
            pictures=pictures,
        ).write(folder)
        write_model(folder, self.trainer.network, self.trainer.averaged_state(), model, self.autoencoder)

    def _results(self, result: FlowResult, origin: Velocity | None) -> dict[str, str]:
        with self.trainer.averaged():
            now = curvature(self.objective.velocity, self.noise(16), SHEET_STEPS)
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
        dtype = str(self.objective.velocity.dtype).removeprefix("torch.")
        begins = {} if self.start is None else {"begins with": self.start}
        network, training = self.config.network.model_dump(), self.config.training.model_dump()
        return recipe_rows(begins, network, {**training, "precision": dtype})


def write_model(
    folder: Path, network: Any, weights: Mapping[str, Tensor], config: ModelConfig, autoencoder: Path | None = None
) -> None:
    """Write a UNet2DModel's configuration and weights (float16) and, last, `flowgrad.yaml`.

    A flow in latents has the network in `unet/` and a copy of the autoencoder in `vae/`. Raises FlowgradError where
    the disk refuses.
    """
    inner = folder if autoencoder is None else folder / UNET
    write_unet_config(network, inner)
    write_weights(inner / WEIGHTS, weights, {"format": "pt"})
    if autoencoder is not None:
        for name in ("config.json", WEIGHTS):
            with atomic_path(folder / AUTOENCODER / name) as temporary:
                shutil.copyfile(autoencoder / name, temporary)
    keys = config.model_dump(mode="json", exclude_defaults=True)
    with atomic_path(folder / FOLDER_CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(keys, sort_keys=False, allow_unicode=True), encoding="utf-8")


def latents_of(autoencoder: str | None, start: str | None) -> Path | None:
    """The folder of the autoencoder whose latents a flow is in, None if it is in pixels.

    autoencoder: a folder, a model that has one, or a name on the Hugging Face hub; a model that training begins with
    has its own. Raises UsageError for a name that is none of these, FlowgradError if the hub does not answer.
    """
    model = start or (autoencoder if autoencoder in model_files() else None)
    if model is not None:
        own = load_config(model).weights_path / AUTOENCODER
        if autoencoder and not own.is_dir():
            raise UsageError(f"{autoencoder} is a model without an autoencoder: name one that has its own, or a folder")
        return own if own.is_dir() else None
    return None if autoencoder is None else find_autoencoder(autoencoder)


def run_identity(config: FlowConfig, start: str | None, autoencoder: Path | None = None) -> dict[str, str]:
    """What must be the same for a run to go on, and is known before its data are prepared."""
    weights = [] if start is None else fingerprints(unet_folder(load_config(start).weights_path))
    latents = [] if autoencoder is None else fingerprints(autoencoder)
    return {"recipe": config.model_dump_json(), "start": " ".join([*weights, *latents])}
