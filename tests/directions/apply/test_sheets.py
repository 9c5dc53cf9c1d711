"""Contact sheets of many photos: how much is on each, and that none is left out."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from directions.apply.sheets import SHEET_ROWS, Sheets
from directions.figures import GAP, MARGIN


@dataclass
class Shown:
    photo: Path
    images: tuple[Image.Image, ...]


def shown(count: int = 2, side: int = 16) -> Shown:
    return Shown(Path("photo.png"), (Image.new("RGB", (side, side), "red"),) * count)


@pytest.mark.parametrize(("strengths", "across"), [((), 4), ((0.0, 1.0), 2), (tuple(map(float, range(12))), 1)])
def test_a_sheet_has_some_rows_and_the_next_goes_on(tmp_path: Path, strengths: tuple[float, ...], across: int) -> None:
    count = 2 * SHEET_ROWS * across + 1
    sheets = Sheets(count, strengths, "old", tmp_path, "old")
    assert [path.name for path in sheets.paths] == [f"contact-sheet-old{i}.png" for i in ("", "-2", "-3")]
    for i in range(count):
        assert len(sheets.written) == i // sheets.per_sheet
        sheets.add(shown(1 + max(1, len(strengths))))
    assert tuple(sheets.written) == sheets.paths
    heights = [Image.open(path).height for path in sheets.paths]
    assert heights[0] == heights[1] > SHEET_ROWS * 128 > 10 * heights[2]


def test_photos_that_were_not_edited_take_no_place(tmp_path: Path) -> None:
    sheets = Sheets(3, (), "old", tmp_path, "old")
    for outcome in (shown(), shown(0), shown()):
        sheets.add(outcome)
    with Image.open(sheets.written[0]) as sheet:
        assert sheet.width == 2 * MARGIN + 4 * (128 + GAP) - GAP and sheet.height < 2 * 128
    none = Sheets(1, (), "old", tmp_path / "none", "old")
    none.add(shown(0))
    assert none.written == [] and not (tmp_path / "none").exists()


def test_large_images_are_reduced(tmp_path: Path) -> None:
    sheets = Sheets(1, (), "old", tmp_path, "old")
    sheets.add(shown(side=2000))
    with Image.open(sheets.written[0]) as sheet:
        assert sheet.width < 2 * 256 + 50
