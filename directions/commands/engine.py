"""Options of commands that edit many photos: where it is done, and what is written down of it."""

from enum import Enum
from typing import Annotated

import typer

from flowgrad.errors import UsageError

PANEL = "Many photos"


class Engine(str, Enum):
    """What edits photos: this process and some beside it, or the workers of a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


ManifestPlace = Annotated[
    str | None,
    typer.Option(
        "--manifest",
        help="Write down what became of each photo, and go on where the last run ended: a file of JSON lines; with "
        "--engine ray a folder of them, which is there in any case.",
        rich_help_panel=PANEL,
    ),
]
Retry = Annotated[
    bool, typer.Option("--retry", help="Try photos again that failed by the manifest.", rich_help_panel=PANEL)
]
EngineName = Annotated[
    Engine, typer.Option("--engine", help="ray edits on a Ray cluster, or in processes here.", rich_help_panel=PANEL)
]
Address = Annotated[
    str | None, typer.Option(help="HOST:PORT of a Ray cluster; none starts one here.", rich_help_panel=PANEL)
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that look for faces beside this one (default: half the cores), or that edit, with --engine ray "
        "(default: all cores, or four to each GPU).",
        min=1,
        rich_help_panel=PANEL,
    ),
]


def check_engine(engine: Engine, manifest: str | None, retry: bool, address: str | None, grid: bool) -> None:
    """Raise UsageError for options that say nothing without another one, or that cannot go together."""
    recorded = manifest is not None or engine is Engine.RAY
    if retry and not recorded:
        raise UsageError("--retry tries photos again that failed by a manifest: give --manifest too, or leave it out")
    if address and engine is not Engine.RAY:
        raise UsageError(f"--address {address} is a Ray cluster's: give --engine ray too, or leave it out")
    if grid and recorded:
        raise UsageError("--grid draws all photos of one run, and a manifest spans several: give one of the two")
    if engine is Engine.LOCAL and manifest and "://" in manifest:
        raise UsageError(f"--manifest must be a file of this machine, which is added to line by line; got {manifest}")
