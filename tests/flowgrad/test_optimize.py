"""Algorithm 1: what it minimises, what it returns, and that it can be repeated and resumed."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from flowgrad.adjoint import control_gradient
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.ode import Control, Grid, Store, anchor, integrate, invert, restrict
from flowgrad.optimize import RETRIES, Settings, evaluate, optimize
from flowgrad.seeds import generator
from tests.flowgrad.test_ode import random_control

GRID = Grid((0, 1, 2, 7, 11), 12)


def towards(target):
    """|x1 - target|^2 per image, and a random term whose draws matter."""

    def objective(x1, rng, rows):
        noise = torch.rand(len(x1), generator=rng, dtype=x1.dtype)
        return {"distance": (x1 - target).square().flatten(1).mean(1), "noise": 1e-3 * noise * x1.flatten(1).mean(1)}

    return objective


def run(field, x0, settings, **options):
    return list(optimize(field, x0, GRID, towards(x0.flip(0) + 1), settings, **options))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("forward", ["grid", "fine"])
@pytest.mark.parametrize(("optimizer", "step_size"), [("sgd", 3.0), ("normalized", 0.3), ("adam", 0.1)])
def test_every_optimizer_lowers_the_loss(field, x0, optimizer, step_size, forward, shared):
    settings = Settings(iterations=15, optimizer=optimizer, step_size=step_size, forward=forward)
    steps = run(field, x0, settings, shared=shared)
    assert steps[-1].state.best_loss < 0.75 * steps[0].loss
    assert len(steps) == 16
    assert steps[0].control.values.abs().max() == 0
    assert steps[0].control.values.shape[1] == (1 if shared else 2)


def test_the_best_control_is_one_that_was_evaluated(field, x0):
    steps = run(field, x0, Settings(iterations=12, optimizer="sgd", step_size=30.0))
    best = min(steps, key=lambda step: step.compared)
    assert steps[-1].compared > best.compared, "the step size should overshoot for this test to mean anything"
    assert torch.equal(steps[-1].state.best.values, best.control.values)
    assert steps[-1].state.best_loss == best.compared
    assert [step.best for step in steps] == [
        s.compared < min([math.inf, *(t.compared for t in steps[:i])]) for i, s in enumerate(steps)
    ]


def test_evaluations_are_compared_under_the_same_draws(field, x0):
    """The noise is larger than all that is gained: under draws of their own, a lucky evaluation would be best."""

    def objective(x1, rng, rows):
        noise = 100 * torch.rand((), generator=rng, dtype=x1.dtype)
        return {"distance": (x1 - x0).square().flatten(1).mean(1), "noise": noise.expand(len(x1))}

    steps = list(optimize(field, x0, GRID, objective, Settings(iterations=6)))
    noise = steps[0].compared - 2 * steps[0].terms["distance"]
    for step in steps:
        assert step.compared == pytest.approx(2 * step.terms["distance"] + noise)
    assert len({round(step.loss - step.compared, 6) for step in steps}) == len(steps)
    best = min(steps, key=lambda step: step.terms["distance"])
    assert torch.equal(steps[-1].state.best.values, best.control.values)


def test_normalised_steps_fall_linearly_to_zero(field, x0):
    steps = run(field, x0, Settings(iterations=4, step_size=0.4, momentum=0))
    moved = torch.stack([step.control.values for step in steps]).diff(dim=0).flatten(1).square().mean(1).sqrt()
    assert moved.tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_a_seed_repeats_a_run_bit_for_bit_and_another_does_not(field, x0):
    first, again, other = (run(field, x0, Settings(iterations=4, seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(first[-1].control.values, again[-1].control.values)
    assert not torch.equal(first[-1].control.values, other[-1].control.values)


@pytest.mark.parametrize("optimizer", ["sgd", "normalized", "adam"])
def test_a_resumed_run_is_the_same_bits(field, x0, optimizer):
    settings = Settings(iterations=6, optimizer=optimizer)
    whole = run(field, x0, settings)
    resumed = run(field, x0, settings, resume=whole[2].state)
    assert len(resumed) == 4
    assert torch.equal(whole[-1].state.best.values, resumed[-1].state.best.values)
    assert [s.loss for s in whole[3:]] == [s.loss for s in resumed]


def test_one_sgd_step_follows_the_paper(field, x0):
    """u <- u - alpha dL/du with dL/du of Eq. 13, for the loss summed over images and lambda's term."""
    objective, start = towards(x0 * 0), integrate(field, x0, GRID)
    settings = Settings(iterations=1, optimizer="sgd", step_size=0.7, momentum=0, penalty=0.2)
    steps = list(optimize(field, x0, GRID, objective, settings))
    gradient = control_gradient(field, start, evaluate(objective, start.x1, generator(0, 0)).gradient).values
    torch.testing.assert_close(steps[1].control.values, -0.7 * gradient.sum(1, keepdim=True))


