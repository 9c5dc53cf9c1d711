"""Batches that fit: divided when memory runs out, and by what one image is measured to need."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowgrad.errors import FlowgradError
from flowgrad.memory import UNLIMITED, Batched, activation_sizes, container_memory, free_memory
from flowgrad.velocity import linearized, vjp


class Greedy:
    """A field that runs out of memory on more than `most` images."""

    def __init__(self, most: int) -> None:
        self.most, self.asked = most, []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.asked.append(len(x))
        if len(x) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate too much")
        return torch.sin(x) * (1 + t.view(-1, 1))


def test_a_batch_is_halved_until_it_fits():
    greedy, x = Greedy(2), torch.randn(7, 3)
    batched = Batched(greedy, 16)
    t = torch.rand(7)
    torch.testing.assert_close(batched(x, t), torch.sin(x) * (1 + t.view(-1, 1)))
    assert batched.limit == 1
    greedy.asked.clear()
    torch.testing.assert_close(batched(x, torch.tensor(0.5)), torch.sin(x) * 1.5)
    assert max(greedy.asked) <= 2
    for _ in range(2):
        with pytest.raises(FlowgradError, match="one image does not fit"):
            Batched(Greedy(0), 4)(x, t)


def test_errors_that_are_not_of_memory_pass():
    def broken(x: Tensor, t: Tensor) -> Tensor:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        Batched(broken, 4)(torch.zeros(2, 3), torch.tensor(0.0))


def test_gradients_are_taken_in_batches_that_the_memory_holds(monkeypatch: pytest.MonkeyPatch):
    greedy, x, g, t = Greedy(99), torch.randn(6, 3), torch.randn(6, 3), torch.rand(6)
    expected = vjp(Greedy(99), x, t, g)
    with activation_sizes() as sizes:
        torch.sin(torch.zeros(1, 3, requires_grad=True))
    assert sum(sizes.values()) == 12
    monkeypatch.setattr("flowgrad.memory.free_memory", lambda device: 200)
    batched = Batched(greedy, 16)
    torch.testing.assert_close(vjp(batched, x, t, g), expected)
    assert batched.size and 1 <= batched.limit < 6 and greedy.asked[0] == 1
    first, greedy.asked[:] = greedy.asked[1:], []
    vjp(batched, x, t, g)
    assert greedy.asked == first, "the first batches are divided as all are: a resumed run gives the same bits"
    with pytest.raises(FlowgradError, match="one image does not fit"):
        vjp(Batched(Greedy(0), 16), x, t, g)


def test_activations_are_kept_where_the_memory_holds_those_of_all_images(monkeypatch: pytest.MonkeyPatch):
    x, g, t = torch.randn(6, 3), torch.randn(6, 3), torch.rand(6)
    expected = vjp(Greedy(99), x, t, g)
    for free, most, group, made_anew in (
        (1 << 20, 99, None, 0),
        (200, 99, None, 6),
        (1 << 20, 5, None, 6),
        (1 << 20, 5, 2, 0),
        (1 << 20, 4, 4, 0),
    ):
        monkeypatch.setattr("flowgrad.memory.free_memory", lambda device, free=free: free)
        greedy = Greedy(most)
        batched = Batched(greedy, 16, group)
        v, pullback = linearized(batched, x, t)
        torch.testing.assert_close(v, torch.sin(x) * (1 + t.view(-1, 1)))
        greedy.asked.clear()
        torch.testing.assert_close(pullback(g), expected)
        assert sum(greedy.asked) == made_anew


def test_errors_while_activations_are_kept_pass_too():
    raised = []

    def broken(x: Tensor, t: Tensor) -> Tensor:
        if len(x) > 1 and not raised:
            raised.append(RuntimeError("something else"))
            raise raised[0]
        return x * t.view(-1, 1)

    batched = Batched(broken, 4)
    with pytest.raises(RuntimeError, match="something else"):
        batched.linearized(torch.zeros(2, 3), torch.tensor(0.0))
    batched.linearized(torch.zeros(2, 3), torch.tensor(0.0))  # so that it was not another evaluation's error


def test_the_limit_of_a_container_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert 1e6 < free_memory(torch.device("cpu")) < UNLIMITED
    for name, text in (
        ("memory.max", "2000"),
        ("memory.current", "1500"),
        ("memory.stat", "anon 5\ninactive_file 100"),
    ):
        (tmp_path / name).write_text(text + "\n")
    assert container_memory(tmp_path) == 2000 - 1500 + 100, "what is cached can be dropped"
    monkeypatch.setattr("flowgrad.memory.container_memory", lambda: 7)
    assert free_memory(torch.device("cpu")) == 7
    (tmp_path / "memory.max").write_text("max\n")
    assert container_memory(tmp_path) == container_memory(tmp_path / "absent") == UNLIMITED
