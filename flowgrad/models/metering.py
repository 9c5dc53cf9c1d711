"""What work costs: seconds, evaluations of a model, and memory, on whatever device."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from flowgrad.memory import Batched
from flowgrad.models import Model
from flowgrad.velocity import Pullback

T = TypeVar("T")
_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux's account of this process
_PEAK = "5"  # what to forget: the most memory that it has had (man 5 proc)


@dataclass(frozen=True)
class Spent:
    """What a piece of work took: seconds in all, of evaluations, and of vector-Jacobian products; and their numbers.

    evaluations and products are counted by image: a batch of ten counts as ten.
    """

    seconds: float = 0.0
    simulating: float = 0.0
    propagating: float = 0.0
    evaluations: int = 0
    products: int = 0

    @property
    def guiding(self) -> float:
        """Seconds of all that is neither: the decoder, the guide, the optimiser."""
        return self.seconds - self.simulating - self.propagating


class Metered(Batched):
    """A model's velocity that notes what it is asked for, and how long that takes, on an account."""

    def __init__(self, velocity: Batched, account: "Account") -> None:
        super().__init__(velocity.inner, velocity.limit, velocity.group)
        self.account = account

    def in_groups(self, group: int) -> "Metered":
        """See `Batched.in_groups`; on the same account."""
        return Metered(super().in_groups(group), self.account)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t), see `flowgrad.velocity`."""
        v, took = timed(lambda: Batched.__call__(self, x, t))
        self.account.add(simulating=took, evaluations=len(x))
        return v

    def vjp(self, x: Tensor, t: Tensor, g: Tensor) -> Tensor:
        """The vector-Jacobian product g @ dv/dx (B, *D)."""
        product, took = timed(lambda: Batched.vjp(self, x, t, g))
        self.account.add(propagating=took, products=len(x))
        return product

    def linearized(self, x: Tensor, t: Tensor) -> tuple[Tensor, Pullback]:
        """See `Batched.linearized`: an evaluation, and a product once its pullback is called."""
        (v, pullback), took = timed(lambda: Batched.linearized(self, x, t))
        self.account.add(simulating=took, evaluations=len(x))

        def metered(g: Tensor) -> Tensor:
            product, took = timed(lambda: pullback(g))
            self.account.add(propagating=took, products=len(x))
            return product

        return v, metered


class Account:
    """What the velocities of one model have spent."""

    def __init__(self) -> None:
        self.spent = Spent()

    def add(self, **spent: float) -> None:
        """Add to some fields of what was spent."""
        self.spent = replace(self.spent, **{name: getattr(self.spent, name) + more for name, more in spent.items()})

    def measure(self, job: Callable[[], T]) -> tuple[T, Spent]:
        """The result of a job, and what it spent."""
        self.spent = Spent()
        result, took = timed(job)
        return result, replace(self.spent, seconds=took)


def metered(model: Model) -> tuple[Model, Account]:
    """The same model with a velocity that is metered, and its account."""
    account = Account()
    return replace(model, velocity=Metered(model.velocity, account)), account


def timed(job: Callable[[], T]) -> tuple[T, float]:
    """The result of a job, and how many seconds it takes."""
    clock = _clock()
    _wait()
    begun = clock()
    result = job()
    _wait()
    return result, clock() - begun


def seconds(job: Callable[[], object]) -> float:
    """How long a job takes."""
    return timed(job)[1]


def _clock() -> Callable[[], float]:
    """Time as it passes; for a single thread of a CPU, that which it computes, whatever else the machine does."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time if alone else time.perf_counter


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def with_peak(job: Callable[[], T], device: torch.device) -> tuple[T, int]:
    """The result of a job, and by how many bytes the memory rose above what was held before.

    Of torch on a GPU; elsewhere of the whole process, where Linux and its C library keep account of it; else 0.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = job()
        return result, torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else what an earlier job has freed is there to be used, and nothing rises
        _FORGET.write_text(_PEAK, encoding="ascii")
        before = _held("VmRSS")
    except (OSError, AttributeError):
        return job(), 0
    result = job()
    return result, _held("VmHWM") - before


def _held(field: str) -> int:
    """Bytes of a field of Linux's account."""
    (line,) = (line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
