"""`sampler train` and `debias` on several processes: the sampler of one, also after one of them was killed."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from directions.file.sampler import SamplerFile, read_sampler
from tests.helpers.command_line import passed
from tests.helpers.processes import ended, start
from tests.helpers.shares import natural_shares
from tests.helpers.tiny import Tiny

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.slow]
PATIENCE = 300  # seconds, on a machine with much else to do
NETWORK = ("--class", "happy", "--method", "network", "--gradients", 80)


def words(tiny: Tiny, place: str, command: str, *more: object) -> tuple[object, ...]:
    asked = ("--name", "some", "--model", tiny.model, "--pool", 72, "--intervals", 2, *more)
    return ("sampler", command, *asked, "--bank", f"{place}/bank", "--output", f"{place}/run")


def made(place: str) -> SamplerFile:
    return read_sampler(Path(place) / "bank/tiny/some.safetensors")


def same(one: SamplerFile, other: SamplerFile) -> bool:
    equal = all((other.tensors[name] == tensor).all() for name, tensor in one.tensors.items())
    return bool(equal) and one.info == other.info and one.tensors.keys() == other.tensors.keys()


def kept(pool: Path) -> list[Path]:
    return list(pool.glob("[!.]*"))


def has_pool(pool: Path) -> bool:
    """Whether some, not all, of a pool's five batches are there."""
    return len(kept(pool)) > 1


def has_gradients(pool: Path) -> bool:
    """Whether gradients are there, which have a dimension more than images."""
    return any(load_file(file)["made"].ndim > 4 for file in kept(pool))


def killed(tiny: Tiny, count: int, victim: int, when: Callable[[Path], bool]) -> None:
    """Start so many processes, and kill one at a moment of which the pool's folder tells; the others must end."""
    processes = start(count, Path.cwd(), "cli", *words(tiny, "cut", "train", *NETWORK))
    deadline = time.monotonic() + PATIENCE
    while not when(Path("cut/run/pool")) and time.monotonic() < deadline:
        time.sleep(0.002)
    processes[victim].kill()
    for rank, (code, printed) in enumerate(ended(processes, PATIENCE)):
        if rank != victim:
            assert code == 1 and "another process of this run ended" in printed, printed
            assert "Traceback" not in printed
    assert when(Path("cut/run/pool")) and not list(Path("cut/bank/tiny").glob("*"))


def test_killed_processes_end_the_others_and_any_number_goes_on(tiny: Tiny) -> None:
    """With the same bits: a process of two while the pool is drawn, then the leading one of three at the gradients."""
    passed(*words(tiny, "whole", "train", *NETWORK))
    killed(tiny, 2, 1, has_pool)
    before = {file: file.stat().st_mtime_ns for file in kept(Path("cut/run/pool"))}
    killed(tiny, 3, 0, has_gradients)
    assert before == {file: file.stat().st_mtime_ns for file in before}, "what is kept is not made again"
    passed(*words(tiny, "cut", "train", *NETWORK))
    assert same(made("cut"), made("whole"))
    assert {path.name for path in Path("cut/run").iterdir()} == {"before-after.png", "shares.png"}


def test_torchrun_sets_shares_with_more_processes_than_batches(tiny: Tiny) -> None:
    target = ",".join(map(str, natural_shares(tiny, "age", 20)))
    even = ("--attribute", "age", "--target", target, "--pool", 20)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", 3, "-m", "cli")
    ((code, printed),) = ended(start(1, Path.cwd(), *torchrun, *words(tiny, "three", "debias", *even)), PATIENCE)
    assert code == 0 and printed.count("next: ") == 1, printed
    passed(*words(tiny, "one", "debias", *even))
    assert same(made("three"), made("one"))
