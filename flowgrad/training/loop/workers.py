"""One process or several (torchrun, gloo) that share the work of each batch."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from flowgrad.errors import FlowgradError, UsageError

PATIENCE = timedelta(days=1)  # while one process prepares millions of pictures; torchrun ends all when one fails


@dataclass(frozen=True)
class Workers:
    """This process among `size` of them, `rank` of 0 .. size - 1. One alone does everything without communication."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> "Workers":
        """Join the processes that torchrun started, through gloo; one process alone otherwise."""
        if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        """Part from the others."""
        if self.size > 1:
            dist.destroy_process_group()

    def device(self, name: str) -> str:
        """The device of this process: "auto" and "cuda" are a GPU of its own where there are several processes."""
        if self.size == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
            return name
        return f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` items, in order. Raises UsageError unless each gets as many."""
        if count % self.size:
            raise UsageError(f"the batch must be a multiple of the {self.size} processes; got {count}")
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def mean(self, values: Sequence[Tensor]) -> None:
        """Replace float tensors by their mean over the processes, in one exchange."""
        if self.size > 1:
            flat = torch.cat([value.flatten() for value in values])
            with _together():
                dist.all_reduce(flat)
            flat /= self.size
            for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
                value.copy_(part.view_as(value))

    def agree(self, value: float) -> float:
        """The leading process's value."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        with _together():
            dist.broadcast(shared, src=0)
        return float(shared)

    def wait(self) -> None:
        """Go on once all processes are here."""
        if self.size > 1:
            with _together():
                dist.barrier()


@contextmanager
def _together() -> Iterator[None]:
    """Raise FlowgradError if another process ends while this one waits for it: what went wrong is for that to say."""
    try:
        yield
    except RuntimeError as error:
        raise FlowgradError("another process of this run ended: its own message says why.") from error
