"""One process or several (torchrun) that share work; what one of them alone needs is done without communication.

Importing this module does not import torch, so that a command can ask who leads before it loads anything.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from itertools import pairwise
from operator import add
from typing import TYPE_CHECKING

from flowgrad.errors import FlowgradError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PATIENCE = timedelta(days=1)  # while one process prepares millions of pictures; torchrun ends all when one fails


@dataclass(frozen=True)
class Workers:
    """This process among `size` of them, `rank` of 0 .. size - 1. One alone does everything without communication."""

    rank: int = 0
    size: int = 1

    @classmethod
    def started(cls) -> "Workers":
        """The processes that torchrun started, which have not joined yet; one process alone otherwise."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(int(os.environ.get("RANK", "0")), size) if size > 1 else cls()

    @classmethod
    def join(cls) -> "Workers":
        """Join the processes that torchrun started; one process alone otherwise.

        They exchange what lies on the CPU through gloo, and what lies on a GPU through NCCL where each has its own.
        """
        workers = cls.started()
        if workers.size > 1:
            import torch.distributed as dist

            # torch.optim imports it sooner or later; if that is after the group is made, it binds the group as a
            # default argument, and the group and its threads then live as long as Python
            import torch.distributed.nn.functional  # noqa: F401

            if not dist.is_initialized():
                dist.init_process_group("cpu:gloo,cuda:nccl" if _own_gpus() else "gloo", timeout=PATIENCE)
        return workers

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        """Part from the others, and end the threads that talked to them: one that outlives Python would abort it."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def device(self, name: str) -> str:
        """The device of this process: "auto" and "cuda" are a GPU of its own where there are several processes."""
        import torch

        if self.size == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
            return name
        return f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def equal_part(self, count: int) -> slice:
        """This process's part of `count` items, in order. Raises UsageError unless each gets as many."""
        if count % self.size:
            raise UsageError(f"the batch must be a multiple of the {self.size} processes; got {count}")
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def mean(self, values: "Sequence[Tensor]") -> None:
        """Replace float tensors by their mean over the processes, in one exchange."""
        if self.size > 1:
            import torch
            import torch.distributed as dist

            flat = torch.cat([value.flatten() for value in values])
            with _together():
                dist.all_reduce(flat)
            flat /= self.size
            for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
                value.copy_(part.view_as(value))

    def agree(self, value: float) -> float:
        """The leading process's value."""
        import torch

        return float(self.broadcast(torch.tensor(value, dtype=torch.float64), 0))

    def tell(self, data: bytes | None) -> bytes | None:
        """The leading process's bytes, or None if that has none."""
        import torch

        if self.size == 1:
            return data
        length = int(self.agree(-1 if data is None else len(data)))
        if length < 1:
            return None if length < 0 else b""
        own = bytearray(data or b"") if self.leads else bytearray(length)
        return self.broadcast(torch.frombuffer(own, dtype=torch.uint8), 0).numpy().tobytes()

    def check_same(self, what: str, value: str) -> None:
        """Raise FlowgradError in a process that was given another `value` than the leading one; `what` it is of."""
        if self.tell(value.encode()) != value.encode():
            raise FlowgradError(
                f"process {self.rank} was given other {what} than process 0: "
                "give all machines the same files and options"
            )

    def broadcast(self, value: "Tensor", source: int) -> "Tensor":
        """The value of process `source`, bit for bit; the others give one of its shape and dtype, that is lost."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        wire = _to_wire(value)
        with _together():
            dist.broadcast(wire, source)
        return _from_wire(wire, value)

    def from_before(self, value: "Tensor") -> "Tensor":
        """What the process before this one hands on, in the place of `value`; of the first process `value` itself."""
        if self.rank == 0:
            return value
        import torch.distributed as dist

        wire = _to_wire(value)
        with _together():
            dist.recv(wire, self.rank - 1)
        return _from_wire(wire, value)

    def hand_on(self, value: "Tensor") -> None:
        """Give a value to the next process, if there is one."""
        if self.rank == self.size - 1:
            return
        import torch.distributed as dist

        with _together():
            dist.send(_to_wire(value), self.rank + 1)

    def wait(self) -> None:
        """Go on once all processes are here."""
        if self.size > 1:
            import torch

            self.mean([torch.zeros(1)])


ALONE = Workers()


@dataclass(frozen=True)
class Share:
    """This process's part of `count` things, one or more, which are dealt out in order, in whole groups.

    What goes through a network together is a group, however many processes there are: a network's last bits depend on
    the size of its batch.
    """

    count: int
    workers: Workers = ALONE
    group: int = 1

    @property
    def parts(self) -> list[slice]:
        """The groups to be computed here. A process for which none is left computes the last, which does not count."""
        begin, end = self._bounds[self.workers.rank : self.workers.rank + 2]
        if begin == end:
            begin, end = (self.count - 1) // self.group * self.group, self.count
        return [slice(i, min(i + self.group, end)) for i in range(begin, end, self.group)]

    @property
    def rows(self) -> slice:
        """All that is computed here."""
        parts = self.parts
        return slice(parts[0].start, parts[-1].stop)

    def gather(self, rows: "Tensor", dim: int = 0) -> "Tensor":
        """All that the processes computed, `count` along `dim`, in order; `rows` has this process's own.

        Contiguous in any case: what networks make of it depends, in the last bits, on how it lies in memory.
        """
        if self.workers.size == 1:
            return rows.contiguous()
        import torch

        lengths = [end - begin for begin, end in pairwise(self._bounds)]
        rooms = [rows.new_empty((*rows.shape[:dim], length, *rows.shape[dim + 1 :])) for length in lengths]
        rooms[self.workers.rank] = rows.narrow(dim, 0, lengths[self.workers.rank])
        return torch.cat([self.workers.broadcast(room, rank) for rank, room in enumerate(rooms) if room.numel()], dim)

    def total(self, rows: "Tensor") -> "Tensor":
        """The sum (...) of `rows` (B, ...) over all processes: the same bits however many they are.

        Each adds its own, one after another, to the sum of those before it, and hands that on.
        """
        begin, end = self._bounds[self.workers.rank : self.workers.rank + 2]
        summed = reduce(add, rows[: end - begin], self.workers.from_before(rows.new_zeros(rows.shape[1:])))
        self.workers.hand_on(summed)
        return self.workers.broadcast(summed, self.workers.size - 1)

    @property
    def _bounds(self) -> list[int]:
        groups, size = -(-self.count // self.group), self.workers.size
        return [min(self.group * (groups * rank // size), self.count) for rank in range(size + 1)]


def neighbours(device: "torch.device") -> int:
    """How many processes of this run on this machine compute on the same device, this one included."""
    import torch

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return -(-here // torch.cuda.device_count()) if device.type == "cuda" else here


def _own_gpus() -> bool:
    """Whether each process on this machine has a GPU of its own, which NCCL asks for."""
    import torch

    return torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _to_wire(value: "Tensor") -> "Tensor":
    """The bytes of a tensor, whatever its dtype, where processes can exchange them."""
    import torch

    flat = value.detach().contiguous().flatten().view(torch.uint8)
    return flat if _own_gpus() else flat.cpu()


def _from_wire(wire: "Tensor", like: "Tensor") -> "Tensor":
    return wire.view(like.dtype).view(like.shape).to(like.device)


@contextmanager
def _together() -> Iterator[None]:
    """Raise FlowgradError if another process ends while this one waits for it: what went wrong is for that to say."""
    try:
        yield
    except RuntimeError as error:
        raise FlowgradError("another process of this run ended: its own message says why.") from error
