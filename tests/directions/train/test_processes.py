"""train-direction on several processes: the direction of one, and what happens when one of them is killed."""

import time
from pathlib import Path

import pytest

from directions.file.direction import Direction, read_direction
from tests.helpers.command_line import passed
from tests.helpers.processes import ended, start
from tests.helpers.tiny import Tiny, make_photos

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.slow]
ITERATIONS = 12  # enough that a process is killed before the end
RECIPE = ("--iterations", ITERATIONS, "--intervals", 3, "--augmentations", 1, "--eta", 1, "--set", "group=2")
PATIENCE = 300  # seconds, on a machine with much else to do


def words(tiny: Tiny, photos: Path, place: str) -> tuple[object, ...]:
    asked = ("--text", "a smiling face", "--name", "smiling", "--model", tiny.model, "--calibration-photos", 5)
    return ("train-direction", photos, *asked, *RECIPE, "--bank", f"{place}/bank", "--output", f"{place}/run")


def trained(place: str) -> Direction:
    return read_direction(Path(place) / "bank/tiny/smiling.safetensors")


def same(one: Direction, other: Direction) -> bool:
    return one.info == other.info and bool((one.u == other.u).all())


def test_a_killed_process_ends_the_others_and_any_number_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    """With the same bits: on three processes after one of two was killed, and on one after the leading one was."""
    photos = make_photos(tmp_path / "photos", 7)
    passed(*words(tiny, photos, "whole"))
    for victim, others in ((1, 3), (0, 1)):
        place = f"victim-{victim}"
        processes = start(2, tmp_path, "cli", *words(tiny, photos, place))
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / place / "run/checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        processes[victim].kill()
        for rank, (code, printed) in enumerate(ended(processes, PATIENCE)):
            if rank != victim:
                assert code == 1 and "another process of this run ended" in printed, printed
                assert "Traceback" not in printed
        assert (tmp_path / place / "run/checkpoint.pt").exists() and not list(tmp_path.glob(f"{place}/bank/tiny/*"))
        if others == 1:
            printed = passed(*words(tiny, photos, place))
        else:
            again = ended(start(others, tmp_path, "cli", *words(tiny, photos, place)), PATIENCE)
            assert [code for code, _ in again] == [0] * others, again
            assert [text for _, text in again[1:]] == [""] * (others - 1), "the leading process alone prints"
            printed = again[0][1]
        assert "going on after" in printed
        assert same(trained(place), trained("whole"))
        left = {path.name for path in (tmp_path / place / "run").iterdir()}
        assert left == {"before-after.png", "curves.png", "summary.json"}


def test_torchrun_trains_on_samples_and_more_processes_than_groups(tiny: Tiny, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 3)
    asked = ("train-direction", "--samples", 3, "--text", "a smiling face", "--name", "smiling", "--model", tiny.model)
    asked = (*asked, *RECIPE, "--iterations", 3, "--calibrate-on", photos)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", 3, "-m", "cli")
    (several,) = ended(start(1, tmp_path, *torchrun, *asked, "--bank", "three/bank", "--output", "three/run"), PATIENCE)
    assert several[0] == 0, several[1]
    passed(*asked, "--bank", "one/bank", "--output", "one/run")
    assert same(trained("three"), trained("one"))
