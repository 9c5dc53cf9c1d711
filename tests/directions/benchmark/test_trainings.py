"""Trainings side by side, on a model too small to mean anything."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from directions.apply.inversion import join, sample_images
from directions.benchmark.run import Bench, Result, compare, draw, save
from directions.benchmark.trainings import compare_trainings, course_rows, effect_at, seconds_after
from directions.progress import Silent
from directions.train.recipe import Recipe
from flowgrad.errors import UsageError
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.guide_files import load_guide
from flowgrad.models import Model, load_model
from flowgrad.ode import Control, Grid
from tests.helpers.tiny import Tiny, make_model

pytest.importorskip("dlib")
SMILE = Contrast("a smiling face", "a serious face")
RECIPES = {
    "ours": Recipe(iterations=3, intervals=3, augmentations=1),
    "published": Recipe(iterations=2, forward="fine", intervals=0, anchored=False, optimizer="sgd", augmentations=1),
}


@pytest.fixture(scope="module")
def model(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("aligned") / "model"
    return load_model(str(make_model(folder, tiny.guide, aligned=True)), "cpu", "fp32")


@pytest.fixture(scope="module")
def guide(model: Model) -> Guide:
    return load_guide(model.config.guide)


def test_courses_count_what_an_update_takes_and_measure_what_it_reaches(
    model: Model, guide: Guide, tmp_path: Path
) -> None:
    courses = list(compare_trainings(model, guide, SMILE, RECIPES, (1.0, 2.0), 2, 2, 0.3, 0, Silent()))
    ours, published = courses
    assert (ours.recipe, published.recipe) == ("ours", "published")
    assert (ours.spent.evaluations, ours.spent.products) == (2 * 3, 2 * 2)
    assert published.spent.evaluations == 2 * 6
    assert ours.step_size == RECIPES["ours"].step_size
    assert published.step_size in (RECIPES["published"].step_size, 2 * RECIPES["published"].step_size)
    assert [point.updates for point in ours.points] == [1, 2, 3]
    assert [point.updates for point in published.points] == [1, 2]
    for course in courses:
        assert all(a.seconds < b.seconds for a, b in pairwise(course.points))
    head, rows = course_rows(courses)
    assert all(len(row) == len(head) for row in rows)
    bench = Bench(6, (0.005,), (1.0, 2.0), 2, 2, 0.3, 1, 0)
    data = save([Result(SMILE, (), tuple(courses))], bench, model, tmp_path / "b.json", tmp_path / "b.svg")
    assert json.loads((tmp_path / "b.json").read_text()) == json.loads(json.dumps(data))
    before = (tmp_path / "b.svg").read_bytes()
    assert draw(data, tmp_path / "b.svg").read_bytes() == before


def test_seconds_count_the_first_update_the_usual_ones_and_the_last_evaluation() -> None:
    assert seconds_after(3, [1, 4, 5, 9, 2]) == 1 + 2 * 5 + 2
    assert seconds_after(1, [1, 4, 5, 9, 2]) == seconds_after(1, [1, 2]) == 1 + 2


def test_no_control_has_no_effect(model: Model, guide: Guide) -> None:
    samples = join(sample_images(model, 2, 0))
    assert effect_at(model, guide, SMILE, samples, Control.zeros(Grid.full(6), samples.x0), 0.3) == (0, 0, 0)


def test_the_effect_is_that_at_the_distance_whatever_the_controls_length(model: Model, guide: Guide) -> None:
    samples = join(sample_images(model, 2, 0))
    draw_from = torch.Generator().manual_seed(0)
    control = Control(torch.randn(6, 1, *model.shape, generator=draw_from), Grid.full(6))
    one, ten = (effect_at(model, guide, SMILE, samples, control * factor, 0.2) for factor in (1, 10))
    assert one == pytest.approx(ten, abs=1e-3)


def test_equal_identity_needs_faces(model: Model, guide: Guide) -> None:
    other = replace(model, config=model.config.model_copy(update={"aligned_faces": False}))
    with pytest.raises(UsageError, match=r"aligned faces.*tiny"):
        compare(other, guide, [SMILE], RECIPES, Bench(6, (0.005,), (1.0,), 2, 2, 0.3, 1, 0), Silent())
