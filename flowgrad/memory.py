"""Batches that fit: velocities evaluated on as many images at a time as there is memory for."""

import os
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError, is_out_of_memory
from flowgrad.velocity import Velocity

SHARE = 0.6  # of the free memory that the activations of a batch may take
UNLIMITED = 1 << 62  # bytes


class Work(Protocol):
    """Something done with a velocity to states (B, *D), times () or (B,) and further (B, ...) tensors: a (B, *D)."""

    def __call__(self, velocity: Velocity, x: Tensor, t: Tensor, *more: Tensor) -> Tensor: ...


class Batched:
    """A velocity that takes any number of images, and hands on `limit` at a time.

    `limit` starts at `batch`. It falls to what the free memory holds, measured on the first image that gradients are
    taken of, and is halved whenever memory runs out. Raises FlowgradError when one image does not fit.
    """

    def __init__(self, inner: Velocity, batch: int) -> None:
        self.inner, self.limit, self.measured = inner, batch, False

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t), see `flowgrad.velocity`."""
        return self.work(_evaluate, x, t)

    def work(self, job: Work, x: Tensor, t: Tensor, *more: Tensor) -> Tensor:
        """Do `job` with the inner velocity, `limit` images at a time; the results (B, *D) side by side."""
        found: list[Tensor] = []
        while (done := sum(map(len, found))) < len(x):
            part = slice(done, done + self.limit)
            result = self._try(job, x[part], t[part] if t.ndim else t, *(tensor[part] for tensor in more))
            if result is None:
                self._lower(len(x[part]))
            else:
                found.append(result)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _try(self, job: Work, x: Tensor, t: Tensor, *more: Tensor) -> Tensor | None:
        """The result, or None if there is not enough memory; then nothing of the attempt is held any more."""
        try:
            return job(self.inner, x, t, *more)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(x) == 1:
                raise FlowgradError(
                    "one image does not fit into the memory. Set checkpointing: true or dtype: bf16 in the model's "
                    f"configuration, trajectories: host{'' if x.device.type == 'cpu' else ', or use --device cpu'}"
                ) from error
        return None

    def _lower(self, tried: int) -> None:
        self.limit = tried // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def measure(self, job: Work, x: Tensor, t: Tensor, *more: Tensor) -> Tensor:
        """Do `job`, which takes gradients; the first time, find out on one image how many fit.

        What comes of that image is not kept: a run that is resumed must divide its batches as the first one did.
        """
        if self.measured or self.limit == 1 or len(x) == 1:
            return self.work(job, x, t, *more)
        first = [x[:1], t[:1] if t.ndim else t, *(tensor[:1] for tensor in more)]
        with ActivationBytes() as counted:
            self.work(job, *first)
        self.measured = True
        self.limit = max(1, min(self.limit, int(SHARE * free_memory(x.device) / max(counted.bytes, 1))))
        return self.work(job, x, t, *more)


def _evaluate(velocity: Velocity, x: Tensor, t: Tensor, *_: Tensor) -> Tensor:
    return velocity(x, t)


class ActivationBytes:
    """Count the bytes that autograd saves for the backward pass within a block; parameters are not counted."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._saved, _unchanged)

    def __enter__(self) -> "ActivationBytes":
        self._hooks.__enter__()
        return self

    def __exit__(self, *told: object) -> None:
        self._hooks.__exit__(*told)

    def _saved(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device; an amount that never limits where it cannot be known."""
    if device.type == "cuda":  # what torch's allocator keeps for itself is free for the next batch
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == "cpu" and hasattr(os, "sysconf"):
        free = _available() or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(free, allowed_memory())
    return UNLIMITED


def _available() -> int:
    """Linux' own estimate, which counts caches that can be dropped; 0 where there is none."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            rows = dict(line.split(":", 1) for line in file)
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0


def allowed_memory(mount: Path = Path("/sys/fs/cgroup"), told: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that Linux' control groups (of a container, or a batch job) leave this process below their limits.

    Beyond them a process is killed, without an error that could be caught. UNLIMITED where there is no limit.
    """
    try:
        rows = [line.split(":", 2) for line in told.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return UNLIMITED
    found = [UNLIMITED]
    for _, kinds, path in rows:  # kinds: empty in version 2, else what a hierarchy of version 1 is for
        if kinds and "memory" not in kinds.split(","):
            continue
        base = mount / "memory" if kinds else mount
        group = base / path.lstrip("/")
        found += [_left(folder, *_GROUP_FILES[bool(kinds)]) for folder in (group, *group.parents)]
    return min(found)


_GROUP_FILES = {
    False: ("memory.max", "memory.current", "inactive_file"),
    True: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _left(folder: Path, limit: str, used: str, cached: str) -> int:
    """A group's limit less what it uses, but for files in the cache, which can be dropped."""
    try:
        top, now = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
        rows = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return top - now + int(rows.get(cached, 0))
    except (OSError, ValueError):
        return UNLIMITED
