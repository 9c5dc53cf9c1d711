"""Arrays that take long to compute, kept on disk in shards that are whole or not there, so that work goes on."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowgrad.errors import FlowgradError
from flowgrad.files import atomic_path, remove_leftovers
from flowgrad.workers import Workers

SHARD = 256  # rows in a file
PLAN = "plan.json"


@dataclass(frozen=True)
class ShardStep:
    """How many of `total` rows are there."""

    done: int
    total: int


@dataclass(frozen=True)
class Shards:
    """Rows of all shards of a folder, mapped from disk."""

    files: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all rows together."""
        return (sum(map(len, self.files)), *self.files[0].shape[1:])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), *D) these rows."""
        return np.stack([self.files[row // SHARD][row % SHARD] for row in rows.tolist()])


def write_shards(
    folder: Path, plan: Mapping[str, object], count: int, make: Callable[[int, int], np.ndarray], workers: Workers
) -> Iterator[ShardStep]:
    """Write `count` rows into `folder`, yielding after each shard; goes on where it was interrupted.

    make: computes rows start .. stop - 1. plan: what the rows depend on; shards of another plan are deleted. Each
    process makes a part of the shards. Raises FlowgradError where the disk refuses.
    """
    if read_plan(folder) != dict(plan):
        for path in folder.glob("rows-*.npy"):
            path.unlink(missing_ok=True)  # another process may have done it
        with atomic_path(folder / PLAN) as temporary:
            temporary.write_text(json.dumps(dict(plan)), encoding="utf-8")
    if workers.leads:
        remove_leftovers(folder / "rows.npy")
    workers.wait()
    for start in own_starts(count, workers):
        stop = min(start + SHARD, count)
        if not _path(folder, start).exists():
            with atomic_path(_path(folder, start)) as temporary:
                np.save(temporary, make(start, stop))
        yield ShardStep(stop, count)
    workers.wait()


def own_starts(count: int, workers: Workers) -> range:
    """The first rows of the shards, of `count` rows in all, that this process makes."""
    return range(0, count, SHARD)[workers.rank :: workers.size]


def read_plan(folder: Path) -> dict[str, object] | None:
    """What the rows in a folder depend on; None if there are none."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) else None


def read_shards(folder: Path, count: int) -> Shards:
    """Map `count` rows. Raises FlowgradError if some are missing or damaged."""
    try:
        paths = [_path(folder, start) for start in range(0, count, SHARD)]
        return Shards(tuple(np.load(path, mmap_mode="r", allow_pickle=False) for path in paths))
    except (OSError, ValueError, EOFError) as error:
        raise FlowgradError(f"what {folder} holds is damaged ({error}): delete that file and resume.") from error


def _path(folder: Path, start: int) -> Path:
    return folder / f"rows-{start:07d}.npy"
