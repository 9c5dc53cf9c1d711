"""Thousands of photos edited by processes that are killed: each is recorded once, with the bytes of an unbroken run."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import psutil
import pytest

from directions.bank.bank import Bank
from flowgrad.models import load_model
from tests.helpers.page import fill
from tests.helpers.paths import ROOT
from tests.helpers.tiny import Tiny, make_photos

pytestmark = pytest.mark.slow
SEED, KILLS = 0, 5
MANY = int(os.environ.get("CAMPAIGN_PHOTOS", "2000"))  # the campaign's own number is 20,000
ON_RAY = 300
DISTINCT = 200  # of them; the others are these under other names
PATIENCE = 3600  # seconds for one command
GROWTH = 50 << 20  # bytes that the resident memory may grow by after the first quarter of the photos


@dataclass(frozen=True)
class Place:
    """What a command is given, and the folder that it runs in."""

    photos: Path
    model: Path
    bank: Path
    folder: Path

    def begin(self, *more: str) -> "subprocess.Popen[bytes]":
        arguments = ("old", self.photos, "--model", self.model, "--bank", self.bank, "--output", "edited", *more)
        command = [sys.executable, "-m", "cli", "apply-direction", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def finish(self, *more: str) -> None:
        assert self.begin(*more).wait(PATIENCE) == 0, (self.folder / "log.txt").read_text()[-3000:]

    def records(self) -> list[dict]:
        """The lines of the manifest, of whatever form."""
        manifest = self.folder / "manifest.jsonl"
        parts = [manifest] if manifest.exists() else sorted((self.folder / "edited" / "manifest").glob("*.jsonl"))
        return [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]

    def outputs(self) -> dict[str, str]:
        files = (self.folder / "edited").rglob("*.png")
        return {str(path.relative_to(self.folder)): sha256(path.read_bytes()).hexdigest() for path in files}

    def leftovers(self) -> list[Path]:
        return [path for path in (self.folder / "edited").rglob(".*") if path.is_file()]


def places(tiny: Tiny, folder: Path, count: int) -> Callable[[str], Place]:
    """A bank, and photos of which many are the same under other names."""
    bank, photos = Bank(folder / "bank"), make_photos(folder / "photos", DISTINCT, size=20)
    fill(bank, load_model(str(tiny.model), "cpu", "fp32"))
    files = sorted(photos.iterdir())
    for i in range(DISTINCT, count):
        os.link(files[i % DISTINCT], photos / f"again-{i:06d}.png")
    return lambda name: Place(photos, tiny.model, bank.folder, folder / name)


def equal(cut: Place, whole: Place, count: int) -> None:
    """Every photo is there once, with the same results, and nothing else is."""
    times = Counter(record["input"] for record in cut.records())
    assert len(times) == count and set(times.values()) == {1}
    keys = ("input", "sha256", "output", "strength", "error")
    told = [sorted(tuple(map(str, map(record.get, keys))) for record in place.records()) for place in (cut, whole)]
    assert told[0] == told[1]
    assert cut.outputs() == whole.outputs() and len(whole.outputs()) == count
    assert not cut.leftovers() and not whole.leftovers()
    log = (cut.folder / "log.txt").read_text()
    assert "Traceback" not in log and "This is a bug" not in log


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_one_machine(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, more, draw = places(tiny, tmp_path, MANY), ("--manifest", "manifest.jsonl"), random.Random(SEED)
    whole, cut = place("whole"), place("cut")
    process, seen = whole.begin(*more), []  # time, photos done, resident bytes
    while process.poll() is None:
        try:
            memory = psutil.Process(process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            break
        seen.append((time.monotonic(), lines(whole.folder / "manifest.jsonl"), memory))
        time.sleep(0.5)
    assert process.wait(PATIENCE) == 0, (whole.folder / "log.txt").read_text()[-3000:]
    steady = [sample for sample in seen if sample[1] >= MANY / 4]
    (start, first, early), (end, last, _), most = steady[0], steady[-1], max(memory for _, _, memory in steady)
    killed = 0
    for done in sorted(draw.randrange(MANY) for _ in range(KILLS)):
        process = cut.begin(*more)
        while process.poll() is None and lines(cut.folder / "manifest.jsonl") < done:
            time.sleep(0.02)
        killed += process.poll() is None
        process.kill()
        process.wait()
    cut.finish(*more)
    equal(cut, whole, MANY)
    with capsys.disabled():
        memory = f"{early >> 20} MiB after a quarter, {most >> 20} MiB at most from there on"
        rate = (last - first) / (end - start)
        sys.stdout.write(f"\n{MANY} photos, {rate:.0f} a second; resident {memory}; {killed} kills\n")
    assert most - early < GROWTH


def test_ray(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    place, one, two = places(tiny, tmp_path, ON_RAY), *(("--engine", "ray", "--workers", count) for count in "12")
    whole, cut = place("whole"), place("cut")
    whole.finish(*one)
    process, killed = cut.begin(*two), 0
    while process.poll() is None and not killed:
        time.sleep(0.1)
        if len(cut.records()) > ON_RAY / 3:
            children = psutil.Process(process.pid).children(recursive=True)
            workers = [child for child in children if "MapWorker" in "".join(child.cmdline())]
            workers[0].kill()
            killed += 1
    before = len(cut.records())
    assert process.wait(PATIENCE) == 0 and killed, (cut.folder / "log.txt").read_text()[-3000:]
    equal(cut, whole, ON_RAY)
    process = (broken := place("broken")).begin(*two)
    while process.poll() is None and len(broken.records()) < ON_RAY / 2:
        time.sleep(0.1)
    process.kill()  # the command itself, and with it its cluster
    process.wait()
    time.sleep(5)
    after = len(broken.records())
    broken.finish(*one)
    equal(broken, whole, ON_RAY)
    with capsys.disabled():
        said = f"a worker killed after {before}, the command after {after}"
        sys.stdout.write(f"\n{ON_RAY} photos on Ray with two workers: {said}\n")
