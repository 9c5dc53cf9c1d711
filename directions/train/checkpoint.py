"""Interrupted trainings go on bit for bit: all that Algorithm 1 needs, in one file of plain values and tensors."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from directions.progress import Reporter
from directions.train.task import Task
from directions.train.training import Record, Training, train
from flowgrad.errors import FlowgradError
from flowgrad.files import atomic_path
from flowgrad.ode import Control, Grid
from flowgrad.optimize import State
from flowgrad.workers import ALONE, Workers

VERSION = 5


def train_resumably(
    task: Task, path: Path, resume: bool, origin: Sequence[str], reporter: Reporter
) -> Iterator[Training]:
    """Yield a training as `train` does, with a checkpoint at `path` after every evaluation, by the leading process.

    With `resume` it goes on from the checkpoint there if that is of exactly this task, on any number of processes, and
    says which is the case. origin: see `task_hash`.
    """
    identity = task_hash(task, origin)
    begun = load_checkpoint(path, identity, task.model.device, task.workers) if resume else None
    if begun:
        reporter.warn(f"going on after {begun.state.iteration} of {task.recipe.iterations + 1} evaluations")
    elif resume and path.is_file():
        other = "is of another training (photos, texts, recipe, ...) or version of flowgrad"
        reporter.warn(f"{path} {other}: it is replaced, and this one starts from the beginning")
    for training in train(task, begun=begun):
        if training is not begun and task.workers.leads:
            save_checkpoint(path, identity, training)
        yield training


def task_hash(task: Task, origin: Sequence[str]) -> str:
    """Return 16 hexadecimal digits that only the same training has: weights, photos, texts, recipe, seed.

    origin: the precision, and what the photos were made of, since what a network made of them may differ in the last
    bits with the number of processes.
    """
    facts = {
        "model": [task.model.name, task.model.fingerprint, task.model.device.type],
        "guide": task.guide.fingerprint,
        "origin": list(origin),
        "texts": [str(task.target), *map(str, task.keep)],
        "recipe": task.recipe.model_dump(),
        "seed": task.seed,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def digest(images: Tensor) -> str:
    """The SHA-256 of images' values."""
    return hashlib.sha256(images.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def save_checkpoint(path: Path, identity: str, training: Training) -> None:
    """Write a training of the task with this hash, through a temporary file.

    Raises FlowgradError where the disk refuses.
    """
    with atomic_path(path) as temporary:
        torch.save({"version": VERSION, "task": identity, "training": asdict(training)}, temporary)


def load_checkpoint(
    path: Path, identity: str, device: torch.device | str = "cpu", workers: Workers = ALONE
) -> Training | None:
    """Read the checkpoint of exactly this task; None if there is none, or one of another task.

    All processes get what the leading one reads. Raises FlowgradError for a damaged file.
    """
    try:
        raw = workers.tell(path.read_bytes() if workers.leads and path.is_file() else None)
        if raw is None:
            return None
        saved = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        if (saved["version"], saved["task"]) != (VERSION, identity):
            return None
        state = saved["training"]["state"]
        state["moments"] = tuple(m.to(device) if m.ndim else m for m in state["moments"])  # Adam counts on the CPU
        for name in ("control", "best"):
            state[name] = Control(state[name]["values"].to(device), Grid(**state[name]["grid"]))
        return Training(State(**state), tuple(Record(**record) for record in saved["training"]["history"]))
    except (UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise FlowgradError(f"{path} is a damaged checkpoint ({reason}): start again with --no-resume.") from error
