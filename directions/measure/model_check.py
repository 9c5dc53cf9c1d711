"""Whether a model is fit for directions: samples, an image there and back, bends, speed and memory."""

import sys
from dataclasses import dataclass
from math import isfinite

import torch
from PIL import Image
from torch import Tensor

from directions.apply.inversion import invert_images, join, sample_images
from directions.apply.steer import steer
from directions.photo.reading import to_images
from flowgrad.models import Model
from flowgrad.models.metering import seconds
from flowgrad.ode import Control
from flowgrad.straightness import grid_of_size, pooled, straightness
from flowgrad.velocity import vjp

SAMPLES = 4
INTERVALS = 12  # of the grid that images are edited on
GOOD_DECIBELS = 25.0  # an image that comes back with less has visibly changed
FLAT = 0.02  # deviation of an image's pixels, below which it shows nothing


@dataclass(frozen=True)
class Fitness:
    """What was found of a model.

    returned: decibels of the image that the forward pass on the coarse grid returns, against what was inverted;
    first_stage: those of decoding its latent, against the image (infinite without an autoencoder); bends: mean and
    largest straightness (0 is straight) over the steps; seconds of one velocity and one vector-Jacobian product for
    one image; images_at_once: as many as fit for gradients; memory: peak bytes of the process, or of the GPU.
    problems: why it is not fit; empty if it is.
    """

    model: str
    shape: tuple[int, ...]
    steps: int
    returned: float
    first_stage: float
    bends: tuple[float, float]
    seconds: tuple[float, float]
    images_at_once: int
    memory: int
    problems: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """What was measured, in words."""
        stage = "none" if self.first_stage == float("inf") else f"{_decibels(self.first_stage)} of an image kept"
        return [
            ("states", "x".join(map(str, self.shape))),
            ("steps", str(self.steps)),
            ("an image returns with", _decibels(self.returned)),
            ("autoencoder", stage),
            ("bends (0: straight)", f"{self.bends[0]:.4f} on average, {self.bends[1]:.4f} at most"),
            ("one evaluation", f"{self.seconds[0]:.3f} s, {self.seconds[1]:.3f} s with its gradient, for one image"),
            ("images at once", str(self.images_at_once)),
            ("peak memory", f"{self.memory / 2**30:.2f} GiB" if self.memory else "not known"),
        ]

    @property
    def verdict(self) -> str:
        """One line."""
        return "not fit for directions: " + "; ".join(self.problems) if self.problems else "fit for directions"


def _decibels(value: float) -> str:
    return "no error" if value == float("inf") else f"{value:.1f} dB"


def check_model(model: Model, seed: int = 0) -> tuple[Fitness, list[Image.Image]]:
    """Measure a model on four samples of its own; they are returned too."""
    samples = join(list(sample_images(model, SAMPLES, seed)))
    again = join(list(invert_images(model, samples.images[:1])))
    s = straightness(samples.trajectory.velocities)
    grid = grid_of_size(pooled(s), INTERVALS)
    back = steer(model, again, Control.zeros(grid, again.x0))
    returned = decibels(back, again.images.clamp(-1, 1))
    first_stage = decibels(again.images.clamp(-1, 1), samples.images[:1].clamp(-1, 1))
    x, t = samples.x0, torch.tensor(0.0, device=model.device)
    evaluation = seconds(torch.no_grad()(lambda: model.velocity(x[:1], t)))
    vjp(model.velocity, x[:2], t, torch.ones_like(x[:2]))  # the model finds out how many images fit
    gradient = seconds(lambda: vjp(model.velocity, x[:1], t, torch.ones_like(x[:1])))
    fitness = Fitness(
        model.name,
        model.shape,
        model.config.steps,
        returned,
        first_stage,
        (float(s.mean()), float(s.max())),
        (evaluation, gradient),
        model.velocity.limit,
        peak_memory(model.device),
        problems(samples.images, float(s.max()), returned, first_stage),
    )
    return fitness, to_images(samples.images)


def problems(images: Tensor, bend: float, returned: float, first_stage: float) -> tuple[str, ...]:
    """What speaks against a model, from its samples (B, 3, H, W) and what was measured."""
    finite = bool(torch.isfinite(images).all()) and isfinite(bend)
    rules = {
        "its samples are not finite: use dtype fp32, or check the weights": not finite,
        "its samples are flat: check the weights, `family` and the clock": finite and float(images.std()) < FLAT,
        "all samples are one image": finite and len(images) > 1 and float(images.std(0).mean()) < FLAT,
        f"an inverted image returns with {_decibels(returned)} only": not returned >= GOOD_DECIBELS,
        f"its autoencoder keeps {_decibels(first_stage)} of an image only": not first_stage >= GOOD_DECIBELS,
    }
    return tuple(problem for problem, holds in rules.items() if holds)


def decibels(images: Tensor, originals: Tensor) -> float:
    """Peak signal-to-noise ratio of images in [-1, 1]; infinite if they are equal."""
    error = float((images - originals).square().mean())
    return float(10 * torch.log10(torch.tensor(4 / error))) if error else float("inf")


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process has held so far, or that torch has held on the GPU; 0 on Windows' CPUs."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
