"""Latents of pictures, encoded once before a flow is trained on them: of each picture, and of its mirror image."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from flowgrad.models.autoencoder import FirstStage
from flowgrad.training.data.pictures import ImageSet
from flowgrad.training.data.shards import Shards, ShardStep, read_shards, write_shards
from flowgrad.workers import Workers

TOGETHER = 16  # pictures that are encoded at once


@dataclass(frozen=True)
class LatentPairs:
    """States (N, 2, *D), of each picture and of its mirror image, with fresh noise; `rows` are used.

    Without flips, (N, 1, *D) of the pictures alone is enough.
    """

    states: Shards | np.ndarray
    rows: np.ndarray
    flips: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, rows: np.ndarray, generator: Generator, share: slice) -> tuple[Tensor, Tensor]:
        """States of `rows`, of half of them the mirror image's if that was asked for, and noise."""
        both = torch.from_numpy(self.states[self.rows[rows[share]]])
        x0 = torch.randn(len(rows), *both.shape[2:], generator=generator)
        mirrored = torch.rand(len(rows), generator=generator) < (0.5 if self.flips else 0)
        return x0[share], both[torch.arange(len(both)), mirrored[share].long()].float()


def prepare_latents(
    stage: FirstStage, fingerprint: str, images: ImageSet, folder: Path, device: torch.device, workers: Workers
) -> Iterator[ShardStep]:
    """Encode pictures and their mirror images into `folder`; see `write_shards`.

    stage, fingerprint: the autoencoder and its weights' digits.
    """

    @torch.no_grad()
    def encode(start: int, stop: int) -> np.ndarray:
        parts = [images.pixels[i : min(i + TOGETHER, stop)] for i in range(start, stop, TOGETHER)]
        return np.concatenate([_both(stage, part, device) for part in parts])

    plan = {"autoencoder": fingerprint, "pictures": images.key}
    return write_shards(folder, plan, len(images.pixels), encode, workers)


def _both(stage: FirstStage, pixels: np.ndarray, device: torch.device) -> np.ndarray:
    """(B, 2, *D) float16 states of pictures (B, H, W, 3) and of their mirror images."""
    shown = torch.tensor(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    states = torch.stack([stage.encode(shown), stage.encode(shown.flip(3))], 1)
    return states.half().cpu().numpy()


def load_latents(folder: Path, images: ImageSet) -> Shards:
    """The states that `prepare_latents` wrote. Raises FlowgradError if some are missing or damaged."""
    return read_shards(folder, len(images.pixels))
