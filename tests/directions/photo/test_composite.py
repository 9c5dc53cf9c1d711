"""Edits put back into photos: what changes, and what never does."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import directions.photo.composite as composite_module
from directions.photo.composite import Patch, composite, mask, to_size, warp
from directions.photo.crop import Box, Place
from tests.helpers.pictures import picture as photo

SIZE = 16
TURNED = Place(((60.0, 20.0), (110.0, 40.0), (90.0, 90.0), (40.0, 70.0)), "face")


def patch(place: Place = TURNED, value: float = 0.2) -> Patch:
    return Patch(np.full((SIZE, SIZE, 3), value, np.float32), place)


def whole(place: Place, image: Image.Image) -> np.ndarray:
    return mask(place, (0, 0, *image.size))


def warped(patch: Patch, box: Box) -> np.ndarray:
    return warp(to_size(patch), patch.place, box)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "CMYK", "I;16"])
def test_outside_the_mask_and_at_no_difference_every_byte_stays(mode: str) -> None:
    before = photo(mode)
    after = composite(before, [patch()])
    assert after.mode == before.mode and after.size == before.size
    outside = whole(TURNED, before) == 0
    assert 0.5 < outside.mean() < 0.95
    old, new = np.asarray(before), np.asarray(after)
    assert np.array_equal(old[outside], new[outside]) and not np.array_equal(old, new)
    assert composite(before, [patch(value=0.0)]).tobytes() == before.tobytes()
    assert composite(before, [patch(value=1e-6)]).tobytes() == before.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "CMYK", "I;16"])
def test_every_mode_gets_lighter_by_the_same_amount(mode: str) -> None:
    grey = {"RGB": (90,) * 3, "RGBA": (90, 90, 90, 7), "L": 90, "LA": (90, 7), "CMYK": (100, 100, 100, 60)}
    flat = Image.new(mode, (160, 120), grey.get(mode, 90 * 257))
    after = composite(flat, [patch(value=0.2)])
    before, changed = (each.convert("RGB") if mode != "I;16" else each for each in (flat, after))
    centre = (75, 55)
    step = np.subtract(changed.getpixel(centre), before.getpixel(centre)) / (257 if mode == "I;16" else 1)
    assert np.allclose(step, 0.2 * 127.5, atol=1.5)
    if mode in ("RGBA", "LA"):
        assert after.getchannel("A").getextrema() == (7, 7)
    if mode == "CMYK":
        assert after.getchannel("K").getextrema() == (60, 60)


def test_a_crop_of_the_photos_own_size_is_added_exactly() -> None:
    difference = np.random.default_rng(1).normal(0, 0.1, (SIZE, SIZE, 3)).astype(np.float32)
    place = Place.centre(SIZE, SIZE)
    assert np.array_equal(warped(Patch(difference, place), (0, 0, SIZE, SIZE)), difference)
    assert (mask(place, (0, 0, SIZE, SIZE)) == 1).all()


def test_a_spot_goes_where_the_alignment_took_it_from() -> None:
    difference = np.zeros((SIZE, SIZE, 3), np.float32)
    difference[4, 11] = 1.0  # row, column
    found = warped(Patch(difference, TURNED), (0, 0, 160, 120))[..., 0]
    y, x = np.unravel_index(found.argmax(), found.shape)
    origin, right, down = (np.array(TURNED.corners[i]) for i in (0, 1, 3))
    wanted = origin + (right - origin) * 11.5 / SIZE + (down - origin) * 4.5 / SIZE
    assert np.hypot(x + 0.5 - wanted[0], y + 0.5 - wanted[1]) < 1


def test_masks_fade_where_the_photo_goes_on() -> None:
    face = whole(TURNED, photo())
    assert face[55, 75] == 1 and face[25, 62] == 0 and 0 < np.abs(np.diff(face, axis=1)).max() < 0.2
    wide = whole(Place.centre(160, 120), photo())
    assert (wide[:, :20] == 0).all() and (wide[:, 80] == 1).all() and wide[0, 22] < 0.5
    tall = mask(Place.centre(120, 160), (0, 0, 120, 160))
    assert (tall[:20] == 0).all() and (tall[80] == 1).all()


def test_a_face_at_the_edge_of_the_photo_is_cut_off_there() -> None:
    place = Place(((-30.0, -20.0), (40.0, -20.0), (40.0, 50.0), (-30.0, 50.0)), "face")
    after = np.asarray(composite(photo(), [patch(place)]))
    assert not np.array_equal(after[:20, :20], np.asarray(photo())[:20, :20])
    outside = Place(((-90.0, 0.0), (-40.0, 0.0), (-40.0, 50.0), (-90.0, 50.0)), "face")
    assert composite(photo(), [patch(outside)]).tobytes() == photo().tobytes()


def test_faces_whose_masks_overlap_share_what_is_changed() -> None:
    flat = Image.new("RGB", (160, 120), (90, 90, 90))
    near = Place(tuple((x + 12, y + 4) for x, y in TURNED.corners), "face")
    both = np.asarray(composite(flat, [patch(), patch(near)])).astype(float)[..., 0] - 90
    one = np.asarray(composite(flat, [patch()])).astype(float)[..., 0] - 90
    assert both.max() <= one.max() + 1 and (whole(TURNED, flat) * whole(near, flat)).max() == 1
    alone = (whole(near, flat) == 0) & (whole(TURNED, flat) > 0)
    assert alone.any() and np.array_equal(both[alone], one[alone])
    empty = composite(flat, [patch(), patch(near, 0.0)])
    assert empty.tobytes() == composite(flat, [patch()]).tobytes()


def test_a_large_face_is_changed_in_bands_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    difference = np.random.default_rng(1).normal(0, 0.2, (SIZE, SIZE, 3)).astype(np.float32)
    at_once = np.asarray(composite(photo(), [Patch(difference, TURNED)])).astype(int)
    monkeypatch.setattr(composite_module, "_BAND_PIXELS", 500)
    banded = np.asarray(composite(photo(), [Patch(difference, TURNED)])).astype(int)
    assert np.abs(at_once - banded).max() <= 1 and (at_once != banded).mean() < 0.001


def test_a_small_face_gets_the_mean_of_what_changed() -> None:
    """Stripes of one pixel of the model's are nothing in a face a quarter of its size."""
    difference = np.zeros((SIZE, SIZE, 3), np.float32)
    difference[:, ::2], difference[:, 1::2] = 0.5, -0.5
    place = Place(((10.0, 10.0), (14.0, 10.0), (14.0, 14.0), (10.0, 14.0)), "none")
    assert np.abs(warped(Patch(difference, place), (10, 10, 14, 14))).max() < 0.1


