"""Batches that fit: velocities evaluated on as many images at a time as there is memory for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import Tensor

from flowgrad.errors import FlowgradError, is_out_of_memory
from flowgrad.threads import side_by_side
from flowgrad.velocity import Pullback, Velocity, linearized, vjp
from flowgrad.workers import neighbours

SHARE = 0.6  # of the free memory that the activations of a batch may take
UNLIMITED = 1 << 62  # bytes
FEWEST = 5  # images that a thread gets of a batch: of fewer, each costs a network more


class Batched:
    """A velocity that takes any number of images, and has `limit` of them in memory at a time.

    `limit` starts at `batch`. It falls to what this process's part of the free memory holds, measured on the first
    image that gradients are taken of, and is halved whenever memory runs out. group: how many go through the network
    together, at most; without it, all that are in memory, on a CPU a part on each thread. Raises FlowgradError when one
    image does not fit.
    """

    def __init__(self, inner: Velocity, batch: int, group: int | None = None) -> None:
        self.inner, self.limit, self.group = inner, batch, group
        self.size: int | None = None  # bytes of one image's activations, once they are measured

    def in_groups(self, group: int) -> "Batched":
        """The same velocity, on so many images together at most."""
        return Batched(self.inner, self.limit, group)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t), see `flowgrad.velocity`."""
        return self._divided(self.inner, x, t.expand(len(x)))

    def vjp(self, x: Tensor, t: Tensor, g: Tensor) -> Tensor:
        """The vector-Jacobian product g @ dv/dx (B, *D); the first time, it is found out on one image how many fit.

        What comes of that image is not kept: a run that is resumed must divide its batches as the first one did.
        """
        rows = (x, t.expand(len(x)), g)
        if self.size is None and self.limit > 1 and len(x) > 1:
            self._measure(*rows)
        return self._divided(partial(vjp, self.inner), *rows)

    def linearized(self, x: Tensor, t: Tensor) -> tuple[Tensor, Pullback]:
        """v(x, t), and its pullback, with the activations of all images kept; made anew where they do not fit."""
        rows = (x, t.expand(len(x)))
        if self.size is None:
            self._measure(*rows, torch.zeros_like(x))
        if len(x) <= self._fit(x.device):
            try:
                return self._kept(*rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.size = 2 * (self.size or 1)  # activations are not all that an evaluation takes
            torch.cuda.empty_cache()  # only here, since the error held what the attempt had allocated
        return self._divided(self.inner, *rows), lambda g: self._divided(partial(vjp, self.inner), *rows, g)

    def _kept(self, *rows: Tensor) -> tuple[Tensor, Pullback]:
        """As `linearized`, where the memory holds all."""
        together = zip(*(row.split(self._at_a_time) for row in rows), strict=True)
        device, groups = rows[0].device, [group for part in together for group in self._groups(part)]
        velocities, pullbacks = zip(
            *side_by_side(lambda group: linearized(self.inner, *group), groups, device), strict=True
        )

        def pullback(g: Tensor) -> Tensor:
            parts = list(zip(pullbacks, g.split([len(v) for v in velocities]), strict=True))
            return torch.cat(side_by_side(lambda part: part[0](part[1]), parts, device))

        return torch.cat(velocities), pullback

    def _measure(self, *rows: Tensor) -> None:
        """Find out how much memory a product takes, on the first of several images (B, ...), and how many fit."""
        with activation_sizes() as sizes:
            self._divided(partial(vjp, self.inner), *(row[:1] for row in rows))
        self.size = max(sum(sizes.values()), 1)
        self.limit = max(1, min(self.limit, self._fit(rows[0].device)))

    def _fit(self, device: torch.device) -> int:
        """How many images' activations this process's part of the memory that is now free holds."""
        return int(SHARE * free_memory(device) / neighbours(device) / (self.size or 1))

    def _divided(self, job: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """The results (B, *D) of `job` on tensors (B, ...), `limit` rows at a time."""
        results: list[Tensor] = []
        while (done := sum(map(len, results))) < len(rows[0]):
            part = [row[done : done + self._at_a_time] for row in rows]
            try:
                results += side_by_side(lambda group: job(*group), self._groups(part), rows[0].device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part[0]) == 1:
                    raise FlowgradError(
                        "one image does not fit into the memory. Set checkpointing: true, dtype: bf16 and "
                        "trajectories: host in the model's configuration, or use another device"
                    ) from error
            else:
                continue
            self.limit = len(part[0]) // 2
            torch.cuda.empty_cache()  # only here, since the error held what the attempt had allocated
        return torch.cat(results)

    @property
    def _at_a_time(self) -> int:
        """Rows in memory: whole groups, where one fits."""
        whole = self.limit if self.group is None else self.limit // self.group * self.group
        return whole or self.limit

    def _groups(self, rows: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Rows as they go through the network together."""
        count, device = len(rows[0]), rows[0].device
        if self.group is not None:
            return list(zip(*(row.split(self.group) for row in rows), strict=True))
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        parts = max(1, min(threads, count // FEWEST))
        return list(zip(*(row.tensor_split(parts) for row in rows), strict=True))


@contextmanager
def activation_sizes() -> Iterator[dict[int, int]]:
    """Yield the bytes of each storage, by its address, that autograd saves within the block; without parameters."""
    sizes: dict[int, int] = {}

    def saved(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            sizes.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        yield sizes


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device; UNLIMITED where that cannot be known."""
    if device.type == "cuda":  # what torch's allocator keeps for itself is free for the next batch
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == "cpu":
        return min(psutil.virtual_memory().available, container_memory())
    return UNLIMITED


def container_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a container's control group (version 2) leaves below its limit; UNLIMITED where there is none.

    Beyond its limit a process is killed, without an error that could be caught. Cached files can be dropped.
    """
    try:
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        rows = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return limit - used + int(rows["inactive_file"])
    except (OSError, ValueError, KeyError):  # ValueError: the limit is the word "max"
        return UNLIMITED
