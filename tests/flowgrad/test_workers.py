"""Processes that share images find what one finds, bit for bit."""

from pathlib import Path

import pytest
import torch

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.workers import Share, Workers, neighbours
from tests.helpers.processes import ended, start
from tests.helpers.training_process import ALONE, CASES, exchange, run


@pytest.mark.parametrize("count", [1, 2, 5, 10, 11])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("group", [1, 2, 5, 20])
def test_groups_do_not_depend_on_the_number_of_processes(count: int, size: int, group: int) -> None:
    whole = Share(count, group=group).parts
    shares = [Share(count, Workers(rank, size), group) for rank in range(size)]
    assert [part for share in shares for part in share.parts if part in whole] == [p for s in shares for p in s.parts]
    groups = -(-count // group)
    busy = [share for rank, share in enumerate(shares) if groups * rank // size < groups * (rank + 1) // size]
    assert [part for share in busy for part in share.parts] == whole
    assert len(busy) == min(size, groups)
    assert max(len(share.parts) for share in busy) - min(len(share.parts) for share in busy) <= (size < groups)
    assert all(share.parts == whole[-1:] for share in shares if share not in busy)


def test_a_batch_must_divide_among_the_processes() -> None:
    assert [Workers(rank, 2).equal_part(8) for rank in range(2)] == [slice(0, 4), slice(4, 8)]
    with pytest.raises(UsageError, match="multiple of the 3 processes"):
        Workers(0, 3).equal_part(8)


def test_a_process_that_waits_for_one_that_ended_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1024")

    for name in ("barrier", "broadcast", "all_reduce"):
        monkeypatch.setattr(f"torch.distributed.{name}", closed)
    workers = Workers(1, 2)
    for ask in (workers.wait, lambda: workers.agree(1.0), lambda: workers.mean([torch.ones(1)])):
        with pytest.raises(FlowgradError, match="another process of this run ended"):
            ask()


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert neighbours(torch.device("cpu")) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert neighbours(torch.device("cpu")) == 8
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert neighbours(torch.device("cuda", 1)) == 3


def test_three_processes_find_what_one_finds_bit_for_bit(tmp_path: Path) -> None:
    """Uneven shares, and fewer images than processes; every process knows all."""
    for code, printed in ended(start(3, tmp_path, "tests.helpers.training_process", tmp_path / "found")):
        assert code == 0, printed
    alone = {"exchange": exchange(ALONE)} | {f"{count} {way}": run(count, way) for count, way in CASES}
    for rank in range(3):
        found = torch.load(tmp_path / f"found{rank}", weights_only=True)
        assert bool(found.pop("refused")[0]) == (rank > 0), "of what the processes must agree on"
        assert int(found.pop("threads")[0]) == 0, "of those that talked to others, which would outlive Python"
        assert found.keys() == alone.keys()
        for case, values in alone.items():
            assert len(found[case]) == len(values)
            assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found[case], values, strict=True)), case
