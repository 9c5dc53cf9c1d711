"""`sampler train` and `debias` on several processes: the sampler of one, also after one of them was killed."""

import time
from pathlib import Path

import pytest

from directions.file.sampler import SamplerFile, read_sampler
from tests.helpers.command_line import passed
from tests.helpers.processes import ended, start
from tests.helpers.tiny import Tiny

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.slow]
PATIENCE = 300  # seconds, on a machine with much else to do
UPDATES = 60  # enough that a process is killed before the end
NETWORK = ("--class", "happy", "--method", "network", "--dimensions", 4, "--updates", UPDATES)


def words(tiny: Tiny, place: str, command: str, *more: object) -> tuple[object, ...]:
    asked = ("--name", "some", "--model", tiny.model, "--pool", 72, "--intervals", 2, *more)
    return ("sampler", command, *asked, "--bank", f"{place}/bank", "--output", f"{place}/run")


def made(place: Path) -> SamplerFile:
    return read_sampler(place / "bank/tiny/some.safetensors")


def same(one: SamplerFile, other: SamplerFile) -> bool:
    equal = all((other.tensors[name] == tensor).all() for name, tensor in one.tensors.items())
    return bool(equal) and one.info == other.info and one.tensors.keys() == other.tensors.keys()


@pytest.mark.parametrize(("victim", "files", "others"), [(1, 2, 3), (0, 7, 1)])
def test_a_killed_process_ends_the_others_and_any_number_goes_on(
    tiny: Tiny, tmp_path: Path, victim: int, files: int, others: int
) -> None:
    """With the same bits: of a pool of five batches that two processes had begun, and of a network being trained."""
    passed(*words(tiny, "whole", "train", *NETWORK))
    pool, asked = tmp_path / "cut/run/pool", words(tiny, "cut", "train", *NETWORK)
    processes = start(2, tmp_path, "cli", *asked)
    deadline = time.monotonic() + PATIENCE
    while len(list(pool.glob("[!.]*"))) < files and time.monotonic() < deadline:
        time.sleep(0.002)
    processes[victim].kill()
    ((code, printed),) = [end for rank, end in enumerate(ended(processes, PATIENCE)) if rank != victim]
    assert code == 1 and "another process of this run ended" in printed and "Traceback" not in printed, printed
    assert not list(tmp_path.glob("cut/bank/tiny/*"))
    kept = {path: path.stat().st_mtime_ns for path in pool.glob("[!.]*")}
    assert len(kept) >= files
    if others == 1:
        assert "going on after" in passed(*asked)
    else:
        again = ended(start(others, tmp_path, "cli", *asked), PATIENCE)
        assert [code for code, _ in again] == [0] * others, again
        assert [text for _, text in again[1:]] == [""] * (others - 1), "the leading process alone prints"
    assert same(made(tmp_path / "cut"), made(tmp_path / "whole"))
    assert {path.name for path in (tmp_path / "cut/run").iterdir()} == {"before-after.png", "shares.png"}


def test_torchrun_evens_out_shares_with_more_processes_than_batches(tiny: Tiny, tmp_path: Path) -> None:
    even = ("--attribute", "age", "--target", "0.3,0.4,0.3", "--pool", 20)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", 3, "-m", "cli")
    ((code, printed),) = ended(start(1, tmp_path, *torchrun, *words(tiny, "three", "debias", *even)), PATIENCE)
    assert code == 0, printed
    passed(*words(tiny, "one", "debias", *even))
    assert same(made(tmp_path / "three"), made(tmp_path / "one"))
