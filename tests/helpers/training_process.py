"""One of several processes that share runs of Algorithm 1 in float64, and what it says of them.

python -m tests.helpers.training_process FILE: what came of CASES goes into FILE, with the process's number at its end.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError
from flowgrad.ode import Grid, invert, restrict
from flowgrad.optimize import Objective, Settings, optimize
from flowgrad.workers import ALONE, Share, Workers

CASES = ((10, "grid"), (10, "fine"), (2, "grid"))  # images and the forward pass; one has fewer images than processes
GRID = Grid((0, 1, 2, 7, 11), 12)


def field(x: Tensor, t: Tensor) -> Tensor:
    """Of each image alone, whatever others are in its batch: sums and products, which are rounded alike everywhere."""
    return (0.7 - 0.2 * x * x) * x.roll(1, -1) + t.reshape(-1, 1, 1, 1) * x.flip(1)


def towards(target: Tensor, share: Share) -> Objective:
    """|x1 - target|^2 for each image, and a term whose draws matter."""

    def objective(x1: Tensor, rng: torch.Generator, _: slice) -> dict[str, Tensor]:
        noise = torch.rand(share.count, generator=rng, dtype=x1.dtype)[share.rows]
        return {"distance": (x1 - target).square().flatten(1).cumsum(1)[:, -1], "noise": noise * x1[:, 0, 0, 0]}

    return objective


def run(count: int, forward: str, workers: Workers = ALONE) -> list[Tensor]:
    """The losses and controls of a run on so many images, of which this process computes its share."""
    share = Share(count, workers)
    images = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[share.rows]
    photos = invert(field, images, GRID.steps)
    settings = Settings(iterations=5, forward=forward, products=0, xi=0.05, optimizer="adam", penalty=0.1, seed=3)
    wanted = towards(images.flip(1) + 1, share)
    steps = optimize(field, photos.x0, GRID, wanted, settings, path=partial(restrict, photos), share=share)
    return [value for step in steps for value in (torch.tensor(step.loss), step.control.values)]


def exchange(workers: Workers) -> list[Tensor]:
    """Five rows of several dtypes in groups of two, gathered along the second axis, however they lie in memory; and
    the leading process's bytes."""
    share, rows = Share(5, workers, group=2), torch.arange(15.0).view(3, 5)
    gathered = [share.gather(rows.to(d)[:, share.rows], 1) for d in (torch.bfloat16, torch.int64, torch.float64)]
    images = torch.arange(120.0).view(5, 3, 4, 2)[share.rows].to(memory_format=torch.channels_last)
    gathered += [share.gather(images), torch.tensor(share.gather(images).stride())]
    told = [workers.tell(data if workers.leads else None) for data in (b"some", b"", None)]
    return [*gathered, *(torch.tensor(-1) if data is None else torch.tensor([*data]) for data in told)]


def is_refused(workers: Workers) -> bool:
    """Whether this process is told that it was given something else than the leading one."""
    try:
        workers.check_same("numbers", str(workers.rank))
    except FlowgradError as error:
        return f"process {workers.rank} was given other numbers" in str(error)
    return False


def threads() -> int:
    """How many threads this process has, those of libraries included; 0 where the system does not tell."""
    return len(list(Path("/proc/self/task").glob("*")))


if __name__ == "__main__":
    torch.set_num_threads(1)
    before = threads()
    with Workers.join() as joined:
        found = {"exchange": exchange(joined)} | {f"{n} {way}": run(n, way, joined) for n, way in CASES}
        found["refused"] = [torch.tensor(is_refused(joined))]
    found["threads"] = [torch.tensor(threads() - before)]
    torch.save(found, f"{sys.argv[1]}{joined.rank}")
