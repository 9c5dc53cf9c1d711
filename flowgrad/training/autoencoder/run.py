"""A run of train-autoencoder: at the end a diffusers folder, whose config says how latents are normalised."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowgrad.files import file_fingerprint
from flowgrad.models import resolve_device
from flowgrad.models.diffusers_classes import network_classes
from flowgrad.models.diffusers_folder import load_component
from flowgrad.models.diffusers_unet import WEIGHTS, write_unet_config
from flowgrad.training.autoencoder.config import AutoencoderConfig
from flowgrad.training.autoencoder.objective import AutoencoderObjective, new_autoencoder, psnr, to_images
from flowgrad.training.data.pictures import ImageSet, split_key
from flowgrad.training.loop.card import Card, recipe_rows
from flowgrad.training.loop.pictures import write_curve, write_sheet
from flowgrad.training.loop.run import Run, RunOptions
from flowgrad.training.loop.trainer import Trainer, TrainStep
from flowgrad.training.loop.weights import write_weights
from flowgrad.workers import Workers

SHEET = "reconstructions.png"
MEASURED = 4_000  # images on which the latents' means and deviations are measured
TOGETHER = 16


@dataclass(frozen=True)
class AutoencoderData:
    """Prepared images, and the rows that are trained on and held out."""

    images: ImageSet
    rows: np.ndarray
    held_out: np.ndarray

    @property
    def key(self) -> str:
        """Changes with the data."""
        return split_key(self.images, self.rows, self.held_out)


class AutoencoderRun:
    """One run: `steps()` trains, `finish()` writes the folder. Every process of torchrun makes one."""

    def __init__(
        self,
        data: AutoencoderData,
        config: AutoencoderConfig,
        options: RunOptions,
        start: Path | None = None,
        workers: Workers | None = None,
    ) -> None:
        """Set up a new run, or go on with the one in the folder; `start`: the folder of one to begin with.

        Raises what `RunOptions.saved` does.
        """
        self.data, self.config, self.options = data, config, options
        workers = workers or Workers()
        own = {**run_identity(config, start), "data": data.key}
        options.begin()
        saved = options.saved(**own)
        device = resolve_device(workers.device(options.device))
        sides = (data.images.pixels, data.rows, data.held_out)
        self.objective = AutoencoderObjective(_begin(config, start), *sides, config, device)
        self.trainer = Trainer(self.objective, config.training, workers)
        self.run = Run(self.trainer, options, own, sheet=self._sheet)
        self.run.restore(saved)

    def steps(self) -> Iterator[TrainStep]:
        """Train until the budget is spent, yielding each step."""
        return self.run.steps()

    def _sheet(self, count: int) -> Tensor:
        """Held-out images, each row above what comes back of it."""
        images = to_images(self.data.images.pixels[self.data.held_out[:count]], self.objective.device)
        pairs = zip(images.split(8), self.objective.returned(images).split(8), strict=True)
        return torch.cat([part for pair in pairs for part in pair])

    def finish(self, licence: str, command: str) -> float:
        """Write the folder with its card, in the leading process; the held-out images' PSNR in decibels."""
        with self.trainer.averaged():
            decibels = self._decibels()
            mean, std = self._statistics() if self.trainer.workers.leads else (torch.zeros(1), torch.ones(1))
        if self.trainer.workers.leads:
            self._write(licence, command, decibels, mean, std)
        self.trainer.workers.wait()
        return decibels

    def _decibels(self) -> float:
        images = to_images(self.data.images.pixels[self.objective.held_out], self.objective.device)
        return float(np.mean([psnr(image, self.objective.returned(image)) for image in images.split(1)]))

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,) of the latents of training images, channel by channel."""
        rows = self.data.rows[:: max(1, len(self.data.rows) // MEASURED)]
        parts = [self.data.images.pixels[rows[i : i + TOGETHER]] for i in range(0, len(rows), TOGETHER)]
        encode, device = self.objective.network.encode, self.objective.device
        latents = torch.cat([encode(to_images(part, device)).latent_dist.mean.float().cpu() for part in parts])
        return latents.mean((0, 2, 3)), latents.std((0, 2, 3))

    def _write(self, licence: str, command: str, decibels: float, mean: Tensor, std: Tensor) -> None:
        folder, network = self.options.output, self.config.network
        write_sheet(folder / SHEET, self.run.pictures(min(self.options.samples, 32)))
        write_curve(folder / "curve.png", self.run.log)
        side = network.size // network.factor
        Card(
            title=f"Autoencoder, {network.size}x{network.size} -> {network.latent_channels}x{side}x{side}",
            summary="A diffusers AutoencoderKL; latents are normalised by `latents_mean` and `latents_std`.",
            licence=licence or "not stated: ask who trained it",
            data={
                "pictures": f"{len(self.data.rows)} trained on, {len(self.data.held_out)} held out",
                "left out": self.data.images.left_out,
            },
            recipe=recipe_rows(network.model_dump(), self.config.training.model_dump()),
            results=(
                ("", ""),
                ("crops seen", f"{self.trainer.step * self.config.training.batch:,} in {self.trainer.step:,} steps"),
                ("PSNR of held-out images", f"{decibels:.1f} dB"),
                ("held-out loss", " -> ".join(f"{loss:.4f}" for loss in self.run.held_out)),
            ),
            command=command,
            pictures={SHEET: "Held-out images, each row above what comes back of it", "curve.png": "Losses"},
        ).write(folder)
        self.objective.network.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
        write_unet_config(self.objective.network, folder)
        write_weights(folder / WEIGHTS, self.trainer.averaged_state(), {"format": "pt"})


def _begin(config: AutoencoderConfig, start: Path | None) -> Any:
    """The network that training begins with."""
    if start is None:
        return new_autoencoder(config.network, config.training.seed)
    return load_component(network_classes().autoencoder, start)


def run_identity(config: AutoencoderConfig, start: Path | None) -> dict[str, str]:
    """What must be the same for a run to go on, and is known before its data are prepared."""
    return {"recipe": config.model_dump_json(), "start": file_fingerprint(start / WEIGHTS) if start else ""}