def test_sgd_after_a_fine_forward_moves_every_step_by_its_intervals_gradient(field, x0):
    """Eq. 13: the factor is the length of the interval that the product was taken on, not 1/N."""
    objective, start = towards(x0 * 0), integrate(field, x0, Grid.full(12))
    settings = Settings(1, "fine", products=0, xi=0.01, optimizer="sgd", step_size=0.7, momentum=0)
    steps = list(optimize(field, x0, GRID, objective, settings))
    assert max(steps[0].grid.lengths) > min(steps[0].grid.lengths), "the grid should be uneven"
    gradient = control_gradient(field, start, evaluate(objective, start.x1, generator(0, 0)).gradient, steps[0].grid)
    for first, end in pairwise(steps[0].grid.knots):
        for k in range(first, end):
            expected = -0.7 * (end - first) * gradient.values[k].sum(0)
            torch.testing.assert_close(steps[1].control.values[k, 0], expected)


def test_the_penalty_is_the_sum_over_all_steps_and_its_gradient_is_right(field, x0):
    """Against finite differences of the reported loss."""
    u = random_control(GRID, x0)
    probe, step = random_control(GRID, x0.flip(2)).values, 1e-5

    def loss_at(values):
        settings = Settings(iterations=1, penalty=0.3, optimizer="sgd", momentum=0, step_size=1.0)
        start = next(iter(run(field, x0, settings))).state
        state = type(start)(0, Control(values, GRID), (), u, math.inf, 1.0)
        return run(field, x0, settings, resume=state)

    steps = loss_at(u.values)
    assert steps[0].loss - 0.3 * (u.expand().square().flatten(1).mean(1)).sum().item() == pytest.approx(
        steps[0].terms["distance"] * 2 + steps[0].terms["noise"] * 2
    )
    gradient = steps[0].control.values - steps[1].control.values
    plus, minus = (loss_at(u.values + s * probe)[0].loss for s in (step, -step))
    assert (gradient * probe).sum().item() == pytest.approx((plus - minus) / (2 * step), rel=1e-5)


def test_a_fine_forward_is_propagated_on_equal_intervals_or_where_xi_says(field, x0):
    settings = Settings(iterations=1, forward="fine")
    assert run(field, x0, settings)[0].grid == Grid.uniform(12, settings.products)
    assert run(field, x0, replace(settings, products=0, xi=1e9))[0].grid == Grid.uniform(12, 4)
    each, full = (run(field, x0, replace(settings, **full)) for full in ({"products": 99}, {"products": 0, "xi": 0}))
    assert each[0].grid == full[0].grid == Grid.full(12)
    assert torch.equal(each[1].control.values, full[1].control.values)


@pytest.mark.parametrize("forward", ["grid", "fine"])
def test_kept_activations_save_evaluations_and_change_no_bit(field, x0, forward):
    settings, evaluated = Settings(iterations=3, forward=forward, products=4), []

    def counted(x, t):
        evaluated.append(t)
        return field(x, t)

    plain = run(counted, x0, settings)
    saved, evaluated[:] = len(evaluated), []
    kept = run(counted, x0, replace(settings, keep_activations=True))
    products = {"grid": len(GRID) - 1, "fine": 4}[forward]
    assert saved - len(evaluated) == 3 * products
    assert torch.equal(kept[-1].state.best.values, plain[-1].state.best.values)


def test_a_fine_forward_keeps_its_trajectories_where_it_is_told(field, x0):
    kept = []

    class Counted(Store):
        def empty(self, x, grid):
            kept.append(grid)
            return super().empty(x, grid)

    settings = Settings(iterations=2, forward="fine")
    elsewhere = run(field, x0, settings, store=Counted("cpu", torch.float16))
    assert kept == [Grid.full(12)] * 3
    assert [step.loss for step in elsewhere] == pytest.approx([step.loss for step in run(field, x0, settings)], rel=0.1)
    assert elsewhere[0].x1.dtype == x0.dtype
    run(field, x0, Settings(iterations=1), store=Counted("cpu"))
    assert len(kept) == 3, "the states of a coarse grid are few, and stay with the model"


