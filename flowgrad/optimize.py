"""Algorithm 1 of FlowGrad (Liu et al., CVPR 2023): find the control that minimises an objective on clean samples."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from flowgrad.adjoint import control_gradient, products_at
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.ode import IN_PLACE, Control, Grid, Store, Trajectory, anchor, integrate
from flowgrad.seeds import generator
from flowgrad.straightness import bounded_grid, pooled, straightness
from flowgrad.threads import side_by_side
from flowgrad.velocity import Velocity
from flowgrad.workers import Share

OPTIMIZERS = ("sgd", "normalized", "adam")
COURSES = ("free", "constant", "start")  # of a control over time
RETRIES = 3  # of one evaluation, with ever smaller controls


# Named terms (B,) of a loss on what clean samples decode to, to be minimised in sum; these are rows of this process's
# samples. Random draws come from the generator alone, which makes a run repeatable: where samples are looked at in
# parts, or shared out, it draws for all and takes those rows' own.
Terms = Mapping[str, Tensor]
Objective = Callable[[Tensor, torch.Generator, slice], Terms]
Decode = Callable[[Tensor], Tensor]  # states (B, *D) at t = 1 -> what the objective looks at (B, ...)

# The trajectory of inverted photos at the knots of a grid, or None where the simulation is not tied to it.
TrajectoryOn = Callable[[Grid], Trajectory | None]


@dataclass(frozen=True)
class Settings:
    """How Algorithm 1 runs.

    forward: "grid" simulates on the grid, whose gradient is then exact; "fine" simulates all N steps and
        takes products on few intervals.
    products: of the fine forward's gradient, on as many intervals of equal length. 0: on those that `xi` makes, anew in
        every iteration, as in the paper. That takes more products for the same precision: straightness tells where the
        velocity changes, which is not where its Jacobian does.
    xi: threshold of Eq. 12, for the fine forward where `products` is 0; no interval is longer than N / 5.
    keep_activations: of the evaluations that products are taken at, as far as the memory holds them, which makes
        a product half as dear. Not where `xi` makes the grid, which is then known too late.
    optimizer: "sgd" on the gradient per unit of time by the length of the interval that its product was taken on, which
        is Eq. 13's factor, for every step of it; "normalized", momentum on the gradient per unit
        of time, divided by each control's root mean square, so that the step is in units of dx/dt whatever the
        objective's scale; "adam" on the gradient per unit of time.
    step_size: the learning rate; of "normalized" and "adam" the first, which falls linearly to 0.
    mirror: keep the control symmetric about the middle of its last axis, as if every image were there mirrored too;
        for flows that know no left and right.
    over_time: "free", a value for each interval; "constant", one for all; "start", a value for the first interval and
        none after it. The last two are what a direction is compared with.
    penalty: lambda, the weight of sum_k |u_k|^2 over all N steps, |.|^2 averaged over the entries of u.
    Raises UsageError for a value out of range.
    """

    iterations: int = 12
    forward: str = "grid"
    products: int = 7
    xi: float = 5e-3
    optimizer: str = "normalized"
    step_size: float = 0.03
    momentum: float = 0.8
    penalty: float = 0.0
    seed: int = 0
    mirror: bool = False
    over_time: str = "free"
    keep_activations: bool = False

    def __post_init__(self) -> None:
        rules = {
            "iterations must be at least 1": self.iterations >= 1,
            'forward must be "grid" or "fine"': self.forward in ("grid", "fine"),
            "products must be at least 0": self.products >= 0,
            "xi must be at least 0": self.xi >= 0,
            f"optimizer must be one of {', '.join(OPTIMIZERS)}": self.optimizer in OPTIMIZERS,
            f"over_time must be one of {', '.join(COURSES)}": self.over_time in COURSES,
            "step_size must be above 0": self.step_size > 0,
            "momentum must lie in [0, 1)": 0 <= self.momentum < 1,
            "penalty (lambda) must be at least 0": self.penalty >= 0,
            "keep_activations needs products above 0 where forward is fine": self.products > 0
            or self.forward == "grid"
            or not self.keep_activations,
        }
        for rule, kept in rules.items():
            if not kept:
                raise UsageError(f"{rule}; got {self}")


@dataclass(frozen=True)
class Step:
    """One evaluation of the objective: the control it was made with, and what came of it.

    loss: sum over images plus lambda's term; terms: mean of each term over images; x1: (B, *D), of this process;
    grid: the one the gradient was taken on; gradient_rms: of dL/du per unit of time, 0 at the last evaluation, which
    takes no gradient; compared: the loss under the random draws that all evaluations of a run are compared under, which
    is `loss` itself at the last one and for an objective that draws nothing; best: it is the lowest so far; state: what
    `optimize` needs to go on from here.
    """

    iteration: int
    loss: float
    terms: Mapping[str, float]
    control: Control
    x1: Tensor
    grid: Grid
    gradient_rms: float
    compared: float
    best: bool
    state: "State"


@dataclass(frozen=True)
class State:
    """Everything that a later run needs to continue bit for bit: saved by those who call `optimize`.

    best_loss: of the best control, under the draws that evaluations are compared under.
    """

    iteration: int
    control: Control
    moments: tuple[Tensor, ...]
    best: Control
    best_loss: float
    step_size: float


def optimize(
    velocity: Velocity,
    x0: Tensor,
    grid: Grid,
    objective: Objective,
    settings: Settings,
    *,
    shared: bool = True,
    path: TrajectoryOn | None = None,
    resume: State | None = None,
    store: Store = IN_PLACE,
    share: Share | None = None,
    mask: Tensor | None = None,
    decode: Decode | None = None,
    at_once: int | None = None,
    abreast: int = 1,
) -> Iterator[Step]:
    """Run Algorithm 1 and yield every evaluation; the best control is `step.state.best` of the last.

    x0: (B, *D) latents. `grid` carries the control in the grid forward; its `steps` is N. `shared`: one control
    for all images, else one for each. `path` ties the simulation to inverted photos: without a control it is their
    trajectory, which costs no evaluation. `store` says where the trajectories of the fine forward are kept, and in
    what. `share`: of the images of a shared control that several processes have, those here; sums over images go over
    all, and every process yields the same steps.
    `mask`: factors in [0, 1] on the gradient and on every update, of a shape that broadcasts with the control's values
    (M, 1 or B, *D): where they are 0, there is no control. `decode`: from states (B, *D) at t = 1 to what the objective
    looks at; by default the states. `at_once`: how many are decoded and looked at together, by default all; `abreast`:
    to how many such parts, at most, a CPU gives a thread each. The memory that it takes is that of so many images.

    There are `iterations` updates and one evaluation more. Every iteration draws its own random numbers for the
    gradient; which control is best is decided under draws that are the same for all. An evaluation that is not finite
    halves the step size and goes back to the best control. Raises FlowgradError if that happens three times running. If
    no update improves on the zero control, the last control is halved, up to three times.
    """
    fine, share = settings.forward == "fine", share or Share(len(x0))
    carrier, known = (Grid.full(grid.steps), _equal(grid, settings)) if fine else (grid, grid)
    products = products_at(carrier, known) if known and settings.keep_activations else set()
    own = None if path is None else path(carrier)
    residual = None if own is None else anchor(own).to(x0)
    zero = Control.zeros(carrier, x0, shared)
    state = resume or State(0, zero, (), zero, float("inf"), settings.step_size)
    failures = halvings = 0
    while state.iteration <= settings.iterations:
        last = state.iteration == settings.iterations
        if own is None or state.control.values.any():
            kept = set() if last else products
            trajectory = integrate(velocity, x0, carrier, state.control, residual, store if fine else IN_PLACE, kept)
        else:
            trajectory = own
        x1 = trajectory.x1.to(x0)
        rng = None if last else generator(settings.seed, state.iteration, device=x0.device)
        found = evaluate(objective, x1, rng, share, decode=decode, at_once=at_once, abreast=abreast, seed=settings.seed)
        energy = settings.penalty * _energy(state.control)
        loss, compared = found.loss + energy, found.compared + energy
        if not (isfinite(loss) and isfinite(compared)):
            failures += 1
            state = _backtrack(state, settings, failures)
            continue
        failures = 0
        improved = compared < state.best_loss
        if last and not improved and halvings < RETRIES and not state.best.values.any():
            halvings += 1
            state = replace(state, control=state.control * 0.5)
            continue
        used = known or bounded_grid(pooled(straightness(trajectory.velocities), share), settings.xi)
        after = replace(state, best=state.control, best_loss=compared) if improved else state
        rms = 0.0
        if not last:
            gradient = _gradient(velocity, trajectory, found.gradient, used, state.control, settings, share)
            gradient = gradient if mask is None else gradient * mask
            rms = float(_rms(gradient))
            after = _update(after, gradient, used, settings, mask)
        after = replace(after, iteration=state.iteration + 1)
        yield Step(state.iteration, loss, found.terms, state.control, x1, used, rms, compared, improved, after)
        state = after


def _equal(grid: Grid, settings: Settings) -> Grid | None:
    """The grid of a fine forward's products, where it does not depend on the path that is simulated."""
    return Grid.uniform(grid.steps, settings.products) if settings.products else None


