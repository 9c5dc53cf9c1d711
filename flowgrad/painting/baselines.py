"""Painting without gradients: what GradOP is compared with. Each method yields states, and last its samples x1."""

from collections.abc import Iterator

import torch
from torch import Tensor

from flowgrad.painting.path import Canvas, begun_at, clean, last_of, nearer, travel


def sdedit(canvas: Canvas) -> Iterator[Tensor]:
    """SDEdit (Meng et al., ICLR 2022): x_t0 = (1 - t0) noise + t0 y, then the model's own path; t0 = 1 - strength."""
    return begun_at(canvas, canvas.painted(canvas.noise(0)), 0)


def loopback(canvas: Canvas, rounds: int = 3) -> Iterator[Tensor]:
    """SDEdit on what SDEdit returned, `rounds` times in all, each with noise of its own."""
    x = canvas.painted(canvas.noise(0))
    for k in range(rounds):
        x = yield from last_of(begun_at(canvas, x, k))


@torch.no_grad()
def ilvr(canvas: Canvas) -> Iterator[Tensor]:
    """ILVR (Choi et al., ICCV 2021): x <- x + f(y_t) - f(x) after every step until t = 1 - strength.

    y_t carries the path's own noise, which drops out: f(y_t) - f(x) = t f(y - x1), with x1 the clean estimate. So it is
    made on images, where f means what it says; see `nearer`.
    """
    x = canvas.noise(0)
    times, spans = canvas.grid.times(x), canvas.grid.spans(x)
    for j in range(canvas.turn):
        x = x + spans[j] * canvas.velocity(x, times[j])
        x1 = clean(canvas.velocity, x, times[j + 1])
        x = x + times[j + 1] * (nearer(canvas, x1) - x1)
        yield x
    yield from travel(canvas.velocity, x, canvas.grid, canvas.turn)
