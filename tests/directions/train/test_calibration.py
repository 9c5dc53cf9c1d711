"""What strength 1 stands for, and what is said where no strength is safe."""

from dataclasses import replace

import pytest
import torch

from directions.apply.inversion import Inverted, invert_images, join
from directions.file.direction import Direction
from directions.photo.reading import read_photo, to_tensor
from directions.progress import Silent
from directions.train.calibration import WEAKEST, finish, held_out
from directions.train.recipe import Recipe
from directions.train.run import warn_of_weakness
from directions.train.task import Task
from flowgrad.models import load_model
from flowgrad.ode import Control
from tests.helpers.tiny import Tiny

Found = tuple[Task, Control, Inverted]


@pytest.fixture(scope="module")
def found(tiny: Tiny) -> Found:
    """A task, a control that was trained for it with nothing preserved, and held-out samples."""
    model = load_model(str(tiny.model), "cpu", "fp32")
    photos = join(invert_images(model, to_tensor([read_photo(path).rgb for path in tiny.files])))
    recipe = Recipe(iterations=2, intervals=3, augmentations=2, eta=1, step_size=0.3)
    task = Task.create(model, photos, "a smiling face", source="a serious face", recipe=recipe)
    control = list(task.steps())[-1].state.best
    return task, control, held_out(task, control)


def at_level(found: Found, level: float) -> tuple[Task, Direction]:
    """The direction for a model whose configuration asks for this effect."""
    task, control, photos = found
    config = task.model.config.model_copy(update={"effect_level": level})
    task = replace(task, model=replace(task.model, config=config))
    return task, finish(task, control, [], photos)


def test_strength_1_has_the_effect_level_of_the_models_configuration(found: Found) -> None:
    far, near = (at_level(found, level)[1].info.calibration for level in (1000.0, 0.001))
    assert far and near and 0.001 < far.level < 1000 and near.level == pytest.approx(0.001, abs=1e-4)
    assert near.unit < far.unit


def test_a_training_without_a_safe_strength_says_so(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("directions.train.calibration.safe_range", lambda effects: (0.0, 0.0))
    task, direction = at_level(found, 1000.0)
    calibration, reporter = direction.info.calibration, Silent()
    assert calibration and calibration.safe == (0, 0) and calibration.unit == WEAKEST
    assert torch.tensor(direction.u).abs().max() > 0
    warn_of_weakness(task, direction, reporter)
    assert "no strength that was tried is safe" in reporter.warnings[0]
