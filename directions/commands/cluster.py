"""The command that looks at a Ray cluster before much is asked of it."""

from typing import Annotated

import typer

from directions.commands.engine import Address, Workers
from directions.commands.options import Json, ModelName
from directions.commands.terminal import answer
from flowgrad.resources import DEFAULT_MODEL

app = typer.Typer()


@app.command("cluster-check")
def cluster_check(
    address: Address = None,
    photos: Annotated[int, typer.Option(help="How many photos there are to edit.", min=1)] = 1_000_000,
    model: ModelName = DEFAULT_MODEL,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Say what a Ray cluster has, try the model on each of its nodes, and reckon how long many photos would take.

    flowgrad cluster-check --address 10.0.0.1:6379 --photos 2000000

    Without --address it looks at this machine. The hours are those of the network alone, for photos of one face.
    """
    from directions.batch.cluster import check_cluster
    from directions.commands.tables import plain_table

    check = check_cluster(address, model, photos, workers)
    rows = [
        [
            node.address,
            str(node.cores),
            str(node.gpus),
            f"{node.memory / 2**30:.0f} GiB",
            node.error or f"flowgrad {node.version}: {node.seconds:.3f} s for a face",
        ]
        for node in check.nodes
    ]
    gpu = f" and {check.gpus_each:g} GPU" if check.gpus_each else ""
    cores = f"{check.cores_each} core{'' if check.cores_each == 1 else 's'}"
    answer(
        as_json,
        check,
        plain_table(["node", "cores", "GPUs", "memory", "model"], rows),
        f"{check.workers} workers with {cores}{gpu} each",
        "no node can use the model" if check.hours is None else f"{check.photos:,} photos: {check.hours:.1f} hours",
    )
    if check.hours is None:
        raise typer.Exit(1)