# --- real faces -------------------------------------------------------------------------------------------------


def edited(path: Path, spec: str, folder: Path, *more: str) -> Image.Image:
    from typer.testing import CliRunner

    from cli import app

    arguments = ["apply-direction", spec, str(path), "--output", str(folder), "--bank", str(folder / "bank"), *more]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (written,) = folder.glob("*.png")
    return Image.open(written)


@pytest.mark.slow
def test_the_public_portrait_smiles_more_and_less(tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="needs the extra `faces`")
    data = pytest.importorskip("skimage.data", reason="needs scikit-image")
    from directions.photo.faces import cut_out, find_faces, look

    path, portrait = tmp_path / "astronaut.png", Image.fromarray(data.astronaut())
    portrait.save(path)
    _, place = cut_out(look(portrait, find_faces(portrait)[0]))
    outside = whole(place, portrait) == 0
    old = np.asarray(portrait)
    for spec in ("smiling:1", "smiling:-0.7", "old:1", "old:-1"):
        new = np.asarray(edited(path, spec, tmp_path / spec.replace(":", "")))
        assert np.array_equal(old[outside], new[outside]), spec
        assert np.abs(old[~outside].astype(int) - new[~outside]).mean() > 2, spec
    edited(path, "smiling:0", tmp_path / "zero")
    assert (tmp_path / "zero" / "astronaut-smiling@0.png").read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_each_face_of_a_group_is_found_and_edited_alone(tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="needs the extra `faces`")
    from directions.apply.inversion import join, sample_images
    from directions.photo.faces import cut_out, find_faces, look
    from directions.photo.reading import to_images
    from flowgrad.models import load_model

    group = Image.new("RGB", (900, 400), (120, 130, 140))
    for i, sample in enumerate(to_images(join(sample_images(load_model(), 3, seed=41)).images)):
        group.paste(sample.resize((220, 220), Image.Resampling.LANCZOS), (40 + 290 * i, 60 + 40 * i))
    group.save(tmp_path / "group.png")
    faces = sorted(find_faces(group))
    assert len(faces) == 3
    masks = [whole(cut_out(look(group, face))[1], group) > 0 for face in faces]
    old = np.asarray(group)
    for number in (None, 1, 2, 3):
        more = () if number is None else ("--face", str(number))
        new = np.asarray(edited(tmp_path / "group.png", "smiling:1", tmp_path / f"out-{number}", *more))
        changed = (old != new).any(-1)
        for i, inside in enumerate(masks, 1):
            assert changed[inside].any() == (number in (None, i)), (number, i)
        assert not changed[~np.any(masks, axis=0)].any()
