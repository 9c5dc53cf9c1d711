"""Faces of all sizes in one picture: found once each, and nothing else taken for one."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from directions.photo import faces
from directions.photo.detection import Box, find_faces, overlap
from directions.photo.faces import prepare_faces
from tests.helpers.command_line import call

pytestmark = pytest.mark.skipif(not faces.available(), reason="the extra `faces` is not installed")
SIZES = (40, 64, 90, 120, 160, 200, 250)  # pixels of the aligned photos


@pytest.fixture
def group(shared: Path) -> tuple[Image.Image, list[Box]]:
    """A picture of 20 faces, and where they are."""
    picture, places = Image.new("RGB", (1500, 1100), (120, 125, 130)), []
    with zipfile.ZipFile(shared / "faces" / "utkface_aligned.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][5000:5020]
        for i, name in enumerate(names):
            side, left, top = SIZES[i % len(SIZES)], 20 + 300 * (i % 5), 15 + 270 * (i // 5)
            face = Image.open(io.BytesIO(archive.read(name))).resize((side, side), Image.Resampling.LANCZOS)
            picture.paste(face, (left, top))
            places.append((left, top, left + side, top + side))
    return picture, places


def test_faces_of_all_sizes_are_found_once_each(group: tuple[Image.Image, list[Box]]) -> None:
    picture, places = group
    boxes = find_faces(picture)
    widths = [box[2] - box[0] for box in boxes]
    assert widths == sorted(widths, reverse=True)
    matches = [[i for i, place in enumerate(places) if overlap(box, place) > 0.4] for box in boxes]
    assert all(len(match) == 1 for match in matches)
    assert len(matches) == len({match[0] for match in matches}) >= 18


def test_heads_of_a_large_photo_are_found(group: tuple[Image.Image, list[Box]]) -> None:
    picture, places = group
    wide = Image.new("RGB", (4000, 1000), (120, 125, 130))
    for i in range(4):
        wide.paste(picture.crop(places[3 + i]).resize((250, 250)), (200 + 900 * i, 300))
    assert len(find_faces(wide)) == 4


def test_faces_that_are_too_small_are_counted_and_not_edited(group: tuple[Image.Image, list[Box]]) -> None:
    picture, _ = group
    found, fewer = prepare_faces(picture, 64), prepare_faces(picture.resize((1050, 770)), 128)
    assert found.too_small == 0 and len(found.crops) >= 18
    assert fewer.too_small >= 1 and len(fewer.crops) + fewer.too_small >= 16
    assert all(crop.place.side >= 32 for crop in fewer.crops)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_taken_for_a_face(seed: int) -> None:
    """Textures at all scales, as foliage and clouds have."""
    draw, total = np.random.default_rng(seed), np.zeros((480, 640, 3))
    for side in (4, 15, 60, 240):
        noise = Image.fromarray(draw.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((640, 480), Image.Resampling.BICUBIC), float) / 4
    assert find_faces(Image.fromarray(total.astype(np.uint8))) == []


@pytest.mark.parametrize("quality", [30, 70, 90])
def test_a_portrait_has_one_face(quality: int) -> None:
    """In the badge of the suit the detector sees another, and not surely enough."""
    data = pytest.importorskip("skimage.data", reason="needs scikit-image")
    buffer = io.BytesIO()
    Image.fromarray(data.astronaut()).save(buffer, "JPEG", quality=quality)
    (box,) = find_faces(Image.open(buffer).convert("RGB"))
    assert overlap(box, (175, 80, 270, 175)) > 0.7


@pytest.mark.slow
def test_the_command_edits_all_of_them_and_leaves_photos_without_one(
    group: tuple[Image.Image, list[Box]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the shipped bank
    monkeypatch.chdir(home)
    group[0].save("group.png")
    Image.new("RGB", (300, 200), "teal").save("wall.png")
    result = call("apply-direction", "smiling", "group.png", "wall.png", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    edited, left = answer["files"]
    assert edited["faces"]["edited"] >= 18 and edited["faces"]["too_small"] == 0
    assert left["output"] is None and left["unedited"] and answer["unedited"] == ["wall.png"]
    assert [path.name for path in Path("edited").iterdir()] == ["group-smiling.png"]
