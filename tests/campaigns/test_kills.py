"""Commands killed at random moments: the same command finishes with the bits of an unbroken run, and nothing is left.

Each is killed KILLS times by SIGKILL, at moments that are drawn from the time of an unbroken run.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors import safe_open

from directions.bank.bank import Bank
from flowgrad.files import TRASH
from flowgrad.models import load_model
from tests.helpers.page import fill
from tests.helpers.paths import ROOT
from tests.helpers.processes import most_memory
from tests.helpers.tiny import Tiny, make_photos

pytestmark = pytest.mark.slow
SEED, KILLS = 0, 10
MEMORY = 3 << 30  # bytes that a command may take
PATIENCE = 600  # seconds for one command
TIMES = {"date", "modelspec.date"}  # what a header says of when it was made
QUICK = ("--iterations", "12", "--intervals", "3", "--augmentations", "1", "--eta", "1", "--calibration-photos", "2")
FLOW = """
network: {size: 16, channels: [8, 16], attention: [false, true], head_dim: 8, groups: 4}
training: {batch: 8, warmup: 2, held_out: 0.25, precision: fp32}
"""
AUTOENCODER = """
network: {size: 16, channels: [8, 8], latent_channels: 2, groups: 4}
training: {batch: 8, crop: 8, warmup: 2, held_out: 0.25, precision: fp32}
"""
Bits = dict[str, object]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def begun(folder: Path, arguments: list[str]) -> "subprocess.Popen[bytes]":
    """A command of its own, begun in a folder; trainings of models save after every step."""
    module = "tests.helpers.often" if arguments[0] in ("train-flow", "train-autoencoder") else "cli"
    command = [sys.executable, "-m", module, *arguments]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log)


def finish(folder: Path, arguments: list[str]) -> tuple[float, int]:
    """Run a command that must succeed; its seconds, and the most bytes that it had."""
    start, process = time.monotonic(), begun(folder, arguments)
    peak = most_memory(process, PATIENCE)
    process.kill()
    assert process.wait() == 0, (folder / "log.txt").read_text()[-3000:]
    return time.monotonic() - start, peak


def kill(folder: Path, arguments: list[str], after: float) -> bool:
    """Kill a command some seconds after its start; whether it was still running. No process of its own may stay."""
    process = begun(folder, arguments)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, alive
        return True
    assert process.returncode == 0, (folder / "log.txt").read_text()[-3000:]
    return False


def withstood(
    folder: Path,
    arguments: list[str],
    bits: Callable[[Path], Bits],
    capsys: pytest.CaptureFixture[str],
    done: Callable[[Path], bool] = lambda _: False,
) -> None:
    """The campaign for one command: an unbroken run, others that are killed again and again, and their bits.

    done: whether a run in a folder has ended, and would be refused a second time.
    """
    whole, draw, killed, rounds = folder / "whole", random.Random(SEED), 0, 0
    whole.mkdir()
    seconds, peak = finish(whole, arguments)
    while killed < KILLS:  # a run that ended in spite of it is one round, and the next begins in a folder of its own
        rounds += 1
        cut = folder / f"cut-{rounds}"
        cut.mkdir()
        while killed < KILLS and kill(cut, arguments, draw.uniform(0.2, 1.0) * seconds):
            killed += 1
            if done(cut):
                break
        if not done(cut):
            peak = max(peak, finish(cut, arguments)[1])
        expected, found = bits(whole), bits(cut)
        assert expected and found == expected
        assert names(cut) == names(whole)
        log = (cut / "log.txt").read_text()
        assert "Traceback" not in log and "This is a bug" not in log
    with capsys.disabled():
        said = f"{killed} kills in {rounds} runs, {seconds:.1f} s unbroken, {peak >> 20} MiB at the peak"
        sys.stdout.write(f"\n{arguments[0]}: {said}\n")
    assert peak < MEMORY


def names(folder: Path) -> list[str]:
    """All files that a run left; the trash holds what was put into the bank twice."""
    files = [path for path in folder.rglob("*") if path.is_file() and TRASH not in path.parts]
    return sorted(str(path.relative_to(folder)) for path in files)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors(path: Path) -> Bits:
    """A safetensors file's tensors, and what its header says but for the time."""
    with safe_open(path, "numpy") as file:
        header = {key: value for key, value in (file.metadata() or {}).items() if key not in TIMES}
        return {**{name: file.get_tensor(name).tobytes() for name in file.keys()}, **header}  # noqa: SIM118


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two pictures of a square on grey."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(32):
        pixels = np.full((18, 18, 3), 60 + 5 * i, np.uint8)
        pixels[4:12, 4:12] = (250, 20, 20)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (folder / "flow.yaml").write_text(FLOW)
    (folder / "autoencoder.yaml").write_text(AUTOENCODER)
    return folder


