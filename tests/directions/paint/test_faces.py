"""Paintings on the default model: what its card claims, on a few images."""

import pytest
import torch
from PIL import Image, ImageDraw

from directions.apply.inversion import join, sample_images
from directions.apply.steer import steer
from directions.paint import composition
from directions.paint.job import Plan, open_job, paint
from directions.paint.methods import Method
from directions.paint.regions import ITERATIONS, changed, with_words
from directions.photo.reading import to_tensor
from directions.progress import Silent
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide_files import load_guide
from flowgrad.model_config import load_config
from flowgrad.models import load_model
from flowgrad.ode import Grid
from flowgrad.optimize import Settings
from flowgrad.painting.blur import rmse
from flowgrad.painting.objective import Words
from flowgrad.painting.regions import Region

pytestmark = pytest.mark.slow
SMILING = Contrast("a smiling face", "a serious face")


@pytest.fixture
def strokes():
    image = Image.new("RGB", (128, 128), (120, 140, 150))
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, -40, 123, 125), fill=(70, 42, 28))
    draw.ellipse((21, -5, 107, 119), fill=(216, 164, 136))
    return to_tensor([image])


def test_gradop_plus_is_nearer_to_a_painting_than_sdedit_of_the_same_look(strokes):
    job = open_job(load_config("faces128"), "cpu", "auto", None, None)
    errors = {
        method: float(rmse(paint(job, strokes, Plan(method, strength), 3, Silent()), strokes).mean())
        for method, strength in ((Method.gradop_plus, None), (Method.sdedit, 0.7))
    }
    assert errors[Method.gradop_plus] < errors[Method.sdedit]


def test_a_region_gains_most_of_the_text_and_keeps_what_is_outside():
    model = load_model("faces128", "cpu")
    guide = load_guide("faces64-guide")
    images = join(sample_images(model, 3, 7, Grid.uniform(50, 10))).images.clamp(-1, 1)
    mouth = torch.zeros(1, 1, 128, 128)
    mouth[..., 68:112, 28:100] = 1
    everywhere = torch.ones(1, 1, 128, 128)
    settings, found = Settings(iterations=ITERATIONS), {}
    for name, mask in (("mouth", mouth), ("whole", everywhere)):
        regions = (Region.soft(mask, Words(guide, SMILING)),)
        edited = with_words(model, images, regions, settings, Silent())
        found[name] = changed(images, edited, regions)
        if name == "mouth":
            assert torch.equal(edited[..., :60, :], images[..., :60, :])  # the mask fades out above
    assert found["mouth"].gains[0] >= 0.6 * found["whole"].gains[0]
    assert found["mouth"].outside <= 0.1 * found["mouth"].inside


def test_a_composition_trained_on_some_seeds_paints_others_as_well(strokes):
    model = load_model("faces128", "cpu")
    samples = join(sample_images(model, 4, 11))
    how = composition.settings(4, 0)
    *_, step = composition.compose(model, strokes, samples, None, how)
    trained = float(rmse(steer(model, samples, step.state.best), strokes).mean())
    others, _, errors = composition.on_seeds(model, step.state.best, strokes, 6, 0)
    assert float(errors.mean()) <= 1.2 * trained
    assert trained < 0.6 * float(rmse(samples.images, strokes).mean())
    assert len(others) == 6
