"""What strength 1 stands for, what is safe, and what is said where nothing is."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch

from directions.apply.effects import Effects, kept_at_least, measure
from directions.apply.inversion import Inverted, invert_images, join
from directions.photo.reading import read_photo, to_tensor
from directions.progress import Silent
from directions.train.calibration import TRIED, WEAKEST, finish, held_out, safe_range, saturation
from directions.train.recipe import Recipe
from directions.train.run import warn_of_weakness
from directions.train.task import Task
from flowgrad.models import load_model
from flowgrad.ode import Control
from tests.helpers.tiny import Tiny

Found = tuple[Task, Control, Inverted]
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)


def effects(effect: list[float], distance: list[float] = (), faces: int = 50, deviation: float = 0.05) -> Effects:  # type: ignore[assignment]
    """Effects on so many faces, whose distances have these means and exactly this deviation."""
    odds = np.array(effect, float)[:, None, None].repeat(faces, 1)
    spread = np.resize([1.0, -1.0], faces) * deviation * np.sqrt((faces - 1) / faces)
    apart = (
        np.array(distance)[:, None] + spread * np.abs(np.sign(STRENGTHS))[:, None]
        if len(distance)
        else np.empty((5, 0))
    )
    return Effects(STRENGTHS, odds, apart, {})


@pytest.mark.parametrize(
    ("effect", "distance", "expected"),
    [
        ([-2, -1, 0, 1, 2], [], (-1.96, 2)),
        ([-1, -1.5, 0, 1, 0.5], [], (-0.98, 1)),
        ([-1.1, -1, 0, 1, 2], [], (-1.78, 2)),
        ([1, 1, 0, -1, -2], [], (0, 0)),
        ([-2, 1, 0, 1, 2], [], (0, 2)),
        ([-2, -1, 0, 1, 2], [0.1, 0.1, 0, 0.1, 0.1], (-1.96, 2)),
    ],
)
def test_the_safe_range_ends_where_the_effect_turns_and_below_0_where_it_saturates(
    effect: list[float], distance: list[float], expected: tuple[float, float]
) -> None:
    assert safe_range(effects(effect, distance)) == pytest.approx(expected, abs=0.011)


def test_the_safe_range_ends_where_fewer_may_be_the_same_person() -> None:
    """The share below 0.6 is Phi((0.6 - mean) / deviation), less what fifty faces leave uncertain."""
    low, high = safe_range(effects([-2, -1, 0, 1, 2], [0.6, 0.3, 0, 0.4, 0.8]))
    for strength, slope in ((-low, 0.3), (high, 0.4)):
        k = (0.6 - slope * strength) / (0.05 * min(strength, 1))
        bound = k - NormalDist().inv_cdf(0.9) * np.sqrt(1 / 50 + k**2 / 98)
        assert NormalDist().cdf(bound) == pytest.approx(0.98, abs=0.003)
        assert NormalDist().cdf(k) > 0.985


def test_the_bound_of_the_share_covers_the_truth_nine_times_in_ten() -> None:
    rng, truth = np.random.default_rng(0), NormalDist().cdf((0.6 - 0.45) / 0.07)
    drawn = rng.normal(0.45, 0.07, (4000, 48))
    bounds = kept_at_least(drawn.mean(1), drawn.std(1, ddof=1), 48)
    assert 0.88 < (bounds <= truth).mean() < 0.92


@pytest.mark.parametrize(
    ("effect", "expected"), [([0, 0, 0, 1, 2], 1.96), ([0, 0, 0, 2, 2], 0.98), ([0, 0, 0, 2, 1], 0.98)]
)
def test_the_effect_saturates_near_its_most(effect: list[float], expected: float) -> None:
    assert saturation(effects(effect)) == pytest.approx(expected, abs=0.006)


def test_intervals_are_those_of_a_mean() -> None:
    odds = np.random.default_rng(0).normal(3, 2, (1, 400, 1))
    (error,) = Effects((1.0,), odds, np.empty((1, 0)), {}).error
    assert error == pytest.approx(1.96 * odds[0, :, 0].std(ddof=1) / 20, rel=1e-3)


@pytest.fixture(scope="module")
def found(tiny: Tiny) -> Found:
    """A task, a control that was trained for it with nothing preserved, and held-out samples."""
    model = load_model(str(tiny.model), "cpu", "fp32")
    photos = join(invert_images(model, to_tensor([read_photo(path).rgb for path in tiny.files])))
    recipe = Recipe(iterations=2, intervals=3, augmentations=2, eta=1, step_size=0.3)
    task = Task.create(model, photos, "a smiling face", source="a serious face", recipe=recipe)
    control = list(task.steps())[-1].state.best
    return task, control, held_out(task, control, 6)


def test_strength_1_is_the_strongest_safe_one_or_where_the_effect_saturates(found: Found) -> None:
    task, control, photos = found
    calibration = finish(task, control, [], photos).info.calibration
    measured, _ = measure(task.model, task.guide, control, photos, [task.target], TRIED)
    assert calibration and calibration.unit == pytest.approx(
        min(safe_range(measured)[1], saturation(measured)), abs=1e-6
    )
    assert calibration.level == pytest.approx(np.interp(calibration.unit, TRIED, measured.effect[:, 0]), abs=1e-3)
    assert calibration.safe[1] >= 1


def test_a_constant_control_keeps_the_grid_that_it_was_calibrated_on(found: Found) -> None:
    task, _, photos = found
    task = replace(task, recipe=task.recipe.model_copy(update={"over_time": "constant"}))
    control = list(task.steps())[-1].state.best
    direction = finish(task, control, [], photos)
    assert tuple(direction.starts) == control.grid.starts and len(control.grid) == 3
    assert (direction.u == direction.u[:1]).all()


def test_nothing_is_computed_for_strength_0(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    task, control, photos = found
    monkeypatch.setattr("directions.apply.steer.steer", lambda *_: pytest.fail("strength 0 is computed"))
    measured, images = measure(task.model, task.guide, control, photos, [task.target], (0.0,))
    assert torch.equal(images[0], photos.images.clamp(-1, 1)) and not measured.odds.any()


def test_a_training_without_a_safe_strength_says_so(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("directions.train.calibration.safe_range", lambda effects: (0.0, 0.0))
    task, control, photos = found
    direction, reporter = finish(task, control, [], photos), Silent()
    calibration = direction.info.calibration
    assert calibration and calibration.safe == (0, 0) and calibration.unit == WEAKEST
    assert torch.tensor(direction.u).abs().max() > 0
    warn_of_weakness(direction, reporter)
    assert "no strength that was tried is safe" in reporter.warnings[0]


def test_an_effect_that_may_be_chance_is_said_to_be_so(found: Found) -> None:
    task, control, photos = found
    direction, reporter = finish(task, control, [], photos), Silent()
    assert direction.info.calibration
    weak = replace(direction.info.calibration, level=0.1, error=(0.2,) * len(TRIED))
    warn_of_weakness(replace(direction, info=replace(direction.info, calibration=weak)), reporter)
    assert "0.10, within 0.20 of nothing" in reporter.warnings[0]


def test_a_wrong_sign_of_next_to_nothing_is_nothing(found: Found) -> None:
    """A few images that agree on a change which nobody could see are no reason to refuse."""
    task, control, photos = found
    direction, reporter = finish(task, control * -0.02, [], photos), Silent()
    assert direction.info.calibration and direction.info.calibration.level == 0
    warn_of_weakness(direction, reporter)
    assert "changes the text's log-odds by 0.00" in reporter.warnings[0] or "no strength" in reporter.warnings[0]
