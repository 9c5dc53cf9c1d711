"""A run in a folder: checkpoints to go on from, a log, and sheets of pictures to watch it by.

`OUTPUT/training/` has what only training needs; the folder itself has what the run makes.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import TRASH, atomic_path, next_numbered, remove_leftovers
from flowgrad.models import resolve_device
from flowgrad.training.loop.pictures import write_sheet
from flowgrad.training.loop.trainer import Budget, Trainer, TrainStep, train

Follow = Callable[[Iterator[TrainStep]], Iterable[TrainStep]]  # passes a run's steps on, and may show them

FORMAT = 2  # of the checkpoints
LOG_EVERY = 25  # steps whose mean loss is one record of the log
LONG_STEPS, LONG_MINUTES = 20_000, 120  # from here on, compiling pays
REMEDY = "Give what it had, choose another folder, or start again without resuming"
WRITTEN = ("README.md", "*.safetensors", "*.json", "*.yaml", "*.png")  # what runs make


@dataclass(frozen=True)
class RunOptions:
    """How a run is done; none of this changes what a step computes, except the budget, which the learning rate follows.

    resume: go on with an unfinished run in the folder, else it is moved to the folder's trash. compiled: by
    torch.compile; None compiles if the run is long, or if the run that goes on was. samples: pictures on a sheet.
    """

    output: Path
    budget: Budget
    resume: bool = True
    compiled: bool | None = None
    device: str = "auto"
    evaluate_every: int = 500
    checkpoint_minutes: float = 2.0
    samples: int = 64

    def __post_init__(self) -> None:
        if self.evaluate_every < 1 or self.samples < 1 or self.checkpoint_minutes < 0:
            raise UsageError(
                "evaluate_every and samples must be 1 or more, checkpoint_minutes 0 or more; "
                f"got {self.evaluate_every}, {self.samples}, {self.checkpoint_minutes}"
            )
        self.compile_wanted(None)

    @property
    def state(self) -> Path:
        """The folder of what only training needs."""
        return self.output / "training"

    @property
    def checkpoint(self) -> Path:
        """The file from which the run goes on."""
        return self.state / "checkpoint.pt"

    def compile_wanted(self, before: bool | None) -> bool:
        """Whether to compile: as told, else as `before`, else if the run is long.

        Raises UsageError if that was told and is impossible.
        """
        gpu = resolve_device(self.device).type == "cuda"
        possible = gpu or shutil.which(os.environ.get("CXX", "g++")) is not None
        if self.compiled and not possible:
            raise UsageError("compiling needs a C++ compiler, and there is no g++: install it, or train uncompiled")
        long = (self.budget.steps or 0) >= LONG_STEPS or (self.budget.minutes or 0) >= LONG_MINUTES
        wanted = self.compiled if self.compiled is not None else before
        return possible and (long if wanted is None else wanted)

    def begin(self) -> None:
        """Make room in the folder: a run that is not to go on moves to the trash.

        Raises UsageError if the folder has files that no run left there.
        """
        if not self.state.exists():
            if taken := sorted(path.name for name in WRITTEN for path in self.output.glob(name)):
                raise UsageError(f"{self.output} has a {taken[0]} that no run left there: choose another folder.")
        elif self.checkpoint.exists() and not self.resume:
            place = next_numbered(self.output / TRASH / self.state.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            self.state.rename(place)
        self.state.mkdir(parents=True, exist_ok=True)

    def saved(self, **own: str) -> dict[str, Any] | None:
        """The state of the run in the folder, which goes on; None if a new one begins.

        own: what must be the same for it to go on: "recipe", "data", "start". Raises UsageError if something is not,
        FlowgradError if the checkpoint is damaged.
        """
        if not self.resume or not self.checkpoint.exists():
            return None
        saved = read_checkpoint(self.checkpoint)
        for key, value in own.items():
            if saved[key] != value:
                raise UsageError(f"the unfinished run in {self.output} has {_OTHER[key]}. {REMEDY}.")
        return saved


_OTHER = {"recipe": "another recipe", "data": "other data, labels or seed", "start": "other weights to begin with"}


@dataclass
class Run:
    """A trainer in its folder. Every process of torchrun makes one.

    own: see `RunOptions.saved`; sheet: draws pictures (B, 3, H, W) in [-1, 1] of the averaged weights, to be looked at.
    """

    trainer: Trainer
    options: RunOptions
    own: Mapping[str, str]
    compiled: bool = False
    sheet: Callable[[int], Tensor] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    written: float = field(default_factory=monotonic)

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Go on from what `RunOptions.saved` returned, if it returned something."""
        if saved:
            self.trainer.restore(saved)
            self.log, self.losses = list(saved["log"]), list(saved["losses"])
        if self.trainer.workers.leads:
            remove_leftovers(self.options.checkpoint)
        self.trainer.workers.wait()

    def steps(self) -> Iterator[TrainStep]:
        """Train until the budget is spent, yielding each step; sheets, log and checkpoints are written on the way."""
        for record in train(self.trainer, self.options.budget, self.options.evaluate_every, self._keep):
            if record.step == 0:
                self._note(record)
            yield record

    def _keep(self, record: TrainStep) -> None:
        """Log and save after a step, in the leading process."""
        self.losses.append(record.loss or 0.0)
        if record.held_out is not None or record.step % LOG_EVERY == 0:
            self._note(record)
        late = monotonic() - self.written >= 60 * self.options.checkpoint_minutes
        if self.trainer.workers.leads and (late or record.progress >= 1):
            self.save()

    def _note(self, record: TrainStep) -> None:
        mean = sum(self.losses) / len(self.losses) if self.losses else None
        self.losses = []
        self.log.append({**record.as_dict(), "loss": mean})
        if record.held_out is not None and self.sheet and self.trainer.workers.leads:
            path = self.options.state / "samples" / f"step-{record.step:07d}.png"
            write_sheet(path, self.pictures(min(self.options.samples, 16)))

    def pictures(self, count: int) -> Tensor:
        """What `sheet` draws, by the averaged weights."""
        assert self.sheet is not None
        with self.trainer.averaged():
            return self.sheet(count)

    def save(self) -> None:
        """Write the checkpoint and the log."""
        state = {"format": FORMAT, **self.trainer.state(), **self.own, "compiled": self.compiled}
        with atomic_path(self.options.checkpoint) as temporary:
            torch.save({**state, "log": self.log, "losses": self.losses}, temporary)
        write_log(self.options.state / "log.jsonl", self.log)
        self.written = monotonic()

    @property
    def held_out(self) -> tuple[float, float]:
        """The held-out loss at the start and at the end; NaN where nothing was held out."""
        known = [record["held_out"] for record in self.log if record["held_out"] is not None] or [float("nan")]
        return known[0], known[-1]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a run's state without executing anything in it. Raises FlowgradError if it is damaged or of another kind."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise FlowgradError(f"{path} is not a readable checkpoint ({reason}): delete it to start again.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "average" not in state:
        raise FlowgradError(f"{path} is not a checkpoint of a training in format {FORMAT}: delete it to start again.")
    return state


def write_log(path: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Write records as lines of JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(dict(record)) + "\n" for record in log), encoding="utf-8")
