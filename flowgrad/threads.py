"""Parts of a batch side by side on a CPU's threads, which scales better than all threads on one part after another."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

P = TypeVar("P")
R = TypeVar("R")
PIXELS = 1 << 18  # of images that are decoded at a time: sixteen of 128x128, and a single one of 512x512


def side_by_side(job: Callable[[P], R], parts: Sequence[P], device: torch.device, most: int = 1 << 10) -> list[R]:
    """The results of a job on each part, in order; on a CPU, up to `most` parts at a time on as many of its threads.

    On other devices, and where there is one part or one thread, one after another. A job runs in the gradient mode that
    this is called in, on its share of torch's threads. Raises what a job raises.
    """
    threads = torch.get_num_threads()
    workers = min(threads, most, len(parts))
    if device.type != "cpu" or workers <= 1:
        return [job(part) for part in parts]
    grad = torch.is_grad_enabled()

    def run(part: P) -> R:
        torch.set_num_threads(threads // workers)  # of this thread
        with torch.set_grad_enabled(grad):
            return job(part)

    try:
        return list(_pool(workers).map(run, parts))
    finally:
        torch.set_num_threads(threads)  # some of what it sets is not of one thread alone


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "flowgrad")


def abreast(side: int) -> int:
    """How many images of so many pixels a side are decoded at a time, for the memory that it takes."""
    return max(1, PIXELS // side**2)
