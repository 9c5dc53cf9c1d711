"""Painting with gradients: GradOP and GradOP+ (Singh et al., CVPR 2023), and the control of FlowGrad.

Each method yields states, and last its samples x1.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from flowgrad.optimize import Settings, evaluate, optimize
from flowgrad.painting.path import Canvas, begun_at, clean, last_of, nearer, noised, travel
from flowgrad.seeds import generator

COARSER = 2.0  # times as wide as f: the blur by which GradOP+ moves its estimates


def descend(canvas: Canvas, x1: Tensor, steps: int, rate: float, pull: float = 0.0) -> Iterator[Tensor]:
    """Clean states x1 (B, *D), and Adam's iterates x from them, `steps` of them, on the canvas's objective, summed over
    images, and pull |x - x1|^2, where |.|^2 is the mean over entries.

    Adam scales every number of a state by itself, so that images of a batch do not interact.
    """
    yield x1
    x = x1.detach().clone()
    optimizer = torch.optim.Adam([x], lr=rate)
    for step in range(steps):
        rng = generator(canvas.seed, step, device=x.device)
        found = evaluate(canvas.objective, x, rng, decode=canvas.decode, seed=canvas.seed)
        x.grad = found.gradient + 2 * pull / x[0].numel() * (x - x1)
        optimizer.step()
        yield x.clone()


def gradop(canvas: Canvas, steps: int = 24, rate: float = 0.1, pull: float = 0.02) -> Iterator[Tensor]:
    """GradOP: x* = argmin |f(x) - y|^2 + pull |x - x_s|^2 from the model's own sample x_s, then SDEdit of x*.

    |.|^2 are means over entries. The sample is the one that the candidate's noise leads to without a painting.
    """
    sample = yield from last_of(travel(canvas.velocity, canvas.noise(0), canvas.grid, 0))
    x = yield from last_of(descend(canvas, sample, steps, rate, pull))
    yield from begun_at(canvas, x, 1)


def gradop_plus(
    canvas: Canvas, steps: int = 0, rate: float = 0.03, knots: int = 4, coarser: float = COARSER
) -> Iterator[Tensor]:
    """GradOP+: at some knots the clean estimate is moved towards the painting, and put back on the path.

    It is moved by the encoder first, which costs no gradient (see `nearer`), then by `steps` of Adam on the objective.
    The encoder's move is `coarser` than f: of what is finer, strokes say little, and the model knows better.
    It is put back with the noise that its path came from, x - t v(x, t): the details that this noise becomes are kept,
    and what was moved stays moved.
    """
    turn = canvas.turn
    guided = sorted({max(1, round(turn * (k + 1) / knots)) for k in range(knots)})
    x, at = canvas.noise(0), 0
    times = canvas.grid.times(x)
    for knot in guided:
        x = yield from last_of(travel(canvas.velocity, x, canvas.grid, at, knot))
        with torch.no_grad():
            x1 = clean(canvas.velocity, x, times[knot])
            noise = (x - times[knot] * x1) / (1 - times[knot])
        moved = yield from last_of(descend(canvas, nearer(canvas, x1, coarser), steps, rate))
        x, at = noised(moved, noise, times[knot]), knot
    yield from travel(canvas.velocity, x, canvas.grid, at)


def official(canvas: Canvas, steps: int = 12, rate: float = 0.1, knots: int = 3) -> Iterator[Tensor]:
    """GradOP+ as its published code does it: the noisy state is decoded and moved as if it were clean.

    That happens after `knots` steps in succession from the turn on, each time with new noise. The published settings
    are those of 50 steps and strength 0.8. The code compares f(x) with y itself, here with f(y) as everywhere.
    """
    x = yield from last_of(travel(canvas.velocity, canvas.noise(0), canvas.grid, 0, canvas.turn))
    times, last = canvas.grid.times(x), min(canvas.turn + knots, len(canvas.grid) - 1)
    for draw, knot in enumerate(range(canvas.turn, last), 1):
        x = yield from last_of(travel(canvas.velocity, x, canvas.grid, knot, knot + 1))
        x = yield from last_of(descend(canvas, x, steps, rate))
        x = noised(x, canvas.noise(draw), times[knot + 1])
    yield from travel(canvas.velocity, x, canvas.grid, last)


def control(canvas: Canvas, steps: int = 12, rate: float = 0.2) -> Iterator[Tensor]:
    """FlowGrad: Algorithm 1 with the painting as its objective finds a control for each image, on the path until t0."""
    x0 = canvas.noise(0)
    if not steps:
        yield from travel(canvas.velocity, x0, canvas.grid, 0)
        return
    acts = torch.arange(len(canvas.grid), device=x0.device) < canvas.turn
    best, settings = x0, Settings(iterations=steps, step_size=rate, seed=canvas.seed)
    mask = acts.to(x0).view(-1, *[1] * x0.ndim)
    course = optimize(
        canvas.velocity, x0, canvas.grid, canvas.objective, settings, shared=False, mask=mask, decode=canvas.decode
    )
    for step in course:
        yield step.x1
        best = step.x1 if step.best else best
    yield best