def test_train_direction(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["--text", "a smiling face", "--source", "a serious face", "--name", "smiling"]
    places = ["--model", str(tiny.model), "--bank", "bank", "--output", "run"]

    def bits(folder: Path) -> Bits:
        summary = json.loads((folder / "run" / "summary.json").read_text())
        kept = {key: summary[key] for key in ("name", "grid", "history", "recipe")}
        pictures = {name: digest(folder / "run" / name) for name in ("before-after.png",)}
        bank = folder / "bank" / "tiny"
        return {**tensors(bank / "smiling.safetensors"), **kept, **pictures, "preview": digest(bank / "smiling.png")}

    def done(folder: Path) -> bool:
        return (folder / "run" / "summary.json").exists() and not (folder / "run" / "checkpoint.pt").exists()

    withstood(tmp_path, ["train-direction", str(tiny.photos), *texts, *places, *QUICK], bits, capsys, done)


@pytest.mark.parametrize("option", ["--overwrite", "--skip-existing"])
def test_apply_direction_to_a_folder(
    tiny: Tiny, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "cli", "apply-direction", "--help"]
    known = subprocess.run(command, cwd=ROOT, env=environment() | {"COLUMNS": "200"}, capture_output=True, check=True)
    if option not in known.stdout.decode():
        pytest.skip(f"apply-direction has no {option} yet")
    photos, bank = make_photos(tmp_path / "photos", 60, size=300), Bank(tmp_path / "bank")
    fill(bank, load_model(str(tiny.model), "cpu", "fp32"))
    before = {path.name: digest(path) for path in photos.iterdir()}
    model = tiny.model
    if option == "--skip-existing":  # what is left forms other batches, on whose size a network's last bits depend
        model = shutil.copytree(tiny.model, tmp_path / "one-by-one")
        with (model / "flowgrad.yaml").open("a") as config:
            config.write("batch: 1\n")
    places = ["--model", str(model), "--bank", str(bank.folder), "--output", "edited"]

    def bits(folder: Path) -> Bits:
        return {path.name: digest(path) for path in (folder / "edited").iterdir()}

    withstood(tmp_path, ["apply-direction", "old", str(photos), *places, option], bits, capsys)
    assert {path.name: digest(path) for path in photos.iterdir()} == before


@pytest.mark.parametrize("kind", ["flow", "autoencoder"])
def test_trainings_of_models(pictures: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--recipe", str(pictures / f"{kind}.yaml"), "--output", "out", "--device", "cpu", "--licence", "CC0"]

    def bits(folder: Path) -> Bits:
        (weights,) = (folder / "out").glob("*.safetensors")
        lines = [json.loads(line) for line in (folder / "out" / "training" / "log.jsonl").read_text().splitlines()]
        losses = [(line["step"], line["loss"], line["held_out"]) for line in lines]
        return {**tensors(weights), "losses": losses}

    arguments = [f"train-{kind}", str(pictures), "--steps", "40", "--evaluate-every", "10", *places]
    withstood(tmp_path, arguments, bits, capsys)