def test_a_mirrored_run_trains_on_both_sides(field, x0):
    """With a flow and an objective that know no left and right, it is training on every image and its mirror image."""

    def even(x, t):
        return field(x, t) + field(x.flip(-1), t).flip(-1)

    def trained(x, mirror):
        def objective(x1, rng, rows):
            return {"distance": (x1 - x.cos()).square().flatten(1).mean(1)}

        settings = Settings(iterations=3, step_size=0.1, mirror=mirror)
        return list(optimize(even, x, GRID, objective, settings))[-1].control.values

    one_side, both_sides = trained(x0, True), trained(torch.cat([x0, x0.flip(-1)]), False)
    assert not torch.allclose(one_side, trained(x0, False))
    torch.testing.assert_close(one_side, one_side.flip(-1))
    torch.testing.assert_close(one_side, both_sides)


@pytest.mark.parametrize("forward", ["grid", "fine"])
def test_an_anchored_run_starts_at_the_photos_without_an_evaluation(field, x0, forward):
    """And finds what one finds that simulates the path to them."""
    evaluated = []

    def counted(x, t):
        evaluated.append(t)
        return field(x, t)

    photos, settings = invert(field, x0, 12), Settings(iterations=2, forward=forward, products=4)
    carrier, products = (GRID, len(GRID) - 1) if forward == "grid" else (Grid.full(12), 4)
    own = restrict(photos, carrier)
    steps = run(counted, photos.x0, settings, path=partial(restrict, photos))
    assert torch.equal(steps[0].x1, x0)
    assert len(evaluated) == 2 * (len(carrier) + products), "two updates, and one simulation that none follows"
    simulated = integrate(field, photos.x0, carrier, residual=anchor(own))
    draws = evaluate(towards(photos.x0.flip(0) + 1), simulated.x1, generator(0, 0))
    where = GRID if forward == "grid" else Grid.uniform(12, 4)
    gradient = control_gradient(field, simulated, draws.gradient, where).values.sum(1, keepdim=True)
    rms = (gradient / carrier.spans_of(gradient)).square().mean().sqrt()
    assert steps[0].gradient_rms == pytest.approx(float(rms), rel=1e-9)


def test_the_last_evaluation_takes_no_gradient_and_is_compared_alone(field, x0):
    looked = []

    def objective(x1, rng, rows):
        looked.append(x1.requires_grad)
        return towards(x0.flip(0) + 1)(x1, rng, rows)

    steps = list(optimize(field, x0, GRID, objective, Settings(iterations=2)))
    assert looked == [True, False, True, False, False]
    assert [step.loss == step.compared for step in steps] == [False, False, True]
    found = evaluate(towards(x0.flip(0) + 1), steps[-1].x1, generator(5), seed=0)
    only = evaluate(towards(x0.flip(0) + 1), steps[-1].x1, None, seed=0)
    assert only.loss == only.compared == found.compared == steps[-1].loss and not only.gradient.any()


@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_samples_that_are_looked_at_in_parts_have_the_gradient_of_all(at_once):
    """Of an objective that draws for all, on what samples decode to; each is decoded once."""
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    decoded = []

    def decode(states):
        decoded.append(len(states))
        return states.sin()

    def objective(images, rng, rows):
        weights = torch.rand(5, 1, 1, 1, generator=rng, dtype=images.dtype)[rows]
        return {"sum": (weights * images).flatten(1).sum(1), "square": images.square().flatten(1).sum(1)}

    found = evaluate(objective, x, generator(1, 2), decode=decode, at_once=at_once, seed=3)
    assert sum(decoded) == 5 and max(decoded) == at_once
    leaf = x.clone().requires_grad_()
    terms = objective(leaf.sin(), generator(1, 2), slice(0, 5))
    (gradient,) = torch.autograd.grad(sum(term.sum() for term in terms.values()), leaf)
    torch.testing.assert_close(found.gradient, gradient)
    assert found.loss == pytest.approx(sum(float(term.detach().sum()) for term in terms.values()))
    assert found.terms == {name: pytest.approx(float(term.mean())) for name, term in terms.items()}
    again = objective(x.sin(), generator(3), slice(0, 5))
    assert found.compared == pytest.approx(sum(float(term.sum()) for term in again.values())) != found.loss


def scripted(*values):
    """An objective of given values for each image: the k-th call's is the k-th, or the last."""
    calls = []

    def objective(x1, rng, rows):
        calls.append(values[min(len(calls), len(values) - 1)])
        return {"distance": x1.flatten(1).sum(1) * 0 + calls[-1]}

    objective.calls = calls
    return objective


