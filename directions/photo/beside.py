"""Work in processes beside this one, for dlib: it uses one core, and lets no other thread of Python run meanwhile."""

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple, TypeVar

from directions.photo import faces
from directions.photo.reading import Align

T = TypeVar("T")
Item = TypeVar("Item")
_PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when the thread that forked it ends
_AHEAD = 2  # results that wait at most for each process: photos at full size


class Beside(NamedTuple):
    """Processes that work is given to, and how many they are."""

    executor: Executor
    processes: int = 1


@contextmanager
def process_beside(align: Align, count: int | None = None) -> Iterator[Beside | None]:
    """Processes that prepare photos: dlib's models and torch take a second each to load, so load both at once.

    count: how many; by default half the cores, since a model uses the others meanwhile.

    None where there is nothing to gain (no faces to find, or a single core), or where a fork is not safe: torch and its
    threads are there already, or the system knows none.
    """
    safe = sys.platform == "linux" and "torch" not in sys.modules
    if align == "never" or not faces.available() or not safe or len(os.sched_getaffinity(0)) < 2:
        yield None
        return
    count = count or len(os.sched_getaffinity(0)) // 2
    executor = ProcessPoolExecutor(count, get_context("fork"), initializer=_follow, initargs=(os.getpid(),))
    try:
        for _ in range(count):
            executor.submit(faces.warm_up)
        yield Beside(executor, count)
    finally:
        executor.shutdown(cancel_futures=True)  # photos that still wait are not prepared after an interruption


def _follow(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when it does, even if it is killed.

    The kernel sees to that: a thread that waits for the parent would itself wait while dlib searches a photo.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command itself says that it was interrupted
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)


def ahead(
    beside: Beside | None, work: Callable[[Item], T], items: Iterable[Item | None]
) -> Iterator[Callable[[], T | None]]:
    """For each item what returns `work(item)`, or raises what that raises; the next ones are begun meanwhile.

    For None it returns None. `work` belongs to a module that needs no torch, since the other process loads it.
    With no process beside the work is done here, as it is if one is killed: for its memory, most likely.
    """
    executor, limit = (beside.executor, _AHEAD * beside.processes) if beside else (None, _AHEAD)
    waiting: deque[Callable[[], T | None]] = deque()
    for item in items:
        waiting.append(_nothing if item is None else _begun(executor, partial(work, item)))
        if len(waiting) > limit:
            yield waiting.popleft()
    yield from waiting


def _begun(executor: Executor | None, here: Callable[[], T]) -> Callable[[], T]:
    try:
        return partial(_result, executor.submit(here), here) if executor else here
    except BrokenExecutor:
        return here


def _nothing() -> None:
    return None


def _result(future: Future[T], here: Callable[[], T]) -> T:
    try:
        return future.result()
    except BrokenExecutor:
        return here()
