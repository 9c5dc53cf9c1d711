"""Interrupted trainings go on bit for bit: all that Algorithm 1 needs, in one safetensors file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from directions.train.task import Task
from flowgrad.errors import FlowgradError
from flowgrad.files import atomic_path
from flowgrad.ode import Control, Grid
from flowgrad.optimize import State, Step

KEY = "flowgrad.checkpoint"
VERSION = 3


@dataclass(frozen=True)
class Record:
    """What a figure and a summary need of one evaluation; see `flowgrad.optimize.Step`."""

    iteration: int
    loss: float
    terms: Mapping[str, float]
    gradient_rms: float
    best: bool

    @classmethod
    def of(cls, step: Step) -> "Record":
        """The record of a step."""
        return cls(step.iteration, step.loss, dict(step.terms), step.gradient_rms, step.best)


@dataclass(frozen=True)
class Checkpoint:
    """A training as it stands: `task` (see `task_hash`), the optimisation's state, and what happened so far."""

    task: str
    state: State
    history: tuple[Record, ...]

    @property
    def control(self) -> Control:
        """The best control so far."""
        return self.state.best

    @property
    def losses(self) -> tuple[float, ...]:
        """The loss of every evaluation."""
        return tuple(record.loss for record in self.history)


def task_hash(task: Task, *conditions: str) -> str:
    """Return 16 hexadecimal digits that only the same training has: weights, photos, texts, recipe and seed.

    `conditions` are further texts on which the numbers depend, such as the precision.
    """
    told = {
        "model": [task.model.name, task.model.fingerprint],
        "guide": task.guide.fingerprint,
        "photos": _digest(task.photos.images),
        "texts": [str(task.target), *map(str, task.keep)],
        "recipe": task.recipe.model_dump(),
        "seed": task.seed,
        "conditions": conditions,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint through a temporary file. Raises FlowgradError where the disk refuses."""
    state = checkpoint.state
    tensors = {"control": state.control.values, "best": state.best.values}
    tensors |= {f"moments.{i}": moment for i, moment in enumerate(state.moments)}
    told = {
        "version": VERSION,
        "task": checkpoint.task,
        "iteration": state.iteration,
        "best_loss": state.best_loss.hex(),  # exact, and holds infinity
        "step_size": state.step_size.hex(),
        "steps": state.control.grid.steps,
        "starts": {"control": state.control.grid.starts, "best": state.best.grid.starts},
        "history": [asdict(record) for record in checkpoint.history],
    }
    with atomic_path(path) as temporary:
        save_file(
            {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, temporary, _header(told)
        )


def load_checkpoint(path: Path, task: str, device: torch.device | str = "cpu") -> Checkpoint | None:
    """Read the checkpoint of exactly this task; None if there is none, or one of another task.

    Raises FlowgradError for a damaged file.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {})[KEY])
            if (told["version"], told["task"]) != (VERSION, task):
                return None
            tensors = {name: _placed(file.get_tensor(name), device) for name in file.keys()}  # noqa: SIM118
        return Checkpoint(task, _state(told, tensors), _history(told))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise FlowgradError(f"{path} is a damaged checkpoint ({reason}): start again with --no-resume.") from error


def _header(told: Mapping[str, object]) -> dict[str, str]:
    return {KEY: json.dumps(told)}


def _placed(value: Tensor, device: torch.device | str) -> Tensor:
    return value.to(device) if value.ndim else value  # Adam keeps its count of steps on the CPU


def _state(told: Mapping, tensors: Mapping[str, Tensor]) -> State:
    control, best = (
        Control(tensors[name], Grid(tuple(told["starts"][name]), told["steps"])) for name in ("control", "best")
    )
    moments = tuple(tensors[f"moments.{i}"] for i in range(len(tensors) - 2))
    best_loss, step_size = float.fromhex(told["best_loss"]), float.fromhex(told["step_size"])
    return State(told["iteration"], control, moments, best, best_loss, step_size)


def _history(told: Mapping) -> tuple[Record, ...]:
    return tuple(Record(**record) for record in told["history"])


def _digest(images: Tensor) -> str:
    return hashlib.sha256(images.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
