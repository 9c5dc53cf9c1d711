"""Applying, calibrating and training through the Python interface, on a model too small to mean anything."""

import dataclasses

import numpy as np
import pytest
import torch

from directions.apply.effects import measure
from directions.apply.inversion import (
    ANCHORED_EULER,
    Inversion,
    invert_for,
    invert_images,
    join,
    quarter_grid,
    sample_images,
)
from directions.apply.steer import apply_direction, steer, sweep, to_control
from directions.train.calibration import finish, held_out
from directions.train.recipe import Recipe, load_recipe
from directions.train.task import Task
from directions.train.training import train_direction
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.text import log_odds
from flowgrad.ode import Control, Grid

QUICK = Recipe(iterations=2, intervals=3, augmentations=2)
EFFECTIVE = QUICK.model_copy(update={"eta": 1.0, "step_size": 0.3, "keep_weight": 0.0})  # whatever it does to a photo


def task(model, images, **changes):
    told = {"source": "a serious face", "keep": ["a woman - a man"], "recipe": QUICK, **changes}
    return Task.create(model, join(invert_images(model, images)), "a smiling face", **told)


@pytest.fixture(scope="module")
def direction(model, images):
    """A control as large as trained ones are, which steps of this length find even with a random guide."""
    asked = task(model, images, recipe=EFFECTIVE)
    control = list(asked.steps())[-1].state.best
    return finish(asked, control, [3.0, 2.0, 1.0], held_out(asked, control))


def test_strength_zero_returns_the_photo(model, images, direction):
    torch.testing.assert_close(apply_direction(model, images, (direction, 0.0)), images, atol=1e-5, rtol=0)


def test_a_direction_says_how_it_was_made(model, direction):
    info = direction.info
    assert (info.text, info.source_text, info.keep) == ("a smiling face", "a serious face", ("a woman - a man",))
    assert (info.model, info.fingerprint, info.steps, info.shape) == (model.name, model.fingerprint, 6, (3, 16, 16))
    assert (info.images, info.iterations, len(info.losses)) == (4, 2, 3)
    assert set(info.calibration.side_effects) == set(model.config.probes)
    assert abs(info.calibration.effect[info.calibration.strengths.index(0.0)]) < 1e-4
    assert np.abs(direction.u).max() > 0.1
    assert info.calibration.safe[0] <= 0 <= 1 <= info.calibration.safe[1] + 1e-9


def test_training_is_repeatable_and_reports_every_evaluation(model, images):
    trainings = []
    first, again = (
        train_direction(model, images, "a smiling face", recipe=EFFECTIVE, report=trainings.append) for _ in range(2)
    )
    assert np.array_equal(again.u, first.u)
    assert [training.history[-1].iteration for training in trainings] == [0, 1, 2, 0, 1, 2]
    assert first.u.any()
    assert first.info.losses == tuple(round(loss, 6) for loss in trainings[2].losses)


