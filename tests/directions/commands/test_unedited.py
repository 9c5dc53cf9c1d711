"""Photos without a face: no command edits them, trains on them or measures them, and each says so."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from directions.bank.bank import Bank
from directions.file.direction import Direction, DirectionInfo
from directions.photo.faces import available
from flowgrad.models import load_model
from tests.helpers.command_line import call, failed
from tests.helpers.pictures import picture
from tests.helpers.tiny import Tiny, make_model, make_photos

pytestmark = [
    pytest.mark.usefixtures("home"),
    pytest.mark.skipif(not available(), reason="the extra `faces` is not installed"),
]
GATES = {"none": "", "wide": "gate: {norm: [0, 100]}\n", "narrow": "gate: {norm: [98, 99]}\n"}
QUICK = ("--iterations", "2", "--intervals", "3", "--augmentations", "1", "--eta", "1", "--calibration-photos", "2")


@pytest.fixture
def models(tiny: Tiny) -> dict[str, Path]:
    """Models of aligned faces by what their gates let pass, and in the own bank the direction "smiling" for them."""
    folders = {}
    for name, gate in GATES.items():
        folder = folders[name] = make_model(Path(name).absolute(), tiny.guide, aligned=True)
        with (folder / "flowgrad.yaml").open("a") as file:
            file.write(gate)
    info = DirectionInfo(
        "Smile", "tiny", load_model(str(folders["none"]), "cpu", "fp32").fingerprint, 6, text="a smiling face"
    )
    Bank.default().add(Direction.create(np.full((2, 3, 16, 16), 0.3), np.array([0, 3]), info), "smiling")
    picture("RGB", 200, 120).save("wall.jpg")
    return folders


def edited() -> list[str]:
    return sorted(path.name for path in Path("edited").glob("*"))


@pytest.mark.parametrize("gate", GATES)
def test_a_photo_of_the_models_size_is_edited_if_the_model_knows_it(
    tiny: Tiny, models: dict[str, Path], gate: str
) -> None:
    result = call("apply-direction", "smiling", *tiny.files, "wall.jpg", "--model", models[gate], "--json")
    answer = json.loads(result.stdout)
    if gate == "wide":
        assert result.exit_code == 0 and answer["unedited"] == ["wall.jpg"] and len(edited()) == 4
        *own, wall = answer["files"]
        assert all(photo["faces"] == {"edited": 1, "too_small": 0} and photo["output"] for photo in own)
        assert wall["output"] is None and "no face was found" in wall["unedited"] and wall["error"] is None
    else:
        assert result.exit_code == 1 and len(answer["unedited"]) == 5 and edited() == []
        assert "no photo was edited" in result.stderr and "--align never" in result.stderr


def test_a_single_photo_without_a_face_fails_the_command(models: dict[str, Path]) -> None:
    before = Path("wall.jpg").read_bytes()
    result = call("apply-direction", "smiling", "wall.jpg", "--model", models["wide"])
    failed(result, 1, "no photo was edited", "--align never")
    assert "wall.jpg: no face was found in it, so it stays as it is" in result.output
    assert Path("wall.jpg").read_bytes() == before and edited() == []
    failed(
        call("edit", "wall.jpg", "--text", "a smiling face", "--model", models["wide"], *QUICK[:6]), 1, "wall.jpg: no"
    )
    failed(call("apply-direction", "smiling", "wall.jpg", "--model", models["wide"], "--align", "always"), 1, "no face")
    assert call("apply-direction", "smiling", "wall.jpg", "--model", models["wide"], "--align", "never").exit_code == 0
    assert edited() == ["wall-smiling.jpg"]


def test_a_copy_is_written_where_it_is_asked_for(tiny: Tiny, models: dict[str, Path]) -> None:
    words = ("apply-direction", "smiling", "wall.jpg", tiny.files[0], "--model", models["wide"], "--copy-unedited")
    result = call(*words)
    assert result.exit_code == 0 and "2 of 2 photos written" in result.output
    assert Path("edited/wall-smiling.jpg").read_bytes() == Path("wall.jpg").read_bytes()
    assert call(*words, "--lossless", "-o", "png").exit_code == 0
    with Image.open("png/wall-smiling.png") as copy, Image.open("wall.jpg") as photo:
        assert copy.tobytes() == photo.tobytes()
    assert call(*words[:3], *words[4:], "-o", "alone").exit_code == 0
    for other in ("--crop", "--strengths=0,1"):
        failed(call(*words, other), 2, "--copy-unedited", "--crop")


def test_a_rerun_skips_what_is_there_and_strips_and_sheets_leave_them_out(tiny: Tiny, models: dict[str, Path]) -> None:
    words = ("apply-direction", "smiling", "wall.jpg", *tiny.files[:2], "--model", models["wide"], "--strengths=0,1")
    result = call(*words, "--grid")
    assert result.exit_code == 0 and "2 of 3 photos written to edited, 1 left as they are" in result.output
    assert edited() == ["contact-sheet-smiling-strip.png", "photo-0-smiling-strip.png", "photo-1-smiling-strip.png"]
    again = call(*words, "--skip-existing", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["unedited"] == ["wall.jpg"]


def test_nothing_is_trained_or_measured_on_them(tiny: Tiny, models: dict[str, Path]) -> None:
    train = ("train-direction", "wall.jpg", "--text", "a smiling face", "--name", "new", *QUICK, "--json")
    failed(call(*train, *tiny.files, "--model", models["narrow"]), 1, "none of 5 photos can be used", "wall.jpg")
    result = call(*train, *tiny.files, "--model", models["wide"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["unedited"] == ["wall.jpg"] and answer["info"]["images"] == 4
    assert "wall.jpg: no face was found in it, so it is left out" in result.stderr
    measure = ("evaluate", "smiling", "--photos", "wall.jpg", "--model", models["wide"], "--json")
    failed(call(*measure), 1, "wall.jpg: no face was found")
    make_photos(Path("own"), 2)
    result = call(*measure, "--photos", "own")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["photos"] == 2 and answer["unedited"] == ["wall.jpg"]
