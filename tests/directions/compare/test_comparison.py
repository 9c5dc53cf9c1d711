"""Methods on photos, on a model too small to mean anything; and going on after an interruption."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from directions.apply.inversion import Inverted, invert_images, join, sample_images
from directions.apply.steer import sweep
from directions.compare import methods
from directions.compare.comparison import Measures, Record, begin, compare_methods
from directions.compare.methods import Setting, finder, inversion_evaluations
from directions.compare.names import Method
from directions.progress import Silent
from directions.train.recipe import Recipe
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.text import contrast_vectors
from flowgrad.models import load_model
from flowgrad.models.metering import metered
from flowgrad.ode import Control, Grid, integrate
from tests.helpers.tiny import Tiny, make_model

pytest.importorskip("dlib")
STRENGTHS = (0.5, 1.0)
SMILE = Contrast("a smiling face", "a serious face")
SHARED = (Method.DIRECTION, Method.FINE, Method.SHARED, Method.CONSTANT, Method.INITIAL)


@pytest.fixture(scope="module")
def setting(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("aligned") / "model"
    model = load_model(str(make_model(folder, tiny.guide, aligned=True)), "cpu", "fp32")
    draw = torch.Generator().manual_seed(0)
    control = Control(0.3 * torch.randn(3, 1, *model.shape, generator=draw), Grid((0, 2, 4), 6))
    recipe = Recipe(iterations=1, intervals=3, augmentations=1, eta=1)
    samples = join(sample_images(model, 2, 0))
    return Setting(model, load_guide(model.config.guide), SMILE, (), recipe, control, samples)


@pytest.fixture(scope="module")
def images(setting: Setting) -> Tensor:
    return join(sample_images(setting.model, 3, 1)).images.clamp(-1, 1)


@pytest.fixture(scope="module")
def photos(setting: Setting, images: Tensor) -> Inverted:
    return join(list(invert_images(setting.model, images)))


def compared(setting: Setting, images: Tensor, path: Path, *asked: Method, strengths: tuple[float, ...] = STRENGTHS):  # type: ignore[no-untyped-def]
    names = [f"photo {i}" for i in range(len(images))]
    measures = Measures(None, "", None)
    return compare_methods(setting, images, names, asked, strengths, measures, path, Silent())


def test_every_method_is_measured_and_an_interrupted_run_goes_on(
    setting: Setting, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "POOL", 8)
    path = tmp_path / "results.jsonl"
    records = compared(setting, images, path, *Method)
    assert [(r.method, r.photo) for r in records] == [(m.value, f"photo {i}") for m in Method for i in range(3)]
    for record in records:
        assert len(record.effect) == len(record.identity) == len(record.l1) == len(STRENGTHS)
        assert record.judged == record.lpips == []
    costs = {record.method: (record.evaluations, record.products) for record in records}
    assert costs["direction"] == costs["shared"] == costs["constant"] == costs["mean-difference"] == (1 + 4 + 3, 0)
    assert costs["direction-fine"] == (1 + 6 + 6, 0)
    assert costs["classifier-guidance"] == (1 + 4 + 3, 3)
    assert costs["optimize"] == (1 + 6 + 3 + 3, 2), "its first simulation is the inversion"
    assert costs["published"] == (1 + 6 + 11 * 6 + 6, 10 * 5)  # of so few steps each is an interval
    assert costs["sdedit"] == (1, 0)  # the last of six steps, from t0 = 0.8 on
    whole = path.read_text()
    lines = whole.splitlines()
    path.write_text("\n".join(lines[:-4]) + "\n" + lines[-4][:20])  # cut off within a line
    again = compared(setting, images, path, *Method)

    def same(record: Record) -> Record:
        return replace(record, seconds=0)

    assert list(map(same, again)) == list(map(same, records))
    assert compared(setting, images, path, Method.DIRECTION) == again
    with pytest.raises(UsageError, match=r"another comparison \(strengths differ\)"):
        compared(setting, images, path, Method.DIRECTION, strengths=(2.0,))
    path.write_text("nothing\n")
    with pytest.raises(FlowgradError, match="not a comparison"):
        begin(path, {})


@pytest.mark.parametrize("method", [*SHARED, Method.OPTIMIZE, Method.MEAN_DIFFERENCE, Method.GUIDANCE])
def test_strength_zero_returns_the_photo(
    setting: Setting, photos: Inverted, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "POOL", 8)
    (edited,) = finder(method, setting)(photos)((0.0,))
    torch.testing.assert_close(edited, photos.images, atol=1e-4, rtol=0)


def test_the_direction_is_applied_as_ever(setting: Setting, photos: Inverted) -> None:
    edited = finder(Method.DIRECTION, setting)(photos)(STRENGTHS)
    assert torch.equal(edited, sweep(setting.model, photos, setting.control, STRENGTHS))


def test_inversion_is_counted_as_it_is_done(setting: Setting, images: Tensor) -> None:
    model, meter = metered(setting.model)
    for method, grid in ((Method.DIRECTION, Grid((0, 2, 3, 4), 6)), (Method.FINE, Grid.full(6))):
        grid = grid if method is Method.FINE else setting.control.grid | Grid.uniform(6, 2)
        _, spent = meter.measure(lambda grid=grid: list(invert_images(model, images, grid=grid)))  # type: ignore[misc]
        assert spent.evaluations == len(images) * inversion_evaluations(method, setting.control)


def test_the_gradient_of_guidance_is_that_of_the_estimated_image(setting: Setting) -> None:
    model, x, t = setting.model, setting.samples.x0, torch.tensor(0.4)
    leaf = x.clone().requires_grad_()
    estimate = leaf + (1 - t) * model.velocity(leaf, t)
    embeddings = setting.guide.encode_images(model.decode(estimate))
    (expected,) = torch.autograd.grad((embeddings @ contrast_vectors(setting.guide, [SMILE]).T).sum(), leaf)
    v, found = methods._score_gradient(setting, x, t)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(v, model.velocity(x, t))


def test_the_later_part_of_a_field_ends_where_the_whole_does(setting: Setting) -> None:
    field, x0 = setting.model.velocity, setting.samples.x0
    whole = integrate(field, x0, Grid.full(6))
    rest = integrate(lambda x, t: methods._later(field, 4 / 6, x, t), whole.states[4], Grid.full(2))
    torch.testing.assert_close(rest.x1, whole.x1, atol=1e-5, rtol=1e-4)