class Evaluation(NamedTuple):
    """An objective summed over images, and under the draws that evaluations are compared under; the mean of each of its
    terms; its gradient (B, *D) in the samples, 0 where none was asked for."""

    loss: float
    compared: float
    terms: dict[str, float]
    gradient: Tensor


def evaluate(
    objective: Objective,
    x1: Tensor,
    rng: torch.Generator | None,
    share: Share | None = None,
    *,
    decode: Decode | None = None,
    at_once: int | None = None,
    abreast: int = 1,
    seed: int = 0,
) -> Evaluation:
    """The objective on samples x1 (B, *D), and its gradient: with draws from `rng`, and compared with those of `seed`.

    Without `rng` it is only compared. A sample is decoded once. share, decode, at_once, abreast: see `optimize`.
    """
    share, drawn, size = share or Share(len(x1)), None if rng is None else rng.get_state(), at_once or len(x1)

    def compare(images: Tensor, rows: slice) -> Terms:
        return objective(images, generator(seed, device=x1.device), rows)

    def show(states: Tensor) -> Tensor:
        return decode(states) if decode else states

    def look(rows: slice) -> tuple[Terms, Terms, Tensor]:
        """The terms of some samples with draws from `rng`, and with those of `seed`; the gradient of the former."""
        if drawn is None:
            with torch.no_grad():
                terms = compare(show(x1[rows]), rows)
            return terms, terms, torch.zeros_like(x1[rows])
        own = torch.Generator(x1.device).set_state(drawn)
        with torch.enable_grad():
            leaf = x1[rows].detach().requires_grad_()
            images = show(leaf)
            terms = objective(images, own, rows)
            total = torch.stack(list(terms.values())).sum()
        (gradient,) = torch.autograd.grad(total, leaf)
        terms = {name: term.detach() for name, term in terms.items()}
        if torch.equal(drawn, own.get_state()):  # nothing was drawn
            return terms, terms, gradient
        with torch.no_grad():
            return terms, compare(images.detach(), rows), gradient

    parts = [slice(i, min(i + size, len(x1))) for i in range(0, len(x1), size)]
    found, compared, gradients = zip(*side_by_side(look, parts, x1.device, abreast), strict=True)
    totals, others = (
        share.total(torch.cat([torch.stack(list(terms.values()), 1) for terms in looks])) for looks in (found, compared)
    )
    means = dict(zip(found[0], (totals / share.count).tolist(), strict=True))
    return Evaluation(float(totals.sum()), float(others.sum()), means, torch.cat(gradients))


