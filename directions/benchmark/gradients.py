"""What acceleration costs and gains: gradients on few intervals against full back-propagation, in one run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor

from directions.progress import Reporter
from flowgrad.adjoint import control_gradient, products_at
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.text import contrast_vectors
from flowgrad.models import Model
from flowgrad.models.metering import metered, seconds, timed, with_peak
from flowgrad.ode import Control, Grid, Trajectory, integrate, restrict
from flowgrad.straightness import bounded_grid, grid_of_size, nonuniform_grid, pooled, straightness
from flowgrad.velocity import Velocity, linearized

FULL = "full chain"
Way = Callable[[], tuple[Control, float]]  # a gradient, and the seconds that it took


@dataclass(frozen=True)
class Comparison:
    """One way to the gradient: products an image, cosine to the full chain's, median seconds and their share of its.

    memory: bytes by which the peak rose, 0 where that is not known.
    """

    way: str
    products: int
    cosine: float
    seconds: float
    share: float
    memory: int


def comparison_rows(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table, a row for each way."""
    rows = [
        [c.way, f"{c.products}", f"{c.cosine:.4f}", f"{c.seconds:.2f}", f"{c.share:.1%}", f"{c.memory / 1e6:.0f}"]
        for c in comparisons
    ]
    return ["gradient", "products", "cosine", "seconds", "of the full chain", "MB"], rows


def compare_gradients(
    model: Model,
    guide: Guide,
    target: Contrast,
    steps: int,
    thresholds: Sequence[float],
    intervals: int,
    products: int,
    images: int,
    seed: int,
    repeats: int,
    reporter: Reporter,
) -> list[Comparison]:
    """Take the gradient of a text's score with respect to the shared control in several ways, in turn.

    The ways: all `steps` vector-Jacobian products (Eq. 8); for each threshold xi, Eq. 13 on the grid of Eq. 12 as the
    paper has it, and ours on that grid with bounded intervals; ours by `products` products on equal intervals, which is
    what a fine forward of the default recipe computes; these once more with the activations that the simulation kept;
    and Eq. 13 on `intervals` intervals, which is what the default's grid forward does. On samples of the model with
    this seed; `repeats` rounds after a warm-up.
    """
    measured, meter = metered(model)
    trajectory = integrate(model.velocity, model.noise(images, seed), Grid.full(steps))
    backward = partial(
        control_gradient, measured.velocity, grad_x1=_score_gradient(model, guide, target, trajectory.x1)
    )
    ways: dict[str, Way] = {FULL: partial(timed, partial(backward, trajectory))}
    bends = pooled(straightness(trajectory.velocities))
    for xi in thresholds:
        published = restrict(trajectory, nonuniform_grid(bends, xi))
        ways[f"Eq. 13, xi = {xi:g}"] = partial(timed, partial(backward, published))
        ways[f"ours, xi = {xi:g}"] = partial(timed, partial(backward, trajectory, grid=bounded_grid(bends, xi)))
    equal = Grid.uniform(steps, products)
    ways[f"ours, {products} products"] = partial(timed, partial(backward, trajectory, grid=equal))
    ways[f"ours, {products} products, kept"] = partial(_with_kept, measured.velocity, backward, trajectory, equal)
    few = restrict(trajectory, grid_of_size(bends, intervals))
    ways[f"{intervals} intervals"] = partial(timed, partial(backward, few))
    rounds = [
        {way: job() for way, job in ways.items()} for _ in reporter.track(range(repeats + 1), "gradients", repeats + 1)
    ]
    full = _per_time(rounds[0][FULL][0])
    taken = {way: median(results[way][1] for results in rounds[1:]) for way in ways}
    comparisons = []
    for way, job in ways.items():
        ((gradient, _), spent), memory = with_peak(partial(meter.measure, job), model.device)
        cosine = _cosine(_per_time(gradient), full)
        products = spent.products // images
        comparisons.append(Comparison(way, products, cosine, taken[way], taken[way] / taken[FULL], memory))
    return comparisons


def _with_kept(
    velocity: Velocity, backward: Callable[..., Control], trajectory: Trajectory, grid: Grid
) -> tuple[Control, float]:
    """The gradient where the simulation kept its activations; what it took longer for that counts too."""
    times = trajectory.grid.times(trajectory.x1)
    points = {k: (trajectory.states[k], times[k]) for k in products_at(trajectory.grid, grid)}
    with torch.no_grad():
        plain = seconds(lambda: [velocity(*point) for point in points.values()])
    pullbacks, keeping = timed(lambda: {k: linearized(velocity, *point)[1] for k, point in points.items()})
    gradient, took = timed(lambda: backward(replace(trajectory, pullbacks=pullbacks), grid=grid))
    return gradient, took + keeping - plain


def _per_time(gradient: Control) -> Tensor:
    """(N, *D) gradient with respect to the shared control of every step, per unit of time."""
    values = gradient.values / gradient.grid.spans_of(gradient.values)
    return Control(values, gradient.grid).expand().sum(1)


def _cosine(a: Tensor, b: Tensor) -> float:
    """In float64: sums over ten million entries are off by a thousandth in float32."""
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def _score_gradient(model: Model, guide: Guide, target: Contrast, x1: Tensor) -> Tensor:
    leaf = x1.detach().requires_grad_()
    score = (guide.encode_images(model.decode(leaf)) @ contrast_vectors(guide, [target]).T).sum()
    return torch.autograd.grad(score, leaf)[0]
