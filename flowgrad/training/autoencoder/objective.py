"""The objective of an autoencoder (Kingma and Welling, 2014): images come back sharp from small, smooth latents."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import l1_loss

from flowgrad.models import resolve_precision
from flowgrad.models.diffusers_classes import network_classes
from flowgrad.seeds import generator
from flowgrad.training.autoencoder.config import AutoencoderConfig, AutoencoderNetwork
from flowgrad.training.loop.trainer import BATCH, batch_rows
from flowgrad.workers import Workers

HELD_OUT_LIMIT = 256  # images on which the held-out loss is measured
TOGETHER = 8  # images that are measured at once


def new_autoencoder(config: AutoencoderNetwork, seed: int) -> Any:
    """An AutoencoderKL of these sizes with random weights of this seed, in float32."""
    levels = len(config.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network_classes().autoencoder(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            latent_channels=config.latent_channels,
            norm_num_groups=config.groups,
            sample_size=config.size,
            mid_block_add_attention=False,
            scaling_factor=1.0,
        )


class AutoencoderObjective:
    """An AutoencoderKL that learns images: pixels (N, H, W, 3) uint8, of which `rows` are trained on."""

    plain = (
        "encoder.conv_in",
        "encoder.conv_out",
        "decoder.conv_in",
        "decoder.conv_out",
        "quant_conv",
        "post_quant_conv",
    )
    factors: ClassVar[dict[str, float]] = {}

    def __init__(
        self,
        network: nn.Module,
        pixels: np.ndarray,
        rows: np.ndarray,
        held_out: np.ndarray,
        config: AutoencoderConfig,
        device: torch.device,
    ) -> None:
        """Train `network` in place."""
        placed: Any = network.to(device)
        self.network: Any = placed.to(memory_format=torch.channels_last)
        self.pixels, self.rows, self.held_out = pixels, rows, held_out[:HELD_OUT_LIMIT]
        self.settings, self.device = config.training, device
        self.precision = resolve_precision(config.training.precision, device)

    def loss(self, step: int, progress: float, share: slice) -> Tensor:
        """The loss of a part of a step's crops, decoded from draws of the posterior."""
        settings = self.settings
        draws = generator(settings.seed, BATCH, step)
        rows = self.rows[batch_rows(len(self.rows), settings.batch, step, settings.seed)]
        side = self.pixels.shape[1] if progress > 1 - settings.whole else settings.crop
        share = self._fewer(share, side)
        images = self._crops(rows, side, draws)[share].to(self.device)
        with self._autocast():
            with torch.set_grad_enabled(not settings.decoder_only):
                posterior = self.network.encode(images).latent_dist
            noise = torch.randn((settings.batch, *posterior.mean.shape[1:]), generator=draws)[share]
            latents = posterior.mean + posterior.std * noise.to(posterior.mean)
            decoded = self.network.decode(latents).sample
        divergence = posterior.kl() / posterior.mean[0].numel()
        return self.distance(decoded.float(), images) + settings.kl_weight * divergence.float().mean()

    def distance(self, decoded: Tensor, images: Tensor) -> Tensor:
        """L1 of two batches (B, 3, H, W), and of their horizontal and vertical differences."""
        edges = sum(l1_loss(decoded.diff(dim=side), images.diff(dim=side)) for side in (2, 3))
        return l1_loss(decoded, images) + self.settings.gradient_weight * edges

    def held_out_loss(self, workers: Workers) -> float:
        """The mean distance of held-out images from what comes back of the means of their posteriors."""
        parts = np.array_split(self.held_out, -(-len(self.held_out) // TOGETHER))
        total = torch.zeros((), dtype=torch.float64)
        for part in parts[workers.rank :: workers.size]:
            images = to_images(self.pixels[part], self.device)
            total += float(self.distance(self.returned(images), images)) * len(part)
        workers.mean([total])
        return float(total) * workers.size / len(self.held_out)

    @torch.no_grad()
    def returned(self, images: Tensor) -> Tensor:
        """What comes back of images (B, 3, H, W) in [-1, 1], by the means of their posteriors."""
        with self._autocast():
            decoded: Tensor = self.network.decode(self.network.encode(images).latent_dist.mean).sample
        return decoded.float().clamp(-1, 1)

    def _fewer(self, share: slice, side: int) -> slice:
        """The part of a batch that has as many pixels as `share` of its crops; one image at least."""
        part, times = range(self.settings.batch)[share], (side / self.settings.crop) ** 2
        start = int(part.start / times)
        return slice(start, max(start + 1, int(part.stop / times)))

    def _crops(self, rows: np.ndarray, side: int, draws: Generator) -> Tensor:
        """(B, 3, side, side) in [-1, 1], at random places."""
        room = self.pixels.shape[1] - side
        corners = torch.randint(0, room + 1, (len(rows), 2), generator=draws).tolist()
        mirrored = torch.rand(len(rows), generator=draws) < (0.5 if self.settings.flips else 0)
        places = zip(rows, corners, strict=True)
        pixels = np.stack([self.pixels[row, y : y + side, x : x + side] for row, (y, x) in places])
        images = to_images(pixels, torch.device("cpu"))
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32)


def to_images(pixels: np.ndarray, device: torch.device) -> Tensor:
    """Pixels (B, H, W, 3) uint8 as images (B, 3, H, W) in [-1, 1], channels-last."""
    images = torch.tensor(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over a batch (B, 3, H, W) in [-1, 1] of the peak signal-to-noise ratio in decibels."""
    return float((-10 * ((a - b).square().mean((1, 2, 3)) / 4).log10()).mean())
