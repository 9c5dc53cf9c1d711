"""Figures: their sizes, their labels, and that nothing in them is lost."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from directions.figures import before_after, contact_sheet, curves, enlarge, preview, strength_label, strip, thumbnail
from directions.file.direction import DirectionInfo
from directions.train.training import Record
from flowgrad.errors import UsageError

COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta")


def squares(count: int, size: int = 64) -> list[Image.Image]:
    return [Image.new("RGB", (size, size), COLOURS[i % len(COLOURS)]) for i in range(count)]


def colours_of(image: Image.Image) -> set[tuple[int, int, int]]:
    found = image.getcolors(1 << 20)
    assert found is not None
    return {colour for count, colour in found if count >= 64 * 64}  # type: ignore[misc]


@pytest.mark.parametrize(("size", "shown"), [(16, 128), (64, 128), (96, 96), (256, 256)])
def test_small_images_are_enlarged_by_a_whole_factor(size: int, shown: int) -> None:
    assert enlarge(squares(1, size)[0]).size == (shown, shown)


def test_strengths_are_labelled_with_a_true_minus() -> None:
    assert [strength_label(s) for s in (-1, -0.5, 0, 0.5, 1)] == ["−1", "−0.5", "photo", "+0.5", "+1"]


def test_a_contact_sheet_shows_every_image() -> None:
    sheet = contact_sheet(squares(6), [f"photo {i}" for i in range(6)], columns=4, title="Six")
    assert colours_of(sheet) >= {im.getpixel((0, 0)) for im in squares(6)}
    assert sheet.width < 4 * 150 and sheet.height < 2 * 190
    made = strip(squares(5), [strength_label(s) for s in (-1, -0.5, 0, 0.5, 1)], "photo.jpg")
    assert made.width > 5 * 128 and made.height < 2 * 128  # one row


def test_labels_take_space_where_there_are_some_and_stay_under_their_image() -> None:
    assert contact_sheet(squares(2)).height < contact_sheet(squares(2), ["a", "b"]).height
    sheet = np.asarray(contact_sheet(squares(2), ["x" * 200, ""], columns=1))
    assert (sheet[:, -10:] == 255).all() and (sheet[:, :10] == 255).all()


def test_before_and_after_go_on_below() -> None:
    few, many = (before_after({"photo": squares(n), "+1": squares(n)}, "Smiling") for n in (3, 12))
    assert many.height > 1.7 * few.height and many.width > few.width
    assert colours_of(few) >= {im.getpixel((0, 0)) for im in squares(3)}


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="got 0 and 0"):
        contact_sheet([])
    with pytest.raises(UsageError, match="got 2 and 1"):
        contact_sheet(squares(2), ["one"])
    with pytest.raises(UsageError, match=r"\[1, 2\]"):
        before_after({"photo": squares(2), "+1": squares(1)})


def test_a_thumbnail_fits_a_header() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    images = [Image.fromarray(each) for each in noise]
    for size in (64, 256):
        made = thumbnail(*([im.resize((size, size)) for im in half] for half in (images[:4], images[4:])))
        assert len(made) < 42_000
        DirectionInfo(title="T", model="m", fingerprint="f", steps=1, thumbnail=made)
        with Image.open(io.BytesIO(base64.b64decode(made.split(",")[1]))) as image:
            assert image.format == "JPEG" and image.width > image.height


def test_a_preview_has_samples_above_and_edits_below() -> None:
    with Image.open(io.BytesIO(preview(squares(4), squares(4)))) as image:
        assert image.format == "PNG" and image.width > 4 * 128 and 2 * 128 <= image.height < 3 * 128


def test_curves_are_drawn_without_a_display(tmp_path: Path) -> None:
    terms = {"text": -0.3, "preserve": 0.1}
    history = [Record(i, -0.2 * i, terms, 0.1, i == 2) for i in range(3)]
    path = curves(history, [0.5, 0.01, 0.001, 0.2], (0, 1, 3, 4), tmp_path / "curves.png")
    with Image.open(path) as image:
        assert image.width > 1000
    with pytest.raises(UsageError, match="exists already"):
        curves(history, [0.5, 0.1], (0, 2), path)


def test_pictures_that_are_no_squares_lie_close_together() -> None:
    for size in ((200, 130), (130, 200)):
        sheet = contact_sheet([Image.new("RGB", size, "red")] * 4, ["a"] * 4, columns=2)
        assert sheet.size == (2 * size[0] + 38, 2 * size[1] + 78)
        colours = {colour: count for count, colour in sheet.getcolors(1 << 20) or ()}
        assert colours[(255, 0, 0)] == 4 * size[0] * size[1]


def test_any_name_of_a_file_can_be_drawn() -> None:
    for name in ("two\nlines.jpg", "caf\udce9.jpg", "\x1b[31mred.jpg", "\u202egpj.jpg"):
        sheet = contact_sheet(squares(2), [name, name], title=name)
        assert sheet.size == contact_sheet(squares(2), "ab", title="a").size
