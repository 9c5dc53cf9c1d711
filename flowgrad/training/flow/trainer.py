"""Training a rectified flow (Liu et al., 2022): v(x, t) learns x1 - x0 on the lines x_t = (1 - t) x0 + t x1.

x0 (B, 3, H, W) is noise and x1 an image in [-1, 1]. What is drawn for a step is a pure function of the seed and the
step's number, whatever the number of processes, so that a run that was killed goes on with the same bits.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss, pad

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path
from flowgrad.models import resolve_precision
from flowgrad.models.diffusers_unet import UNetVelocity, unet_class
from flowgrad.seeds import generator
from flowgrad.training.flow.config import FlowConfig, FlowTraining, UNetConfig
from flowgrad.training.workers import Workers
from flowgrad.velocity import Velocity

ORDER, BATCH, HELD_OUT = range(3)  # streams of random numbers
FORMAT = 1  # of the checkpoints


class Pairs(Protocol):
    """Ends of the lines: noise x0 and images x1, n of them."""

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


def learning_rate(settings: FlowTraining, step: int, progress: float) -> float:
    """The learning rate of a step (from 0) at this share of the run."""
    rate = settings.learning_rate * min(1.0, (step + 1) / max(settings.warmup, 1))
    if settings.schedule == "constant" or progress <= 1 - settings.decay:
        return rate
    return rate * (1 + float(np.cos(np.pi * (progress - 1 + settings.decay) / settings.decay))) / 2


def batch_rows(count: int, batch: int, step: int, seed: int) -> np.ndarray:
    """(batch,) rows of a step: the epochs' random orders of 0 .. count - 1, one after another, cut into batches."""
    places = np.arange(step * batch, (step + 1) * batch)
    orders = {e: _order(count, seed, e) for e in range(places[0] // count, places[-1] // count + 1)}
    return np.array([orders[place // count][place % count] for place in places.tolist()])


@lru_cache(maxsize=2)  # a step may reach into the next epoch; drawn for each step, millions of rows would take longer
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, ORDER, epoch]).permutation(count)


def new_unet(config: UNetConfig, seed: int) -> Any:
    """A UNet2DModel of these sizes with random weights of this seed, in float32."""
    down = ["AttnDownBlock2D" if on else "DownBlock2D" for on in config.attention]
    up = ["AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(config.attention)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return unet_class()(
            sample_size=config.size // config.patch,
            in_channels=3 * config.patch**2,
            out_channels=3 * config.patch**2,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            attention_head_dim=config.head_dim,
            norm_num_groups=config.groups,
        )


@dataclass(frozen=True)
class Budget:
    """When a run ends: after `steps` steps in all, after `minutes` of training in all, or whichever comes first.

    Raises UsageError unless at least one is given, above zero.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [limit for limit in (self.steps, self.minutes) if limit is not None]
        if not given or min(given) <= 0:
            raise UsageError(f"give steps or minutes (or both), above zero; got {self.steps} and {self.minutes}")

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is spent."""
        return max(step / self.steps if self.steps else 0.0, seconds / (60 * self.minutes) if self.minutes else 0.0)


@dataclass(frozen=True)
class FlowStep:
    """One step of training. The first record of a run, step 0 without a loss, gives the held-out loss at the start.

    progress: share of the budget, 0 to 1; seconds: trained so far; held_out: the averaged weights' loss over fixed
    noise and times, where it was measured.
    """

    step: int
    progress: float
    seen: int
    seconds: float
    loss: float | None
    learning_rate: float
    gradient_norm: float | None
    images_per_second: float | None
    held_out: float | None

    @property
    def seconds_left(self) -> float | None:
        """Of training, if it goes on as it did; None at the start."""
        return self.seconds * (1 - self.progress) / self.progress if self.progress > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class FlowTrainer:
    """State of a run: network, its moving average, optimiser, and how far it is."""

    def __init__(
        self,
        network: nn.Module,
        train: Pairs,
        held_out: Pairs,
        config: FlowConfig,
        workers: Workers | None = None,
        device: str = "cpu",
        compiled: bool = False,
    ) -> None:
        """Train `network` (patches and network time in, see `UNetVelocity`) in place; all processes alike.

        compiled: by torch.compile; samples and held-out losses (`still`) are not, for their batches differ in size.
        Weights and activations lie channels-last, in which convolutions are faster on CPUs and GPUs alike.
        """
        self.config, self.workers, self.device = config, workers or Workers(), torch.device(device)
        self.train, self.held_out = train, held_out
        self.share = self.workers.share(config.training.batch)
        placed: Any = network.to(self.device)
        self.network = placed.to(memory_format=torch.channels_last).requires_grad_(True).train()
        precision = resolve_precision(config.training.precision, self.device)
        sizes = (config.network.patch, config.network.time_scale, precision)
        self.still = UNetVelocity(self.network, *sizes)
        run: Any = torch.compile(self.network) if compiled else self.network
        self.velocity = UNetVelocity(run, *sizes)
        self.average = {key: value.detach().clone() for key, value in self.network.named_parameters()}
        settings = config.training
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=0.0, betas=settings.betas, weight_decay=settings.weight_decay, foreach=True
        )
        self.step, self.seconds = 0, 0.0

    def advance(self, progress: float) -> FlowStep:
        """Take one step at this share of the run. Raises FlowgradError if the loss is not a number."""
        begun, settings = time.perf_counter(), self.config.training
        rate = learning_rate(settings, self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        whole = self._gradients()
        clipped = nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        loss, norm = torch.stack([whole, clipped.to(whole)]).tolist()
        if not np.isfinite([loss, norm]).all():
            raise FlowgradError(f"the loss became {loss} at step {self.step}: lower learning_rate and resume.")
        self.optimizer.step()
        self._update_average()
        self.step += 1
        spent = time.perf_counter() - begun
        self.seconds += spent
        seen = self.step * settings.batch
        return FlowStep(
            self.step, progress, seen, self.seconds, loss, rate, norm, settings.batch / spent, held_out=None
        )

    def _gradients(self) -> Tensor:
        """Leave in the parameters the gradients of the whole batch's loss, and return that loss."""
        x0, x1, t = self._batch()
        self.optimizer.zero_grad()
        loss = flow_loss(self.velocity, x0, x1, t)
        loss.backward()
        whole = loss.detach()
        self.workers.mean([whole, *(p.grad for p in self.network.parameters() if p.grad is not None)])
        return whole

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        settings = self.config.training
        draws = generator(settings.seed, BATCH, self.step)
        t = draw_times(settings.batch, settings.uniform, draws)[self.share]
        rows = batch_rows(len(self.train), settings.batch, self.step, settings.seed)
        x0, x1 = self.train.draw(rows, draws, self.share)
        return x0.to(self.device), x1.to(self.device), t.to(self.device)

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.config.training.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), list(self.network.parameters()), 1 - keep)

    def held_out_loss(self) -> float:
        """The averaged weights' loss over the held-out images, with noise and times that are always the same."""
        with self.averaged():
            return held_out_loss(self.still, self.held_out, self.config.training, self.device, self.workers)

    def averaged(self) -> "_Swapped":
        """A context in which the network has its averaged weights, and is in evaluation mode."""
        return _Swapped(self.network, self.average)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "format": FORMAT,
            "config": self.config.model_dump_json(),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises UsageError if it is of another recipe."""
        refuse_other_recipe(state, self.config)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = {key: value.to(self.device) for key, value in state["average"].items()}
        self.step, self.seconds = state["step"], state["seconds"]


def refuse_other_recipe(state: dict[str, Any], config: FlowConfig) -> None:
    """Raise UsageError if a state is of another recipe."""
    if state["config"] != config.model_dump_json():
        raise UsageError(
            "the unfinished run has another recipe: resume with the same options, or choose another folder."
        )


@torch.no_grad()
def held_out_loss(
    velocity: Velocity, pairs: Pairs, settings: FlowTraining, device: torch.device, workers: Workers | None = None
) -> float:
    """Mean loss over all pairs, with noise and times that depend on the settings' seed, batch and mix alone."""
    workers, size = workers or Workers(), settings.batch
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


class _Swapped:
    """Exchange a network's weights for others while a block runs."""

    def __init__(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        self.network, self.weights = network, weights

    def __enter__(self) -> nn.Module:
        self._swap()
        return self.network.eval()

    def __exit__(self, *_: object) -> None:
        self._swap()
        self.network.train()

    @torch.no_grad()
    def _swap(self) -> None:
        for key, parameter in self.network.named_parameters():
            own = parameter.clone()
            parameter.copy_(self.weights[key])
            self.weights[key].copy_(own)


def train_flow(
    trainer: FlowTrainer, budget: Budget, evaluate_every: int, keep: Callable[[FlowStep], None] | None = None
) -> Iterator[FlowStep]:
    """Train until the budget is spent, yielding each step; a restored trainer goes on where it was.

    The held-out loss is measured at the start, every `evaluate_every` steps and at the end. `keep` is called after
    each step, when the state is whole: the place to save it. With a budget of steps alone, a run that was killed and
    restored gives the same bits; minutes make the learning rate follow the clock.
    """
    if trainer.step == 0:
        start = trainer.held_out_loss()
        yield FlowStep(0, 0.0, 0, 0.0, None, 0.0, None, None, start)
    while (progress := trainer.workers.agree(budget.progress(trainer.step, trainer.seconds))) < 1:
        record = trainer.advance(progress)
        reached = trainer.workers.agree(budget.progress(trainer.step, trainer.seconds))
        due = trainer.step % evaluate_every == 0 or reached >= 1
        held_out = trainer.held_out_loss() if due else None
        record = replace(record, progress=min(reached, 1.0), held_out=held_out)
        if keep is not None:
            keep(record)
        yield record


def save_checkpoint(path: Path, state: dict[str, Any], data: str, log: list[dict[str, Any]]) -> None:
    """Write a run's state, through a temporary file, with the key of its data and the records so far."""
    with atomic_path(path) as temporary:
        torch.save({**state, "data": data, "log": log}, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a run's state without executing anything in it. Raises FlowgradError if it is damaged or of another kind."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise FlowgradError(f"{path} is not a readable checkpoint ({reason}): delete it to start again.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "average" not in state:
        raise FlowgradError(f"{path} is not a checkpoint of train-flow in format {FORMAT}: delete it to start again.")
    return state
