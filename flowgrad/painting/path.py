"""The straight path between noise and data, and a painting's place on it: what every method is made of."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flowgrad.errors import UsageError
from flowgrad.ode import Grid
from flowgrad.optimize import Objective
from flowgrad.painting.blur import blur, deviation
from flowgrad.velocity import Velocity, checked


@dataclass(frozen=True)
class Canvas:
    """A painting, and the flow that shall follow it.

    velocity: see `flowgrad.velocity`; encode, decode: between images in [-1, 1] and states at t = 1; noise: k -> k-th
    draw of latents (B, *D), one for each candidate, the 0th where its path begins; strokes: y (1 or B, 3, H, W); grid:
    of the Euler steps; strength: how much of the path is the model's alone: the painting acts until
    t = 1 - strength, in (0, 1); objective: what is asked of clean samples, for the methods with gradients.
    Raises UsageError for a strength out of range, or that leaves the painting or the model no interval.
    """

    velocity: Velocity
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    noise: Callable[[int], Tensor]
    strokes: Tensor
    grid: Grid
    objective: Objective
    strength: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.strength < 1:
            raise UsageError(
                f"strength must lie between 0, the painting itself, and 1, none of it; got {self.strength:g}"
            )

    @property
    def turn(self) -> int:
        """The knot from which on the model is alone: the nearest to t = 1 - strength, with an interval on either side.

        A grid of a single interval has none but its end.
        """
        knots = self.grid.knots
        wanted = (1 - self.strength) * self.grid.steps
        return min(range(1, max(2, len(self.grid))), key=lambda j: abs(knots[j] - wanted))

    def painted(self, like: Tensor) -> Tensor:
        """(B, *D) the painting as clean states, one for each of `like`."""
        with torch.no_grad():
            states = self.encode(self.strokes)
        return states.expand_as(like)


def clean(velocity: Velocity, x: Tensor, t: Tensor) -> Tensor:
    """x1 = x + (1 - t) v(x, t): the clean sample that a straight path through x leads to."""
    return x + (1 - t) * checked(velocity(x, t), x)


def noised(x1: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) noise + t x1: a clean sample put back to time t."""
    return (1 - t) * noise + t * x1


@torch.no_grad()
def travel(velocity: Velocity, x: Tensor, grid: Grid, first: int, last: int | None = None) -> Iterator[Tensor]:
    """Euler steps from knot `first` to knot `last` (default: the end): each state (B, *D), that at `first` included."""
    times, spans = grid.times(x), grid.spans(x)
    yield x
    for j in range(first, len(grid) if last is None else last):
        x = x + spans[j] * checked(velocity(x, times[j]), x)
        yield x


@torch.no_grad()
def nearer(canvas: Canvas, x1: Tensor, coarser: float = 1.0) -> Tensor:
    """Clean states (B, *D), moved until f of their images i is that of the painting: x1 + E(i + f(y - i)) - E(i).

    The encoder E undoes the decoder, so this is about a step of Gauss and Newton's on |f(decode(x1)) - f(y)|^2, which
    needs no gradient. coarser: how many times as wide as f the blur is that the move is made by.
    """
    images = canvas.decode(x1)
    low = blur(canvas.strokes - images, coarser * deviation(images))
    return x1 + canvas.encode(images + low) - canvas.encode(images)


def begun_at(canvas: Canvas, x1: Tensor, draw: int) -> Iterator[Tensor]:
    """The path from clean states x1 (B, *D), put back by the noise of a draw to where the model is alone."""
    noise = canvas.noise(draw)
    x = noised(x1, noise, canvas.grid.times(noise)[canvas.turn])
    return travel(canvas.velocity, x, canvas.grid, canvas.turn)


def last_of(states: Iterator[Tensor]) -> Generator[Tensor, None, Tensor]:
    """Yield states on, and return the last: for `x = yield from last_of(...)`."""
    for x in states:
        yield x
    return x
