"""The same editing on many machines: photos in shards, which the workers of a Ray cluster take one after the other.

A worker loads the model once. It edits a shard as one machine would edit its photos, writes them, and then the shard's
part of the manifest, whose name follows from the shard: a shard that is begun again, since its worker died, writes the
same files again, and one whose part is there is not edited again. Nothing else is shared but where the files are.
"""

import logging
import os
import pickle
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy as np

from directions.apply.targets import Known
from directions.apply.wanted import Outcome, Wanted
from directions.batch.manifest import Record, read_lines, to_known, to_lines, to_record
from directions.photo.sources import Source
from flowgrad.addresses import Place, below, exists, files_in, is_folder, read_bytes, write_bytes
from flowgrad.errors import FlowgradError, UsageError, reason

SHARDS, SMALLEST, LARGEST = 256, 16, 256  # how many there are of few photos, and photos that one has
PATIENCE = 10.0  # seconds in which a cluster must answer
PER_GPU = 4  # workers that share a GPU, so that it need not wait for a worker that looks for faces
_MISSING = "a cluster needs Ray, which is not installed. Run: pip install 'flowgrad[ray]'"
_PART = ".jsonl"
_QUIET = {  # what Ray is told unless the user says otherwise: send no statistics, and leave the variables of GPUs alone
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, eq=False)
class Job:
    """What a worker must know to edit photos: the model by name, and the control (M, 1, *D) that begins at `starts`.

    direction, options: as the manifest has them; manifest: its folder; retry: photos that failed are tried again; home:
    the folder that paths are relative to.
    """

    model: str
    device: str
    precision: str
    values: np.ndarray
    starts: tuple[int, ...]
    steps: int
    wanted: Wanted
    direction: str
    options: str
    manifest: Place
    retry: bool = False
    home: str = field(default_factory=os.getcwd)


@dataclass(frozen=True)
class Shard:
    """Some photos, where their results go, and what is known of them."""

    sources: tuple[Source, ...]
    outputs: tuple[Place, ...]
    known: dict[str, Known]

    def part(self, job: Job) -> Place:
        """Where its part of the manifest is."""
        digest = sha256("\n".join([job.options, *map(str, self.sources)]).encode("utf-8", "surrogateescape"))
        return below(job.manifest, digest.hexdigest()[:32] + _PART)


class Worker:
    """One process of the cluster, with the model."""

    def __init__(self, job: Job, threads: int) -> None:
        import torch

        from flowgrad.models import load_model
        from flowgrad.ode import Control, Grid

        torch.set_num_threads(threads)
        with suppress(OSError):  # on a machine without that folder, whole paths and addresses can be used
            os.chdir(job.home)
        self._job, self._model = job, load_model(job.model, job.device, job.precision)
        values = torch.from_numpy(job.values.copy()).to(self._model.device)
        self._control = Control(values, Grid(job.starts, job.steps))

    def __call__(self, rows: Mapping[str, np.ndarray]) -> dict[str, list[bytes]]:
        """Edit the shards of some rows; what became of their photos, or the error that ends the whole run."""
        ended: list[Outcome | FlowgradError] = []
        for row in rows["shard"]:
            try:
                ended += self.edit(pickle.loads(row))
            except FlowgradError as error:
                ended.append(error)
        return {"ended": list(map(pickle.dumps, ended))}

    def edit(self, shard: Shard) -> list[Outcome]:
        """Edit the photos of a shard that are not done, and write its part of the manifest."""
        from directions.apply.files import apply_to_files

        part, job = shard.part(self._job), self._job
        before = _records(part) if exists(part) else []
        known = shard.known | _known(before, self._job)
        edited = apply_to_files(self._model, self._control, shard.sources, shard.outputs, job.wanted, known=known)
        outcomes = list(edited)
        if made := [to_record(o, job.direction, job.options) for o in outcomes if not o.skipped]:
            again = {record["input"] for record in made}
            write_bytes(part, to_lines([*(r for r in before if r["input"] not in again), *made]))
        return outcomes


