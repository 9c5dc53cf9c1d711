"""Parts of a batch side by side: as one after another, with each its share of the threads."""

import threading
from collections.abc import Iterator

import pytest
import torch

from flowgrad.memory import Batched
from flowgrad.threads import abreast, side_by_side
from flowgrad.velocity import vjp

CPU = torch.device("cpu")


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(("parts", "most", "share"), [(2, 9, 2), (3, 9, 1), (9, 9, 1), (9, 2, 2), (9, 1, 4), (1, 9, 4)])
def test_parts_come_back_in_order_and_share_the_threads(parts: int, most: int, share: int) -> None:
    together = threading.Barrier(min(parts, most, 4))  # it would break if they were not computed at the same time

    def job(part: int) -> tuple[int, int]:
        if part < together.parties:
            together.wait(30)
        return part, torch.get_num_threads()

    assert side_by_side(job, range(parts), CPU, most) == [(part, share) for part in range(parts)]
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_jobs_run_in_the_gradient_mode_of_the_caller() -> None:
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            modes = side_by_side(lambda _: torch.is_grad_enabled(), range(3), CPU)
        assert modes == [mode is torch.enable_grad] * 3


@pytest.mark.usefixtures("four_threads")
def test_what_a_job_raises_is_raised() -> None:
    def job(part: int) -> None:
        if part == 2:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        side_by_side(job, range(4), CPU)
    assert torch.get_num_threads() == 4


def test_large_images_are_decoded_one_by_one() -> None:
    assert [abreast(side) for side in (64, 128, 512, 2048)] == [64, 16, 1, 1]


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(
    ("count", "batch", "group", "sizes"),
    [
        (16, 16, None, [6, 5, 5]),  # no thread gets fewer than it is good for
        (9, 16, None, [9]),
        (12, 16, 5, [5, 5, 2]),
        (12, 7, 5, [5, 5, 2]),  # seven in memory: a group at a time
        (12, 3, 5, [3, 3, 3, 3]),
    ],
)
def test_a_batch_is_shared_among_threads_and_groups_stay_whole(
    count: int, batch: int, group: int | None, sizes: list[int]
) -> None:
    asked: list[int] = []

    def field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return torch.sin(x) * t.view(-1, 1)

    x, g, t = torch.randn(count, 3), torch.randn(count, 3), torch.rand(count)
    batched = Batched(field, batch, group)
    torch.testing.assert_close(batched(x, t), torch.sin(x) * t.view(-1, 1))
    assert sorted(asked, reverse=True) == sizes
    torch.testing.assert_close(batched.vjp(x, t, g), vjp(lambda x, t: torch.sin(x) * t.view(-1, 1), x, t, g))
