"""The bank that ships: every file fits its shipped model and guide, and does on a sample what its card says."""

import pytest

from directions.apply.inversion import join, sample_images
from directions.apply.steer import steer, to_control
from directions.bank.bank import Bank
from directions.file.direction import Direction
from directions.sampler.use import open_sampler
from flowgrad.guidance.classes import Classes
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.energies import ClassEnergy
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.text import log_odds
from flowgrad.models import load_model
from flowgrad.ode import Grid
from flowgrad.resources import resource

NAMES = {
    "faces64": ("angry", "baby-faced", "feminine", "masculine", "old", "serious", "smiling", "surprised"),
    "faces128": (
        *("angry", "baby-faced", "feminine", "masculine", "old", "sad", "serious", "smiling", "surprised", "young"),
    ),
}


@pytest.fixture(scope="module")
def bank():
    return Bank(resource("direction_bank"))


@pytest.fixture(scope="module", params=NAMES)
def faces(request):
    model = load_model(request.param)
    return model, join(sample_images(model, 6, seed=3000))


@pytest.mark.parametrize("model", NAMES)
def test_everything_that_ships_is_whole(bank, model):
    entries = bank.list(model)
    assert tuple(entry.name for entry in entries) == NAMES[model]
    assert not [entry.error for entry in entries if entry.error]
    assert all(entry.preview and entry.info.calibration and entry.info.thumbnail for entry in entries)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smiling", "old"])
def test_four_patterns_keep_the_effect(bank, faces, name):
    """To a hundredth; the figures of more samples are in direction_bank/EVIDENCE.md."""
    model, samples = faces
    guide, whole = load_guide(model.config.guide), bank.get(name, model.name).load()
    target = Contrast(whole.info.text, whole.info.source_text)

    def effect(direction: Direction) -> float:
        edited = steer(model, samples, to_control(direction, model))
        return float((log_odds(guide, edited, [target]) - log_odds(guide, samples.images, [target])).mean())

    assert effect(whole.compact(4)) == pytest.approx(effect(whole), rel=0.01)


def test_a_shipped_direction_raises_the_score_of_its_text(bank, faces):
    model, samples = faces
    guide = load_guide(model.config.guide)
    for entry in bank.list(model.name):
        direction = entry.load()
        assert direction.info.guide_fingerprint == guide.fingerprint
        target = Contrast(direction.info.text, direction.info.source_text)
        lacking = samples.select(log_odds(guide, samples.images, [target])[:, 0].argsort()[:2].tolist())
        edited = steer(model, lacking, to_control(direction, model))
        rise = (log_odds(guide, edited, [target]) - log_odds(guide, lacking.images, [target])).mean()
        assert rise > 0.25 * direction.info.calibration.level, entry.name


def test_strength_zero_returns_every_kind_of_photo(faces):
    """PSNR above 45 dB: the anchored trajectory has the photo at its end."""
    model, samples = faces
    control = to_control(Bank(resource("direction_bank")).get("smiling", model.name).load(), model) * 0.0
    error = (steer(model, samples, control) - samples.images.clamp(-1, 1)).square().flatten(1).mean(1) / 4
    assert error.max() < 10 ** (-4.5)


@pytest.mark.slow
def test_strength_zero_returns_test_photos(faces, shared):
    """The same for photos of the test split, every twelfth of them."""
    import csv
    import io
    import zipfile

    from PIL import Image

    from directions.apply.inversion import invert_for
    from directions.photo.faces import prepare
    from directions.photo.reading import to_tensor

    model, _ = faces
    rows = csv.DictReader((shared / "faces" / "labels.csv").read_text().splitlines())
    names = [row["file"] for row in rows if row["split"] == "test"][::12]
    with zipfile.ZipFile(shared / "faces" / "utkface_aligned.zip") as archive:
        photos = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
    images = to_tensor([prepare(photo, model.config.size, "never").image for photo in photos])
    control = to_control(Bank(resource("direction_bank")).get("smiling", model.name).load(), model) * 0.0
    for batch in invert_for(model, images, control):
        error = (steer(model, batch, control) - batch.images).square().flatten(1).mean(1) / 4
        assert error.max() < 10 ** (-4.5)


def test_the_samplers_that_ship_draw_what_they_ask_for(bank, faces):
    model, _ = faces
    entries = bank.list(model.name, "sampler")
    assert tuple(entry.name for entry in entries) == ("all-ages", "happy-women")
    assert all(entry.preview and entry.card and entry.sampler.thumbnail for entry in entries)
    drawn = join(sample_images(open_sampler("happy-women", model, bank), 3, seed=3000, grid=Grid.uniform(50, 12)))
    classes = Classes(load_guide("faces64-guide"), model.config.classes, model.config.class_offsets)
    probability = -ClassEnergy(classes, ("happy", "female"))(drawn.images)
    assert float(probability.exp().mean()) > 0.8, "a quarter of the model's own samples"
