"""Paintings and masks as people make them: of any size and mode, or wrong."""

import numpy as np
import pytest
from PIL import Image

from directions.paint.methods import check_strength
from directions.paint.request import Strokes, read_region, read_strokes
from flowgrad.errors import FlowgradError, UsageError

SIZE = 16


def saved(image, folder, name="strokes.png", **more):
    image.save(folder / name, **more)
    return folder / name


def two_halves(mode="RGB", size=(64, 64)):
    image = Image.new(mode, size, "white")
    image.paste("black", (0, 0, size[0] // 2, size[1]))
    return image


@pytest.fixture
def strokes():
    return Strokes(Image.new("RGB", (SIZE, SIZE)), (64, 64))


def test_a_painting_of_any_size_is_brought_to_the_models(tmp_path):
    for size in ((8, 8), (16, 16), (500, 500)):
        read = read_strokes(saved(two_halves(size=size), tmp_path), SIZE)
        assert read.image.size == (SIZE, SIZE) and read.size == size and not read.warnings


def test_of_a_long_painting_the_central_square_is_taken_and_said(tmp_path):
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (30, 0, 60, 30))
    image.putpixel((45, 15), (0, 255, 0))
    read = read_strokes(saved(image, tmp_path), SIZE)
    red, _, blue = read.image.getpixel((0, 8))
    assert blue > 200 > 50 > red
    (warning,) = read.warnings
    assert "90 x 30" in warning


def test_transparent_parts_are_white_and_said(tmp_path):
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 16, 32))
    read = read_strokes(saved(image, tmp_path), SIZE)
    assert read.image.getpixel((2, 8)) == (255, 255, 255) and read.image.getpixel((13, 8)) == (255, 0, 0)
    assert "transparent" in read.warnings[0]


def test_an_alpha_channel_that_hides_nothing_is_no_matter(tmp_path):
    assert not read_strokes(saved(two_halves().convert("RGBA"), tmp_path), SIZE).warnings


def test_a_painting_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    read = read_strokes(saved(two_halves(), tmp_path, "strokes.jpg", exif=exif, quality=95), SIZE)
    pixels = np.asarray(read.image.convert("L"))
    assert pixels[:6].mean() < 20 and pixels[-6:].mean() > 235


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_a_painting_of_any_mode_becomes_rgb(mode, tmp_path):
    name = "strokes.tif" if mode == "CMYK" else "strokes.png"
    read = read_strokes(saved(two_halves().convert(mode), tmp_path, name), SIZE)
    assert read.image.mode == "RGB" and read.image.getpixel((1, 8)) < (60, 60, 60)


def test_one_colour_is_said_to_be_little(tmp_path):
    assert "one colour" in read_strokes(saved(Image.new("RGB", (20, 20), "red"), tmp_path), SIZE).warnings[0]


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "strokes.png").write_text("no image")
    with pytest.raises(FlowgradError, match=r"strokes\.png"):
        read_strokes(tmp_path / "strokes.png", SIZE)


def test_a_mask_is_white_where_its_words_apply(tmp_path, strokes):
    path = saved(two_halves("L"), tmp_path, "mask.png")
    region = read_region(f"{path}=a smiling face", strokes, "a face")
    assert region.mask.shape == (SIZE, SIZE) and region.mask[:, 0].max() == 0 and region.mask[:, -1].min() == 1
    assert (region.target.text, region.target.source) == ("a smiling face", "a face")


def test_transparent_parts_of_a_mask_are_not_in_it(tmp_path, strokes):
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 64, 32))
    region = read_region(f"{saved(mask, tmp_path)}=an old face", strokes, "a face")
    assert region.mask[0].min() == 1 and region.mask[-1].max() == 0


@pytest.mark.parametrize("written", ["{mask}", "{mask}=", "{mask}=  ", "=a smiling face", "={mask}="])
def test_a_region_needs_a_mask_and_words(written, tmp_path, strokes):
    path = saved(two_halves("L"), tmp_path)
    with pytest.raises(UsageError, match="mask and words"):
        read_region(written.format(mask=path), strokes, "a face")


@pytest.mark.parametrize(("colour", "word"), [("black", "nothing"), ("white", "as the text")])
def test_a_mask_of_nothing_or_of_everything_is_refused(colour, word, tmp_path, strokes):
    path = saved(Image.new("L", (64, 64), colour), tmp_path)
    with pytest.raises(UsageError, match=word):
        read_region(f"{path}=a smiling face", strokes, "a face")


def test_a_mask_of_another_shape_is_refused(tmp_path, strokes):
    path = saved(two_halves("L", (64, 32)), tmp_path)
    with pytest.raises(UsageError, match="64 x 32"):
        read_region(f"{path}=a smiling face", strokes, "a face")


def test_a_mask_of_the_same_shape_may_have_another_size(tmp_path, strokes):
    path = saved(two_halves("L", (200, 200)), tmp_path)
    assert read_region(f"{path}=a smiling face", strokes, "a face").mask.shape == (SIZE, SIZE)


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0, float("nan")])
def test_a_strength_that_leaves_no_say_is_refused(strength):
    with pytest.raises(UsageError, match="strength"):
        check_strength(strength)