@pytest.mark.parametrize("controls", [1, 4])  # one for all photos, or one for each
def test_a_sweep_is_every_photo_at_every_strength(model, images, controls):
    inverted, strengths = join(invert_images(model, images)), [-1.0, 0.5, 0.0, 2.0]
    values = torch.randn(2, controls, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    control = Control(values, Grid((0, 3), 6))
    for strength, edited in zip(strengths, sweep(model, inverted, control, strengths), strict=True):
        torch.testing.assert_close(edited, steer(model, inverted, control * strength), atol=1e-4, rtol=1e-4)


def test_directions_add_and_undo_each_other(model, images, direction):
    both = apply_direction(model, images, (direction, 0.7), (direction, 0.3))
    torch.testing.assert_close(both, apply_direction(model, images, (direction, 1.0)), atol=1e-4, rtol=1e-4)
    undone = apply_direction(model, images, (direction, 1.0), (direction, -1.0))
    torch.testing.assert_close(undone, images, atol=1e-4, rtol=0)


def test_a_coarse_inversion_edits_as_the_fine_one_does(model, images, direction):
    control = to_control(direction, model)
    assert set(control.grid.knots) <= set(ANCHORED_EULER.grid(control).knots)
    fine = steer(model, join(invert_images(model, images)), control)
    effect = (fine - images).square().mean()
    assert (apply_direction(model, images, (direction, 1.0)) - fine).square().mean() < 0.1 * effect


def test_few_intervals_begin_where_photos_are_inverted_anyway(model, images):
    (inverted,) = invert_images(model, images, grid=Grid.full(40))
    few, many = inverted.grid(4, 0.005), inverted.grid(30, 0.005)
    assert 1 < len(few) <= 4 and set(few.starts) <= set(quarter_grid(40).starts)
    assert len(many) > len(quarter_grid(40)), "as many as were asked for"


@pytest.mark.parametrize("written", ["anchored euler", "euler", "fixed-point", "anchored fixed-point", "rk45"])
def test_a_direction_is_applied_by_the_inversion_that_it_was_trained_with(model, images, direction, written):
    way = Inversion.parse(written)
    assert str(way) == written
    trained = dataclasses.replace(direction, info=dataclasses.replace(direction.info, inversion=written))
    control = to_control(direction, model)
    expected = steer(model, join(invert_for(model, images, control, way)), control)
    torch.testing.assert_close(apply_direction(model, images, (trained, 1.0)), expected)
    grid = way.grid(control) if written == "anchored euler" else None  # else all N steps
    inverted = join(invert_images(model, images, way, grid))
    assert inverted.anchored == way.anchored
    torch.testing.assert_close(steer(model, inverted, control), expected)


def test_a_recipe_s_inversion_is_stored_and_used_for_calibration(model, images):
    plain = EFFECTIVE.model_copy(update={"inversion": "fixed-point", "anchored": False})
    asked = task(model, images, recipe=plain)
    assert asked.photos.residual(Grid.full(6)) is None
    control = list(asked.steps())[-1].state.best
    photos = held_out(asked, control)
    assert not photos.anchored and len(photos.trajectory.grid) == 6
    assert finish(asked, control, [1.0], photos).info.inversion == "fixed-point"


def test_directions_of_different_inversions_do_not_add(model, images, direction):
    other = dataclasses.replace(direction, info=dataclasses.replace(direction.info, inversion="rk45"))
    with pytest.raises(UsageError, match=r"anchored euler.*rk45"):
        apply_direction(model, images, (direction, 0.5), (other, 0.5))


def test_samples_do_not_depend_on_their_number_and_are_anchored(model):
    some, one, other = (join(sample_images(model, count, seed)) for count, seed in ((3, 4), (1, 4), (1, 5)))
    torch.testing.assert_close(some.images[:1], one.images, atol=1e-5, rtol=1e-5)
    assert (some.images[1:2] - other.images).abs().max() > 0.1, "seeds do not share images"
    back = steer(model, some, Control.zeros(Grid((0, 2), 6), some.images))
    torch.testing.assert_close(back, some.images.clamp(-1, 1), atol=1e-5, rtol=0)


def test_batches_are_split_and_joined(model, images):
    whole = join(invert_images(model, images))
    small = dataclasses.replace(model, config=model.config.model_copy(update={"batch": 3}))
    parts = list(invert_images(small, images))
    assert [len(part) for part in parts] == [3, 1]
    torch.testing.assert_close(join(parts).trajectory.states, whole.trajectory.states, atol=1e-5, rtol=1e-5)


def test_strength_one_has_the_effect_that_the_calibration_states(model, images, direction):
    """Measured anew on the same held-out samples; F16 and the interpolation between strengths are the difference."""
    calibration, guide = direction.info.calibration, load_guide(model.config.guide)
    target = Contrast(direction.info.text, direction.info.source_text)
    strengths, control = calibration.strengths, to_control(direction, model)
    photos = held_out(task(model, images), control)
    again, _ = measure(model, guide, control, photos, [target], strengths)
    np.testing.assert_allclose(again.effect[:, 0], calibration.effect, atol=5e-3)
    np.testing.assert_allclose(again.error, calibration.error, atol=5e-3)


def test_strength_is_calibrated_on_samples_that_lack_the_text(model, images):
    asked, control = task(model, images), Control(torch.zeros(2, 1, 3, 16, 16), Grid((0, 3), 6))
    drawn = join(sample_images(model, 6, 1_000_000, ANCHORED_EULER.grid(control))).images
    scores = log_odds(asked.guide, drawn, [asked.target])[:, 0]
    chosen = held_out(asked, control, 4).images
    assert sorted(log_odds(asked.guide, chosen, [asked.target])[:, 0].tolist()) == pytest.approx(
        sorted(scores.tolist())[:4], abs=1e-4
    )


def test_a_control_that_lowers_its_own_text_is_refused(model, images):
    asked = task(model, images, recipe=EFFECTIVE)
    control = list(asked.steps())[-1].state.best * -1.0
    photos = held_out(asked, control)
    with pytest.raises(FlowgradError, match=r"a smiling face.* by -\d\.\d+: it does the opposite"):
        finish(asked, control, [1.0], photos)


def test_a_training_that_found_nothing_is_an_error(model, images):
    asked = task(model, images)
    with pytest.raises(FlowgradError, match=r"no change at all.*--step-size.*keep_weight"):
        finish(asked, Control(torch.zeros(2, 1, 3, 16, 16), Grid((0, 3), 6)), [1.0], asked.photos)


def test_no_photo_is_refused(model, images):
    with pytest.raises(UsageError, match="at least one photo"):
        Task.create(model, join(invert_images(model, images)).select([]), "a smiling face")


def test_recipes_are_checked():
    assert load_recipe("default") == Recipe(), "the defaults in the code and in the file must agree"
    assert load_recipe("default", eta=0.2).eta == 0.2
    with pytest.raises(UsageError, match="no 'defualt' in configs/recipes; there is default"):
        load_recipe("defualt")
    with pytest.raises(UsageError, match=r"absent.yaml does not exist; there is default"):
        load_recipe("absent.yaml")
    with pytest.raises(UsageError, match=r"default: eta: .*less than or equal to 1; got 3"):
        load_recipe("default", eta=3)
    with pytest.raises(UsageError, match="unknown key 'stepsize'; did you mean 'step_size'"):
        load_recipe("default", stepsize=3)
    with pytest.raises(UsageError, match="keep_activations needs products above 0 where forward is fine"):
        load_recipe("paper", keep_activations=True)
    assert load_recipe("paper", products=7, keep_activations=True).settings(0, mirror=False).keep_activations


def test_what_is_kept_decides_which_recipe_is_usual(model, images):
    photos = join(invert_images(model, images[:1]))
    for keep, name in (((), "default"), (("an old face - a young face",), "keep")):
        assert Task.create(model, photos, "a smiling face", keep=keep).recipe == load_recipe(name)
    assert load_recipe("default") != load_recipe("keep")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 2024-13-45", "not a readable YAML file"),
        ("1: x", "keys must be words, and 1 is none"),
        ("[", "not a readabl"),
    ],
)
def test_a_recipe_that_is_no_table_of_words_is_refused(tmp_path, text, told):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=told):
        load_recipe(str(tmp_path / "mine.yaml"))
