"""Photos a second on Ray and without it, on as many cores: the figures of directions/apply/SCALE.md.

python -m tests.campaigns.throughput: it prints a table. It needs ../shared/faces, the extra `ray`, and a machine on
which nothing else runs.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from time import time
from typing import Annotated
from zipfile import ZipFile

import typer
from PIL import Image

from directions.batch.ray_engine import SMALLEST
from directions.photo.faces import prepare_faces
from flowgrad.markdown import table
from flowgrad.model_config import load_config
from flowgrad.resources import DEFAULT_MODEL
from tests.helpers.paths import ROOT, SHARED

ARCHIVE = SHARED / "faces" / "utkface_aligned.zip"


@dataclass(frozen=True)
class Way:
    """A way to edit photos: by the workers of Ray, or by one process; each on so many cores."""

    ray: bool
    cores: int

    @property
    def group(self) -> int:
        """Photos that come out together at most: those that go through the network together, of each worker."""
        return max(SMALLEST, load_config(DEFAULT_MODEL).batch) * (self.cores if self.ray else 1)

    def run(self, photos: Path, folder: Path) -> tuple[float, float]:
        """Photos a second between the first ones and the last, and seconds from the start to these first ones."""
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: self.cores]))
        engine = ("--engine", "ray", "--workers", self.cores) if self.ray else ("--manifest", folder / "done.jsonl")
        arguments = ("smiling", photos, "--output", folder / "edited", *engine)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FLOWGRAD_BANK": str(folder / "bank")}
        environment.pop("OMP_NUM_THREADS", None)  # as many threads as a user gets
        begin = time()
        command = ["taskset", "-c", cores, sys.executable, "-m", "cli", "apply-direction", *map(str, arguments)]
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
        times = sorted(path.stat().st_mtime for path in (folder / "edited").glob("*.jpg"))
        first = times[self.group - 1]
        return (len(times) - self.group) / (times[-1] - first), first - begin


def extract(archive: Path, folder: Path, count: int) -> None:
    """The first photos of a ZIP archive in which one face is found, in a folder of their own."""
    size = load_config(DEFAULT_MODEL).size
    with ZipFile(archive) as file:
        names = (name for name in sorted(file.namelist()) if name.endswith(".jpg"))
        alone = (name for name in names if len(prepare_faces(Image.open(file.open(name)), size).crops) == 1)
        for name in islice(alone, count):
            file.extract(name, folder)


def measure(
    photos: Annotated[int, typer.Option(help="Photos for each core.", min=32)] = 96,
    runs: Annotated[int, typer.Option(help="Runs of each way, in turn.")] = 3,
    archive: Annotated[Path, typer.Option(help="A ZIP archive of such photos, each a face.")] = ARCHIVE,
    most: Annotated[int, typer.Option(help="Measure on 1, 2, 4 ... cores, up to so many.")] = 2,
) -> None:
    """Measure each way in turn, and print the medians with the least and the most.

    Photos are 200 x 200, each with one face.
    """
    counts = [cores for cores in (2**k for k in range(10)) if cores <= min(most, len(os.sched_getaffinity(0)))]
    ways = [Way(ray, cores) for cores in counts for ray in (False, True)]
    found: dict[Way, list[tuple[float, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        for cores in counts:
            extract(archive, Path(scratch) / f"{cores}", cores * photos)
        for number in range(runs):
            for way in ways:
                folder = Path(scratch) / f"run-{number}-{way.ray}-{way.cores}"
                folder.mkdir()
                found[way].append(way.run(Path(scratch) / f"{way.cores}", folder))
                sys.stderr.write(f"{way}: {found[way][-1][0]:.3f} photos a second\n")
    rows = []
    for way in ways:
        rates, starts = zip(*found[way], strict=True)
        plain = median(rate for rate, _ in found[Way(False, way.cores)])
        spread = f"{median(rates):.3f} ({min(rates):.3f} to {max(rates):.3f})"
        engine = f"Ray, {way.cores} worker{'s' * (way.cores > 1)}" if way.ray else "plain"
        rows.append((f"{way.cores}", engine, spread, f"{median(rates) / plain:.0%}", f"{median(starts):.0f}"))
    head = ("cores", "engine", "photos a second", "of the plain pace", "seconds to the first photos")
    sys.stdout.write(table(head, rows, numbers=True) + "\n")


if __name__ == "__main__":
    typer.run(measure)