def _energy(control: Control) -> float:
    """sum_k |u_k|^2 over the N steps, |.|^2 the mean over entries, summed over the controls of a batch."""
    lengths = control.values.new_tensor(control.grid.lengths)
    return float((control.values.square().flatten(2).mean(2).sum(1) * lengths).sum())


def _gradient(
    velocity: Velocity,
    trajectory: Trajectory,
    grad_x1: Tensor,
    grid: Grid,
    control: Control,
    settings: Settings,
    share: Share,
) -> Tensor:
    """(M, 1 or B, *D) dL/du per unit of time on the control's own intervals, lambda's term included.

    `grid` says where products are taken.
    """
    values = control_gradient(velocity, trajectory, grad_x1, grid).values
    if control.values.shape[1] == 1:
        values = share.total(values.movedim(1, 0)).unsqueeze(1)
    per_time = values / control.grid.spans_of(values)
    entries = control.values[0, 0].numel()
    per_time = per_time + 2 * settings.penalty * grid.steps / entries * control.values
    per_time = (per_time + per_time.flip(-1)) / 2 if settings.mirror else per_time
    return _held(per_time, control.grid, settings.over_time)


def _held(per_time: Tensor, grid: Grid, over_time: str) -> Tensor:
    """What is left of a gradient (M, ...) for a control that is constant, or that acts in the first interval alone."""
    if over_time == "constant":
        return (per_time * grid.spans_of(per_time)).sum(0, keepdim=True).expand_as(per_time)
    if over_time == "start":
        return torch.cat([per_time[:1], torch.zeros_like(per_time[1:])])
    return per_time


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _transformed(gradient: Tensor, grid: Grid, carrier: Grid, settings: Settings) -> Tensor:
    """What each optimiser makes of the gradient per unit of time, taken on `grid`, before its own rule."""
    if settings.optimizer == "sgd" and settings.over_time != "constant":  # whose one interval has the length 1
        return gradient * Control(grid.spans_of(gradient), grid).on(carrier).values
    if settings.optimizer == "normalized":
        rms = gradient.square().mean((0, *range(2, gradient.ndim)), keepdim=True).sqrt()  # of each image by itself
        return gradient / rms.clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient


def _update(state: State, gradient: Tensor, grid: Grid, settings: Settings, mask: Tensor | None) -> State:
    """One step of the optimiser (torch.optim) from the state's control, by a gradient taken on `grid`; a new state."""
    values = state.control.values.clone().requires_grad_()
    values.grad = _transformed(gradient, grid, state.control.grid, settings)
    optimizer = _optimizer(values, state, settings)
    optimizer.step()
    moments = tuple(v.detach().clone() for v in optimizer.state[values].values() if isinstance(v, Tensor))
    moved, before = values.detach(), state.control.values
    moved = moved if mask is None else before + mask * (moved - before)
    return replace(state, control=Control(moved, state.control.grid), moments=moments)


def _optimizer(values: Tensor, state: State, settings: Settings) -> torch.optim.Optimizer:
    """One of torch.optim with the state's moments.

    Steps of normalised gradients and of Adam do not shrink as the gradient does, so they shrink with time: linearly, to
    0 after the last.
    """
    moments = [moment.clone() for moment in state.moments]  # torch updates them in place, and states are kept
    left = 1.0 if settings.optimizer == "sgd" else 1 - state.iteration / settings.iterations
    rate = state.step_size * left
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adam":
        names: tuple[str, ...] = ("step", "exp_avg", "exp_avg_sq")
        optimizer = torch.optim.Adam([values], lr=rate, betas=(settings.momentum, 0.99))
    else:
        names, optimizer = ("momentum_buffer",), torch.optim.SGD([values], lr=rate, momentum=settings.momentum)
    if moments:
        optimizer.state[values] = dict(zip(names, moments, strict=True))
    return optimizer


def _backtrack(state: State, settings: Settings, failures: int) -> State:
    """The best control again, without momentum and with half the step size."""
    if failures >= RETRIES or not isfinite(state.best_loss):
        raise FlowgradError(
            f"the objective is not finite at iteration {state.iteration} with step size {state.step_size:g}: "
            "lower the step size, or use float32"
        )
    return replace(state, control=state.best, moments=(), step_size=state.step_size / 2)
