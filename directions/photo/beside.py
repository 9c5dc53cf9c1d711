"""Work in processes beside this one, for dlib: it uses one core, and lets no other thread of Python run meanwhile."""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import TypeVar

from directions.photo import faces
from directions.photo.reading import Align

T = TypeVar("T")
Item = TypeVar("Item")
_AHEAD = 2  # results that wait at most: photos at full size


@contextmanager
def process_beside(align: Align) -> Iterator[Executor | None]:
    """A process that prepares photos: dlib's models and torch take a second each to load, so load both at once.

    None where there is nothing to gain (no faces to find, or a single core), or where a fork is not safe: torch and its
    threads are there already, or the system knows none.
    """
    safe = sys.platform == "linux" and "torch" not in sys.modules
    if align == "never" or not faces.available() or not safe or len(os.sched_getaffinity(0)) < 2:
        yield None
        return
    # It leaves Ctrl-C to this process, and ends when this one does, even if it is killed.
    executor = ProcessPoolExecutor(1, get_context("fork"), initializer=_follow_parent)
    try:
        executor.submit(faces.warm_up)
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)  # photos that still wait are not prepared after an interruption


def _follow_parent() -> None:
    def end_with(parent: BaseProcess) -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command itself says that it was interrupted
    threading.Thread(target=end_with, args=[parent_process()], daemon=True).start()


def ahead(executor: Executor | None, work: Callable[[Item], T], items: Iterable[Item]) -> Iterator[Callable[[], T]]:
    """For each item what returns `work(item)`, or raises what that raises; the next ones are begun meanwhile.

    Without an executor the work is done here, as it is if its process is killed: for its memory, most likely.
    """
    waiting: deque[Callable[[], T]] = deque()
    for item in items:
        here = partial(work, item)
        try:
            waiting.append(partial(_result, executor.submit(here), here) if executor else here)
        except BrokenExecutor:
            waiting.append(here)
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting


def _result(future: Future[T], here: Callable[[], T]) -> T:
    try:
        return future.result()
    except BrokenExecutor:
        return here()
