"""Interrupted trainings go on bit for bit: all that Algorithm 1 needs, in one safetensors file."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from directions.progress import Reporter
from directions.train.task import Task
from directions.train.training import Record, Training, train
from flowgrad.errors import FlowgradError
from flowgrad.files import atomic_path
from flowgrad.ode import Control, Grid
from flowgrad.optimize import State

KEY = "flowgrad.checkpoint"
VERSION = 4


def train_resumably(task: Task, path: Path, resume: bool, reporter: Reporter, *conditions: str) -> Iterator[Training]:
    """Yield a training as `train` does, with a checkpoint at `path` after every evaluation.

    It goes on from the checkpoint there if that is of exactly this task, and says which is the case; `conditions`: see
    `task_hash`.
    """
    identity = task_hash(task, *conditions)
    begun = load_checkpoint(path, identity, task.model.device) if resume else None
    if begun:
        reporter.warn(f"going on after {begun.state.iteration} of {task.recipe.iterations + 1} evaluations")
    elif resume and path.is_file():
        other = "is of another training (photos, texts, recipe, ...) or version of flowgrad"
        reporter.warn(f"{path} {other}: it is replaced, and this one starts from the beginning")
    for training in train(task, begun=begun):
        if training is not begun:
            save_checkpoint(path, identity, training)
        yield training


def task_hash(task: Task, *conditions: str) -> str:
    """Return 16 hexadecimal digits that only the same training has: weights, photos, texts, recipe and seed.

    `conditions` are further texts on which the numbers depend, such as the precision.
    """
    photos = task.photos.images.detach().float().cpu().contiguous().numpy()
    facts = {
        "model": [task.model.name, task.model.fingerprint, str(task.model.device)],
        "guide": task.guide.fingerprint,
        "photos": hashlib.sha256(photos.tobytes()).hexdigest(),
        "texts": [str(task.target), *map(str, task.keep)],
        "recipe": task.recipe.model_dump(),
        "seed": task.seed,
        "conditions": conditions,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def save_checkpoint(path: Path, identity: str, training: Training) -> None:
    """Write a training of the task with this hash, through a temporary file.

    Raises FlowgradError where the disk refuses.
    """
    state = training.state
    tensors = {"control": state.control.values, "best": state.best.values}
    tensors |= {f"moments.{i}": moment for i, moment in enumerate(state.moments)}
    facts = {
        "version": VERSION,
        "task": identity,
        "iteration": state.iteration,
        "best_loss": state.best_loss,
        "step_size": state.step_size,
        "grid": asdict(state.control.grid),
        "history": [asdict(record) for record in training.history],
    }
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {KEY: json.dumps(facts)})


def load_checkpoint(path: Path, identity: str, device: torch.device | str = "cpu") -> Training | None:
    """Read the checkpoint of exactly this task; None if there is none, or one of another task.

    Raises FlowgradError for a damaged file.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})[KEY])
            if (facts["version"], facts["task"]) != (VERSION, identity):
                return None
            tensors = {name: _placed(file.get_tensor(name), device) for name in file.keys()}  # noqa: SIM118
        grid = Grid(tuple(facts["grid"]["starts"]), facts["grid"]["steps"])
        control, best = (Control(tensors.pop(name), grid) for name in ("control", "best"))
        moments = tuple(tensors[f"moments.{i}"] for i in range(len(tensors)))
        state = State(facts["iteration"], control, moments, best, facts["best_loss"], facts["step_size"])
        return Training(state, tuple(Record(**record) for record in facts["history"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise FlowgradError(f"{path} is a damaged checkpoint ({reason}): start again with --no-resume.") from error


def _placed(value: Tensor, device: torch.device | str) -> Tensor:
    return value.to(device) if value.ndim else value  # Adam keeps its count of steps on the CPU
