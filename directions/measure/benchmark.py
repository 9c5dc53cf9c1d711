"""What acceleration costs and gains: the gradient on a non-uniform grid against full back-propagation, in one run."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from flowgrad.adjoint import control_gradient
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.text import contrast_vectors
from flowgrad.models import Model
from flowgrad.ode import Control, Grid, integrate, restrict
from flowgrad.straightness import gradient_grid


@dataclass(frozen=True)
class Comparison:
    """One threshold: intervals of N steps, cosine to the full gradient, seconds and their share of the full pass's.

    plain_cosine: of Eq. 13 as it is written, on the same grid.
    """

    steps: int
    xi: float
    intervals: int
    cosine: float
    plain_cosine: float
    seconds: float
    share: float


def comparison_rows(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table, a row for each threshold."""
    head = ["xi", f"intervals of {comparisons[0].steps}", "cosine", "of Eq. 13", "seconds", "of the full pass"]
    forms = {"xi": "g", "intervals": "d", "cosine": ".4f", "plain_cosine": ".4f", "seconds": ".2f", "share": ".1%"}
    return head, [[format(getattr(c, name), form) for name, form in forms.items()] for c in comparisons]


def compare_gradients(
    model: Model,
    guide: Guide,
    target: Contrast,
    steps: int,
    thresholds: Sequence[float],
    images: int = 4,
    repeats: int = 3,
) -> Iterator[Comparison]:
    """Time the backward pass on the grid of each xi against all `steps` vector-Jacobian products (Eq. 8).

    The gradient is that of a text's score with respect to the shared control, per unit of time, on samples of the
    model. The two are timed in turn, `repeats` times after a warm-up, and compared by their medians.
    """
    trajectory = integrate(model.velocity, model.noise(images, seed=0), Grid.full(steps))
    backward = partial(control_gradient, model.velocity, grad_x1=_score_gradient(model, guide, target, trajectory.x1))
    full = _per_time(backward(trajectory))
    for xi in thresholds:
        grid = gradient_grid(trajectory.velocities, xi)
        jobs = partial(backward, trajectory, grid=grid), partial(backward, trajectory)
        rounds = [[seconds(job) for job in jobs] for _ in range(repeats + 1)][1:]  # in turn: a drift meets both
        ours, theirs = map(median, zip(*rounds, strict=True))
        coarse, plain = _per_time(backward(trajectory, grid=grid)), _per_time(backward(restrict(trajectory, grid)))
        yield Comparison(steps, xi, len(grid), _cosine(coarse, full), _cosine(plain, full), ours, ours / theirs)


def seconds(job: Callable[[], object]) -> float:
    """How long a job takes, on whatever device."""
    _wait()
    begun = time.perf_counter()
    job()
    _wait()
    return time.perf_counter() - begun


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _per_time(gradient: Control) -> Tensor:
    """(N, *D) gradient with respect to the shared control of every step, per unit of time."""
    spans = gradient.grid.spans(gradient.values).view(-1, *[1] * (gradient.values.ndim - 1))
    return Control(gradient.values / spans, gradient.grid).expand().sum(1)


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def _score_gradient(model: Model, guide: Guide, target: Contrast, x1: Tensor) -> Tensor:
    leaf = x1.detach().requires_grad_()
    score = (guide.encode_images(model.decode(leaf)) @ contrast_vectors(guide, [target]).T).sum()
    return torch.autograd.grad(score, leaf)[0]
