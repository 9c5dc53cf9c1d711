"""The objective of a rectified flow (Liu et al., 2022): v(x, t) learns x1 - x0 on the lines x_t = (1 - t) x0 + t x1.

x0 (B, *D) is noise, x1 a state: an image in [-1, 1], or the latent of one.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss, pad

from flowgrad.models import resolve_precision
from flowgrad.models.diffusers_classes import network_classes
from flowgrad.models.diffusers_unet import UNetVelocity
from flowgrad.seeds import generator
from flowgrad.training.flow.config import FlowConfig, FlowTraining, UNetConfig
from flowgrad.training.loop.trainer import BATCH, HELD_OUT, batch_rows
from flowgrad.velocity import Velocity
from flowgrad.workers import Workers


class Pairs(Protocol):
    """Ends of the lines: noise x0 and states x1, n of them."""

    def __len__(self) -> int: ...

    def draw(self, rows: np.ndarray, generator: Generator, share: slice) -> tuple[Tensor, Tensor]:
        """(x0, x1) of a part of `rows`; draws the same numbers from `generator` whatever the part."""
        ...


@dataclass(frozen=True)
class ImagePairs:
    """Images with fresh noise: pixels (N, H, W, 3) uint8, of which `rows` are used."""

    pixels: np.ndarray
    rows: np.ndarray
    flips: bool = False
    augment: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, rows: np.ndarray, generator: Generator, share: slice) -> tuple[Tensor, Tensor]:
        """Images `rows` in [-1, 1], mirrored and varied if that was asked for, and noise."""
        size = self.pixels.shape[1]
        x0 = torch.randn(len(rows), 3, size, size, generator=generator)
        mirrored = torch.rand(len(rows), generator=generator) < (0.5 if self.flips else 0)
        shifts = torch.randint(0, 2 * (size // 16) + 1, (len(rows), 2), generator=generator)
        light = 1 + 0.1 * (torch.rand(len(rows), 2, generator=generator) - 0.5)
        x1 = torch.from_numpy(self.pixels[self.rows[rows[share]]]).permute(0, 3, 1, 2).float() / 127.5 - 1
        x1 = torch.where(mirrored[share, None, None, None], x1.flip(3), x1)
        return x0[share], vary(x1, shifts[share], light[share]) if self.augment else x1


def vary(images: Tensor, shifts: Tensor, light: Tensor) -> Tensor:
    """Shift images by up to a sixteenth of their side, at reflected borders, and change contrast and brightness by 5 %.

    images: (B, 3, H, W) in [-1, 1]; shifts: (B, 2) whole pixels in [0, H // 8]; light: (B, 2) near 1.
    """
    size, margin = images.shape[-1], images.shape[-1] // 16
    wide = pad(images, [margin] * 4, mode="reflect")
    parts = [image[:, y : y + size, x : x + size] for image, (y, x) in zip(wide, shifts.tolist(), strict=True)]
    contrast, brightness = light[:, 0, None, None, None], light[:, 1, None, None, None] - 1
    return (torch.stack(parts) * contrast + brightness).clamp(-1, 1)


def draw_times(count: int, uniform: float, generator: Generator) -> Tensor:
    """(count,) times: uniform for that share of them, logit-normal (the sigmoid of a normal number) for the rest."""
    times = torch.sigmoid(torch.randn(count, generator=generator))
    spread = torch.rand(count, generator=generator)
    return torch.where(torch.arange(count) < round(uniform * count), spread, times)


def flow_loss(velocity: Velocity, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """Mean over all entries of |v(x_t, t) - (x1 - x0)|^2, x_t = (1 - t) x0 + t x1. x0, x1: (B, *D); t: (B,)."""
    x_t = torch.lerp(x0, x1, t.view(-1, *[1] * (x0.ndim - 1)))
    return mse_loss(velocity(x_t, t), x1 - x0)


def new_unet(config: UNetConfig, channels: int, side: int, seed: int) -> Any:
    """A UNet2DModel for states (channels, side, side), with random weights of this seed, in float32."""
    down = ["AttnDownBlock2D" if on else "DownBlock2D" for on in config.attention]
    up = ["AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(config.attention)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network_classes().unet(
            sample_size=side // config.patch,
            in_channels=channels * config.patch**2,
            out_channels=channels * config.patch**2,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            attention_head_dim=config.head_dim,
            norm_num_groups=config.groups,
        )


class FlowObjective:
    """A UNet2DModel that learns a flow on pairs; `velocity` is its field v(x, t)."""

    plain = ("conv_in", "conv_out")
    factors: ClassVar[dict[str, float]] = {}

    def __init__(
        self,
        network: nn.Module,
        train: Pairs,
        held_out: Pairs,
        config: FlowConfig,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        """Train `network` (patches and network time in, see `UNetVelocity`) in place.

        compiled: by torch.compile; samples and held-out losses (`velocity`) are not, for their batches differ in size.
        Weights and activations lie channels-last, in which convolutions are faster on CPUs and GPUs alike.
        """
        self.train, self.held_out, self.settings, self.device = train, held_out, config.training, device
        placed: Any = network.to(device)
        self.network: nn.Module = placed.to(memory_format=torch.channels_last)
        precision = resolve_precision(config.training.precision, device)
        sizes = (config.network.patch, config.network.time_scale, precision)
        self.velocity = UNetVelocity(self.network, *sizes)
        run: Any = torch.compile(self.network) if compiled else self.network
        self._trained = UNetVelocity(run, *sizes)

    def loss(self, step: int, progress: float, share: slice) -> Tensor:
        """The loss of a part of a step's batch; see `flow_loss`."""
        settings = self.settings
        draws = generator(settings.seed, BATCH, step)
        t = draw_times(settings.batch, settings.uniform, draws)[share]
        rows = batch_rows(len(self.train), settings.batch, step, settings.seed)
        x0, x1 = self.train.draw(rows, draws, share)
        return flow_loss(self._trained, x0.to(self.device), x1.to(self.device), t.to(self.device))

    def held_out_loss(self, workers: Workers) -> float:
        """Mean loss over all held-out pairs, with noise and times that depend on the seed, batch and mix alone."""
        return held_out_loss(self.velocity, self.held_out, self.settings, self.device, workers)


@torch.no_grad()
def held_out_loss(
    velocity: Velocity, pairs: Pairs, settings: FlowTraining, device: torch.device, workers: Workers | None = None
) -> float:
    """The mean of `flow_loss` over all pairs."""
    workers = workers or Workers()
    size = settings.batch
    parts = [np.arange(i, min(i + size, len(pairs))) for i in range(0, len(pairs), size)]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(workers.rank, len(parts), workers.size):
        draws = generator(settings.seed, HELD_OUT, i)
        t = draw_times(size, settings.uniform, draws)[torch.randperm(size, generator=draws)]
        ends = pairs.draw(parts[i], draws, slice(None))
        x0, x1, t = (tensor.to(device) for tensor in (*ends, t[: len(parts[i])]))
        total += float(flow_loss(velocity, x0, x1, t)) * len(parts[i])
    workers.mean([total])
    return float(total) * workers.size / len(pairs)
