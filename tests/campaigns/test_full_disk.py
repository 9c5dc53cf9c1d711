"""A disk that is full: a clear error, nothing lost, and the same command goes on once there is room."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from directions.bank.bank import Bank
from directions.bank.changes import LOCK
from flowgrad.models import load_model
from tests.helpers.page import fill
from tests.helpers.paths import ROOT
from tests.helpers.tiny import Tiny, make_photos

pytestmark = pytest.mark.slow
SIZE = 4 << 20  # bytes of the disk
QUICK = ("--iterations", "2", "--intervals", "3", "--augmentations", "1", "--eta", "1", "--calibration-photos", "2")
FLOW = """
network: {size: 16, channels: [8, 16], attention: [false, true], head_dim: 8, groups: 4}
training: {batch: 8, warmup: 2, held_out: 0.25, precision: fp32}
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this process may not mount a disk: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and messages of a command."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=600, check=False)
    return ended.returncode, ended.stdout.decode() + ended.stderr.decode()


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder, and the hash of its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "ballast"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fill_up(disk: Path, left: int) -> Path:
    """Leave so many bytes free; the file that takes the others."""
    ballast, free = disk / "ballast", os.statvfs(disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - left))
    return ballast


def refused_then_done(disk: Path, left: int, *arguments: object) -> None:
    """A command on a full disk, and again once there is room."""
    before, ballast = contents(disk), fill_up(disk, left)
    code, messages = run(*arguments)
    assert code == 1 and "error:" in messages, messages
    assert "No space left" in messages or "disk is full" in messages or "disk may be full" in messages, messages
    assert "Traceback" not in messages and "This is a bug" not in messages, messages
    after = contents(disk)
    assert before.items() <= after.items()  # nothing is lost
    hidden = {Path(name).name for name in after if Path(name).name.startswith(".") and ".trash" not in name}
    assert hidden <= {LOCK}, after  # no half-written file stays
    ballast.unlink()
    code, messages = run(*arguments)
    assert code == 0, messages


@pytest.mark.parametrize("left", [0, 8 << 10, 32 << 10])
def test_train_direction(tiny: Tiny, disk: Path, left: int) -> None:
    texts = ("--text", "a smiling face", "--source", "a serious face", "--name", "smiling")
    places = ("--model", tiny.model, "--bank", disk / "bank", "--output", disk / "run")
    refused_then_done(disk, left, "train-direction", tiny.photos, *texts, *places, *QUICK)
    assert Bank(disk / "bank").get("smiling").load().info.title


@pytest.mark.parametrize("left", [0, 300 << 10])
def test_apply_direction(tiny: Tiny, disk: Path, tmp_path: Path, left: int) -> None:
    bank, photos = Bank(tmp_path / "bank"), make_photos(tmp_path / "photos", 8, size=300)
    fill(bank, load_model(str(tiny.model), "cpu", "fp32"))
    places = ("--model", tiny.model, "--bank", bank.folder, "--output", disk / "edited", "--overwrite")
    refused_then_done(disk, left, "apply-direction", "old", photos, *places)
    assert len(list((disk / "edited").iterdir())) == 8


def test_apply_direction_on_ray(tiny: Tiny, disk: Path, tmp_path: Path) -> None:
    """A worker finds the disk full in its first shard of three, when some of its results are written."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    bank, photos = Bank(tmp_path / "bank"), make_photos(tmp_path / "photos", 40, size=300)
    fill(bank, load_model(str(tiny.model), "cpu", "fp32"))
    places = ("--model", tiny.model, "--bank", bank.folder, "--output", disk / "edited")
    refused_then_done(disk, 600 << 10, "apply-direction", "old", photos, *places, "--engine", "ray", "--workers", 1)
    lines = [json.loads(line) for part in (disk / "edited/manifest").iterdir() for line in part.open()]
    assert len({line["input"] for line in lines}) == len(lines) == 40
    assert {line["output"] for line in lines} == {str(file) for file in (disk / "edited").glob("*.png")}


@pytest.mark.parametrize("left", [0, 4 << 10])
def test_bank_import(tiny: Tiny, disk: Path, tmp_path: Path, left: int) -> None:
    bank, own = Bank(tmp_path / "bank"), Bank(disk / "bank")
    for each in (bank, own):
        fill(each, load_model(str(tiny.model), "cpu", "fp32"))
    file = bank.export("smiling", tmp_path / "wide.safetensors")
    refused_then_done(disk, left, "bank", "import", file, "--bank", own.folder)
    assert {entry.name for entry in own.list()} == {"smiling", "old", "evil", "wide"}
    refused_then_done(disk, left, "bank", "import", file, "--bank", own.folder, "--overwrite")


@pytest.mark.parametrize("left", [0, 100 << 10, 600 << 10])
def test_train_flow(disk: Path, tmp_path: Path, left: int) -> None:
    (tmp_path / "flow.yaml").write_text(FLOW)
    pictures = make_photos(tmp_path / "pictures", 32)
    places = ("--recipe", tmp_path / "flow.yaml", "--output", disk / "out", "--device", "cpu", "--licence", "CC0")
    refused_then_done(disk, left, "train-flow", pictures, "--steps", 6, *places)
    code, messages = run("sample", "--model", disk / "out", "--count", 1, "--output", tmp_path / "drawn")
    assert code == 0, messages