def edit_on_cluster(
    job: Job,
    sources: Sequence[Source],
    outputs: Iterable[Place],
    address: str | None = None,
    workers: int | None = None,
) -> Iterator[Outcome]:
    """Edit photos on a cluster, or without an address on this machine, and write a manifest in parts.

    Outcomes come as shards are done, in any order. Raises UsageError without the extra `ray`, FlowgradError if no
    cluster answers, and what keeps all other photos from being written too.
    """
    known = read_known(job)
    with connected(address, workers) as ray:
        count = workers or usual_workers(ray.cluster_resources())
        threads, gpus = shares(ray.cluster_resources(), count)
        rows = [{"shard": pickle.dumps(shard)} for shard in find_shards(sources, outputs, known)]
        shards = ray.data.from_items(rows, override_num_blocks=len(rows))
        strategy = ray.data.ActorPoolStrategy(size=min(count, len(rows)))
        edited = shards.map_batches(
            Worker,
            fn_constructor_args=(job, threads),
            batch_size=1,
            compute=strategy,
            num_cpus=threads,
            num_gpus=gpus,
        )
        try:
            yield from _outcomes(edited.iter_rows())
        except ray.exceptions.RayError as error:
            raise FlowgradError(f"the cluster gave up ({reason(error)}). The same command then goes on.") from error


def _outcomes(rows: Iterable[Mapping[str, bytes]]) -> Iterator[Outcome]:
    for row in rows:
        ended = pickle.loads(row["ended"])
        if isinstance(ended, FlowgradError):
            raise ended
        yield ended


def find_shards(sources: Sequence[Source], outputs: Iterable[Place], known: Mapping[str, Known]) -> Iterator[Shard]:
    """The photos in shards, which follow from the list of photos alone.

    A shard is what is done again if its worker dies, and makes one part of the manifest.
    """
    size = min(max(len(sources) // SHARDS, SMALLEST), LARGEST)
    pairs = iter(zip(sources, outputs, strict=True))
    while part := list(islice(pairs, size)):
        own, places = zip(*part, strict=True)
        yield Shard(own, places, {str(source): known[str(source)] for source in own if str(source) in known})


def read_known(job: Job) -> dict[str, Known]:
    """What the parts of a manifest say of photos with a job's options. A photo that failed in one part may be done in
    another, if the list of photos was another; then it is done.
    """
    if not exists(job.manifest):
        return {}
    if not is_folder(job.manifest):
        raise UsageError(f"{job.manifest} is a file, of a run on one machine; name a folder with --manifest.")
    parts = (_records(place) for place in files_in(job.manifest) if str(place).endswith(_PART))
    return _known((record for part in parts for record in part), job)


def _known(records: Iterable[Record], job: Job) -> dict[str, Known]:
    known: dict[str, Known] = {}
    for record in records:
        said = to_known(record)
        if record["options"] != job.options or (job.retry and said.error):
            continue
        if not said.error or record["input"] not in known:
            known[record["input"]] = said
    return known


def _records(part: Place) -> list[Record]:
    return list(read_lines(read_bytes(part).splitlines(keepends=True), part))


@contextmanager
def connected(address: str | None, workers: int | None = None) -> Iterator[Any]:
    """Ray, connected to a cluster, or to one on this machine that ends with the block.

    Raises UsageError without the extra `ray`, FlowgradError if no cluster answers.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(_MISSING) from error
    for name in ("ray", "ray.data"):  # its reports of progress are no answer to a command
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None  # Ray counts those of others too
    cores = None if address else workers or own
    dashboard = None if address else False  # a cluster of one's own needs none
    try:
        _knock(address or "")
        ray.init(
            address,
            num_cpus=cores,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            include_dashboard=dashboard,
        )
    except (OSError, RuntimeError, ValueError) as error:
        remedy = "Start one with the command of Ray (`ray start`), and name its address as HOST:6379."
        raise FlowgradError(
            f"no Ray cluster answers at {address or 'this machine'} ({reason(error)}). {remedy}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT, for which Ray itself would wait many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()


def usual_workers(resources: Mapping[str, float]) -> int:
    """How many workers a cluster takes: four to each GPU if there are GPUs, else one to each core."""
    cores, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    return max(1, min(cores, PER_GPU * gpus) if gpus else cores)


def shares(resources: Mapping[str, float], workers: int) -> tuple[int, float]:
    """The cores that each worker has, and its GPUs: hundredths of one, or a whole number of them."""
    cores, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    part = gpus / workers
    return max(1, cores // workers), float(int(part)) if part >= 1 else int(100 * part) / 100
