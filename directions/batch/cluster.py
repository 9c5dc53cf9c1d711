"""What a Ray cluster has, whether its nodes can edit, and how long it would take over many photos."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from directions.batch.ray_engine import connected, shares, usual_workers
from flowgrad.errors import reason

ROUNDS = 3  # of which the fastest counts: the first one also warms up


@dataclass(frozen=True)
class Node:
    """One machine: its cores, GPUs and memory (bytes), and what a worker said there.

    seconds: that one face takes through the network; error: why the model cannot be used there; one of the two is None.
    """

    address: str
    cores: int
    gpus: int
    memory: int
    version: str
    seconds: float | None
    error: str | None


@dataclass(frozen=True)
class Check:
    """The nodes, the workers that there would be with the cores and GPUs of each, and hours for a number of photos.

    hours: of the network alone, for photos of one face each; finding a face is not in it. None where no node can edit.
    """

    nodes: tuple[Node, ...]
    workers: int
    cores_each: int
    gpus_each: float
    photos: int
    hours: float | None


def check_cluster(address: str | None, model: str, photos: int, workers: int | None = None) -> Check:
    """Try the model on every node of a cluster. Raises as `connected`."""
    with connected(address, workers) as ray:
        resources = ray.cluster_resources()
        count = workers or usual_workers(resources)
        cores, gpus = shares(resources, count)
        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes = tuple(_tried(ray, node, model, cores, gpus) for node in alive)
    able = [node.seconds for node in nodes if node.seconds]
    hours = photos * sum(able) / len(able) / count / 3600 if able else None
    return Check(nodes, count, cores, gpus, photos, hours)


def _tried(ray: Any, node: Mapping[str, Any], model: str, threads: int, share: float) -> Node:
    """A node, and what a worker on it says; it waits until the node has room for one."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    version, seconds, error, has = "", None, None, node["Resources"]
    try:
        task = ray.remote(timed_edit).options(
            num_cpus=threads, num_gpus=share, scheduling_strategy=there, max_retries=0
        )
        version, seconds = ray.get(task.remote(model, threads))
    except (ray.exceptions.RayError, ImportError) as failure:
        error = reason(getattr(failure, "cause", failure))
    memory = int(has.get("memory", 0))
    return Node(
        node["NodeManagerAddress"], int(has.get("CPU", 0)), int(has.get("GPU", 0)), memory, version, seconds, error
    )


def timed_edit(model: str, threads: int) -> tuple[str, float]:
    """The installed version, and the seconds that a model takes for one face: there and back on its quarter grid.

    The faces are noise, a batch of them, and the control changes nothing: what counts is the number of evaluations.
    """
    from importlib.metadata import version

    import torch

    from directions.apply.inversion import invert_images, quarter_grid
    from flowgrad.models import load_model
    from flowgrad.ode import integrate

    torch.set_num_threads(threads)
    loaded = load_model(model)
    grid, size = quarter_grid(loaded.config.steps), loaded.config.size
    images = torch.rand(loaded.batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fastest = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        (inverted,) = invert_images(loaded, images, grid=grid)
        final = integrate(loaded.velocity, inverted.x0, grid).x1
        loaded.decode(final.to(inverted.images)).cpu()
        fastest = min(fastest, (time.perf_counter() - start) / len(images))
    return version("flowgrad"), fastest