@pytest.mark.parametrize("losses", [(3, math.nan, 2, 1, 0, 0), (3, 2, math.nan, 1, 0, 0)])
def test_a_loss_that_is_not_finite_goes_back_to_the_best_with_half_the_step(field, x0, losses):
    """Also when the best is still no control at all."""
    steps = list(optimize(field, x0, GRID, scripted(*losses), Settings(iterations=4)))
    assert [step.iteration for step in steps] == [0, 1, 2, 3, 4]
    assert steps[-1].state.step_size == Settings().step_size / 2
    assert all(math.isfinite(step.loss) for step in steps)


@pytest.mark.parametrize("optimizer", ["sgd", "normalized", "adam"])
def test_a_run_that_went_too_far_ends_with_a_part_of_it(field, x0, optimizer):
    """Three times the least length, among powers of 2, at which one step is no better than none."""

    def taken(step_size):
        return run(field, x0, Settings(iterations=1, optimizer=optimizer, step_size=step_size))[-1]

    def length(step):
        return step.control.values.norm().item()

    step_size = 1e-3
    unit = length(taken(step_size)) / step_size
    while length(taken(step_size)) == pytest.approx(unit * step_size):  # not halved
        step_size *= 2
    found = taken(3 * step_size)
    assert torch.equal(found.state.best.values, found.control.values) and found.control.values.any()
    assert round(math.log2(unit * 3 * step_size / length(found)), 3) in (1, 2, 3)


def test_a_loss_that_rises_before_it_falls_is_left_alone(field, x0):
    objective = scripted(0, 2, 1, -1)  # as momentum may make it
    steps = list(optimize(field, x0, GRID, objective, Settings(iterations=3)))
    assert len(objective.calls) == 4 and steps[-1].state.best_loss == -2, "of two images"
    assert steps[-1].state.step_size == Settings().step_size


def test_where_nothing_helps_the_run_still_ends_with_no_control(field, x0):
    objective = scripted(*range(99))
    steps = list(optimize(field, x0, GRID, objective, Settings(iterations=2)))
    assert [step.iteration for step in steps] == [0, 1, 2] and len(objective.calls) == 3 + RETRIES
    assert not steps[-1].state.best.values.any()


def test_a_loss_that_stays_infinite_is_reported(field, x0):
    with pytest.raises(FlowgradError, match="lower the step size"):
        list(optimize(field, x0, GRID, scripted(math.inf), Settings()))


OUT_OF_RANGE = {"iterations": 0, "forward": "both", "optimizer": "lion", "step_size": 0.0, "momentum": 1.0}


@pytest.mark.parametrize(("name", "value"), [*OUT_OF_RANGE.items(), ("penalty", -1.0), ("products", -1), ("xi", -1.0)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(UsageError, match=f"^{name} .*must"):
        Settings(**{name: value})


def test_activations_are_not_kept_where_the_grid_is_known_too_late():
    with pytest.raises(UsageError, match=r"^keep_activations needs products above 0"):
        Settings(forward="fine", products=0, keep_activations=True)


@pytest.mark.parametrize("optimizer", ["sgd", "normalized", "adam"])
@pytest.mark.parametrize("forward", ["grid", "fine"])
def test_a_control_may_be_held_constant_or_to_its_start(field, x0, optimizer, forward):
    settings = Settings(iterations=4, optimizer=optimizer, step_size=0.1, forward=forward)
    constant, start = (
        run(field, x0, replace(settings, over_time=course))[-1].state.best.values for course in ("constant", "start")
    )
    assert constant.any() and torch.allclose(constant, constant[:1].expand_as(constant), atol=1e-12)
    assert start[0].any() and not start[1:].any()
    with pytest.raises(UsageError, match="over_time must be one of free, constant, start"):
        replace(settings, over_time="linear")


def test_a_held_control_descends_its_own_gradient(field, x0):
    """One plain step of a constant control is against the sum of the gradients of all its intervals."""
    steps = run(field, x0, Settings(iterations=1, optimizer="sgd", step_size=0.1, over_time="constant"))
    start = integrate(field, x0, GRID)
    found = evaluate(towards(x0.flip(0) + 1), start.x1, generator(0, 0))
    gradient = control_gradient(field, start, found.gradient).values
    expected = -0.1 * gradient.sum((0, 1), keepdim=True)
    torch.testing.assert_close(steps[1].control.values, expected.expand_as(steps[1].control.values))
