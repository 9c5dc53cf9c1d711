"""One loop for everything that is trained here: an objective gives a loss, the loop moves and averages the weights.

What is drawn for a step is a function of the seed and the step's number alone, whatever the number of processes, so
that a run that was killed goes on with the same bits.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.training.loop.optimization import Optimization
from flowgrad.training.loop.optimizer import make_optimizers
from flowgrad.workers import Workers

ORDER, BATCH, HELD_OUT = range(3)  # streams of random numbers


class Objective(Protocol):
    """What is trained. `network` has the parameters that move; for `plain` and `factors` see `make_optimizers`."""

    @property
    def network(self) -> nn.Module: ...

    @property
    def plain(self) -> tuple[str, ...]: ...

    @property
    def factors(self) -> Mapping[str, float]: ...

    def loss(self, step: int, progress: float, share: slice) -> Tensor:
        """The mean loss () over `share` of the batch of a step, `progress` (0 to 1) into the run."""
        ...

    def held_out_loss(self, workers: Workers) -> float | None:
        """The mean loss over held-out data, under draws that never change; None where nothing is held out."""
        ...


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
class TrainStep:
    """One step of training. The first record of a run, step 0 without a loss, gives the held-out loss at the start.

    progress: share of the budget, 0 to 1; seen: items so far; seconds: trained so far; rate: share of the learning
    rates; held_out: the averaged weights' loss on held-out data, where it was measured.
    """

    step: int
    progress: float
    seen: int
    seconds: float
    loss: float | None
    rate: float
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


class Trainer:
    """State of a run: the objective's network, its moving average, the optimisers, and how far it is."""

    def __init__(self, objective: Objective, settings: Optimization, workers: Workers | None = None) -> None:
        self.objective, self.settings, self.workers = objective, settings, workers or Workers()
        self.share = self.workers.equal_part(settings.batch)
        self.network = objective.network.requires_grad_(True).train()
        self.optimizers = make_optimizers(self.network, settings, objective.plain, objective.factors)
        self.average = {key: value.clone() for key, value in self._weights().items()}
        self.step, self.seconds = 0, 0.0

    def _weights(self) -> dict[str, Tensor]:
        """Parameters, and buffers that are averaged with them, as those of batch norms."""
        return {key: value for key, value in self.network.state_dict().items() if value.is_floating_point()}

    def advance(self, progress: float) -> TrainStep:
        """Take one step at this share of the run. Raises FlowgradError if the loss is not a number."""
        begun, settings = time.perf_counter(), self.settings
        rate = settings.rate(self.step, progress)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate * group["initial_lr"]
        loss = self.objective.loss(self.step, progress, self.share)
        loss.backward()
        whole = loss.detach()
        self.workers.mean([whole, *(p.grad for p in self.network.parameters() if p.grad is not None)])
        clipped = nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        value, norm = torch.stack([whole, clipped.to(whole)]).tolist()
        if not np.isfinite([value, norm]).all():
            raise FlowgradError(f"the loss became {value} at step {self.step}: lower the learning rates and resume.")
        for optimizer in self.optimizers:
            optimizer.step()
        self._update_average()
        self.step += 1
        spent = time.perf_counter() - begun
        self.seconds += spent
        seen = self.step * settings.batch
        return TrainStep(self.step, progress, seen, self.seconds, value, rate, norm, settings.batch / spent, None)

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), list(self._weights().values()), 1 - keep)

    def held_out_loss(self) -> float | None:
        """The averaged weights' loss on held-out data."""
        with self.averaged():
            return self.objective.held_out_loss(self.workers)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """A context in which the network has its averaged weights, is in evaluation mode and takes no gradients."""
        self._exchange()
        try:
            with torch.no_grad():
                yield self.network.eval()
        finally:
            self._exchange()
            self.network.train()

    @torch.no_grad()
    def _exchange(self) -> None:
        for key, value in self._weights().items():
            own = value.clone()
            value.copy_(self.average[key])
            self.average[key].copy_(own)

    def averaged_state(self) -> dict[str, Tensor]:
        """The network's state with averaged weights: what a finished run keeps."""
        return {**self.network.state_dict(), **self.average}

    def state(self) -> dict[str, Any]:
        """Everything that is needed to go on."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same objective and settings."""
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for key, value in self.average.items():
            value.copy_(state["average"][key])
        self.step, self.seconds = state["step"], state["seconds"]


def train(
    trainer: Trainer, budget: Budget, evaluate_every: int = 500, keep: Callable[[TrainStep], None] | None = None
) -> Iterator[TrainStep]:
    """Train until the budget is spent, yielding each step; a restored trainer goes on where it was.

    The held-out loss is measured at the start, every `evaluate_every` steps and at the end. `keep` is called after
    each step, when the state is whole: the place to save it. With a budget of steps alone, a run that was killed and
    restored gives the same bits; minutes make the learning rate follow the clock.
    """
    if trainer.step == 0:
        yield TrainStep(0, 0.0, 0, 0.0, None, 0.0, None, None, trainer.held_out_loss())
    while (progress := trainer.workers.agree(budget.progress(trainer.step, trainer.seconds))) < 1:
        record = trainer.advance(progress)
        reached = trainer.workers.agree(budget.progress(trainer.step, trainer.seconds))
        due = trainer.step % evaluate_every == 0 or reached >= 1
        record = replace(record, progress=min(reached, 1.0), held_out=trainer.held_out_loss() if due else None)
        if keep is not None:
            keep(record)
        yield record


def batch_rows(count: int, batch: int, step: int, seed: int) -> np.ndarray:
    """(batch,) rows of a step: the epochs' random orders of 0 .. count - 1, one after another, cut into batches."""
    places = np.arange(step * batch, (step + 1) * batch)
    orders = {e: _order(count, seed, e) for e in range(places[0] // count, places[-1] // count + 1)}
    return np.array([orders[place // count][place % count] for place in places.tolist()])


@lru_cache(maxsize=2)  # a step may reach into the next epoch; drawn for each step, millions of rows would take longer
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, ORDER, epoch]).permutation(count)
