"""Directions applied to files: what is read, and what is in memory at once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from directions.apply import files
from directions.apply.files import _warning, apply_to_files
from directions.apply.outputs import output_paths
from directions.apply.wanted import Wanted
from directions.photo.crop import Place
from directions.photo.faces import Prepared
from directions.photo.sources import Source
from flowgrad.models import Model
from flowgrad.ode import Control
from tests.helpers.tiny import Tiny


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("wanted", [Wanted(), Wanted(crop=True), Wanted(strengths=(0.0, 1.0))])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_photo_is_decoded_once(
    model: Model,
    control: Control,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    wanted: Wanted,
    strength: float,
) -> None:
    path, output, load = tmp_path / f"photo{suffix}", tmp_path / f"edited{suffix}", ImageFile.ImageFile.load
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    decoded = []

    def counted(image: ImageFile.ImageFile) -> object:
        if image.tile:  # it was not decoded before
            decoded.append(image)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    (outcome,) = apply_to_files(model, control * strength, [Source(path)], [output], wanted)
    assert outcome.output == output and len(decoded) == 1


def test_photos_that_fill_the_memory_are_edited_in_turn(
    tiny: Tiny, model: Model, control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, edit = [], files._edit

    def counted(model: Model, control: Control, jobs: list, wanted: Wanted) -> list:
        sizes.append(len(jobs))
        return edit(model, control, jobs, wanted)

    monkeypatch.setattr(files, "_edit", counted)
    for pixels, expected in ((files._PIXELS, [1, 3]), (2 * 16 * 16, [1, 2, 1]), (1, [1] * 4)):
        monkeypatch.setattr(files, "_PIXELS", pixels)
        sizes.clear()
        sources = list(map(Source, tiny.files))
        outputs = output_paths(sources, tmp_path / str(pixels), "edited")
        assert len(list(apply_to_files(model, control, sources, outputs, Wanted()))) == 4
        assert sizes == expected


def test_a_warning_says_which_of_several_faces_it_is_about() -> None:
    image = Image.new("RGB", (16, 16))
    right, left = (
        Prepared(image, Place(((x, 0), (x + 9, 0), (x + 9, 9), (x, 9)), "face"), warning)
        for x, warning in ((50, "its face is small"), (0, None))
    )
    assert _warning([right], [None]) == "its face is small"
    assert _warning([right, left], [None, "it looks grey"]) == "face 1: it looks grey; face 2: its face is small"
    assert _warning([left, left], [None, None]) is None and _warning([], []) is None
