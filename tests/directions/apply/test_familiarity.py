"""The inversion gate, the identity budget and the interference matrix, on a model too small to mean anything."""

import csv
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn.functional import avg_pool2d
from typer.testing import CliRunner, Result

import directions.apply.edit
import directions.apply.identity
import directions.bank.bank
from cli import app
from directions.apply.edit import check_budget, edit_images, keep_identity
from directions.apply.familiarity import fits, judge_familiarity, ranges_of, usual_grid, verdict
from directions.apply.inversion import Inversion, invert_for, invert_images, join
from directions.apply.looks import looks
from directions.bank.bank import Bank
from directions.file.direction import Direction, DirectionInfo
from directions.measure.interference import Interference
from directions.photo.reading import to_tensor
from flowgrad.errors import UsageError
from flowgrad.models import Model, load_config, load_model
from flowgrad.ode import Control
from tests.helpers.paths import ROOT
from tests.helpers.tiny import Tiny, make_model

RANGES = {"norm": (0.9, 1.1), "correlation": (-0.1, 0.2), "reconstruction": (0.0, 0.05)}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWGRAD_BANK", str(tmp_path / "own-bank"))
    monkeypatch.setattr(directions.bank.bank, "_shipped_folder", lambda: None)
    monkeypatch.chdir(tmp_path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


# --- the gate ---------------------------------------------------------------------------------------------------


def test_a_latent_of_the_prior_has_size_one_and_no_neighbours(model: Model, images: torch.Tensor) -> None:
    inverted = join(invert_images(model, images))
    inverted.trajectory.states[0] = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for fit in fits(model, inverted):
        assert fit["norm"] == pytest.approx(1, abs=0.1) and abs(fit["correlation"]) < 0.1 and fit["reconstruction"] > 0
    inverted.trajectory.states[0] = 2.0
    for fit in fits(model, inverted):
        assert fit["norm"] == pytest.approx(2) and fit["correlation"] == pytest.approx(1, abs=0.1)


def test_what_the_solver_misses_shrinks_with_its_step(model: Model, images: torch.Tensor) -> None:
    exact, coarse = (join(invert_images(model, images, way)) for way in (Inversion("fixed-point"), Inversion()))
    for fine, rough in zip(fits(model, exact), fits(model, coarse), strict=True):
        assert 0 <= fine["reconstruction"] < 1 and rough["reconstruction"] > 0


def test_the_verdict_says_in_words_and_in_figures_what_is_unusual() -> None:
    plain = soft_picture()
    assert verdict({"norm": 1.0, "correlation": 0.0, "reconstruction": 0.01}, RANGES, plain) is None
    assert verdict({"norm": 9.0, "correlation": 9.0}, {}, plain) is None
    text = verdict({"norm": 1.3, "correlation": 0.0, "reconstruction": 0.5}, RANGES, plain)
    assert text and "unlike those the model knows" in text and "it looks rougher than they are (" in text
    assert "size 1.300, test photos 0.9 to 1.1" in text and "misses it by 0.500" in text and "neighbours" not in text
    text = verdict({"norm": 0.3}, RANGES, plain * 0.1 - 0.8)
    assert text and "dark and pale (" in text


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: x, ""),
        (lambda x: avg_pool2d(x[None], 9, 1, 4)[0], "blurred"),
        (lambda x: x + 0.3 * torch.randn(3, 64, 64, generator=seeded()), "noisy"),
        (lambda x: x * 0.4 - 0.7, "dark"),
        (lambda x: x * 0.4 + 0.8, "overexposed"),
        (lambda x: x * 0.1, "pale"),
        (lambda x: torch.sign(x), "harsh"),
        (lambda x: x + x.new_tensor([0.8, -0.6, -0.8]).view(3, 1, 1), "strongly coloured"),
    ],
)
def test_what_is_to_be_seen_in_a_picture_has_a_word(change: Callable[[torch.Tensor], torch.Tensor], word: str) -> None:
    said = looks(change(soft_picture()).clamp(-1, 1)).split(" and ")
    assert word in said


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def soft_picture() -> torch.Tensor:
    """(3, 64, 64): grey, of the contrast and the detail that photos of faces have."""
    noise = torch.randn(1, 1, 74, 74, generator=seeded())
    smooth = avg_pool2d(avg_pool2d(noise, 7, 1), 5, 1)[0].expand(3, 64, 64)
    return smooth / smooth.std() * 0.4


@pytest.mark.slow
def test_a_photo_is_not_odd_for_being_grey(shared: Path) -> None:
    """Of grey test photos the model knows as many as of those in colour; and what is odd is called by its name."""
    with zipfile.ZipFile(shared / "faces" / "utkface_aligned.zip") as archive:
        with (shared / "faces" / "labels.csv").open() as table:
            names = [row["file"] for row in csv.DictReader(table) if row["split"] == "test"][:24]
        photos = [Image.open(io.BytesIO(archive.read(name))).convert("RGB").resize((64, 64)) for name in names]
    model = load_model("faces64", "cpu")

    def verdicts(pictures: list[Image.Image]) -> list[str]:
        batches = invert_images(model, to_tensor(pictures), grid=usual_grid(model, Bank(ROOT / "direction_bank")))
        return [text for batch in batches for text in judge_familiarity(model, batch) if text]

    assert len(verdicts([photo.convert("L").convert("RGB") for photo in photos])) <= 3 >= len(verdicts(photos))
    blurred = verdicts([photo.filter(ImageFilter.GaussianBlur(1)) for photo in photos])
    assert len(blurred) > 12 < sum("looks blurred" in text for text in blurred)


def test_ranges_leave_out_the_extremes() -> None:
    measured = [{"norm": i / 100, "correlation": 0.0, "reconstruction": 0.0} for i in range(101)]
    assert ranges_of(measured, 0.1)["norm"] == (0.1, 0.9)


def test_the_ranges_of_shipped_models_can_be_read() -> None:
    for low, high in load_config("faces64").gate.values():
        assert low < high


def test_the_command_measures_the_lines_of_a_configuration(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,split\nphoto-0.png,test\nphoto-1.png,train\nphoto-2.png,test\n")
    arguments = ("models", "gate", tiny.photos, "--model", tiny.model)
    result = call(*arguments, "--table", "labels.csv")
    assert result.exit_code == 0 and result.output.startswith("gate:  # of 2 photos\n  norm: ["), result.output
    assert json.loads(call(*arguments, "--json").stdout)["photos"] == 4
    assert call(*arguments, "--table", "labels.csv", "--split", "none").exit_code == 2


def test_an_unusual_photo_is_warned_of(tiny: Tiny, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", tiny.guide)
    with (folder / "flowgrad.yaml").open("a") as file:
        file.write("gate: {norm: [100, 200]}\n")
    model = load_model(str(folder), "cpu", "fp32")
    bank = Bank(tmp_path / "own-bank")
    info = DirectionInfo("Smile", "tiny", model.fingerprint, 6, text="a smiling face")
    bank.add(Direction.create(np.ones((2, 3, 16, 16)), np.array([0, 3]), info), "smiling")
    result = call("apply-direction", "smiling", tiny.files[0], "--model", folder)
    assert result.exit_code == 0 and "unlike those the model knows" in result.output


def test_a_damaged_direction_does_not_keep_photos_from_being_inverted(model: Model, tmp_path: Path) -> None:
    bank = Bank(tmp_path / "own-bank")
    for name, starts in (("good", [0, 3]), ("cut", [0, 4])):
        info = DirectionInfo(name, "tiny", model.fingerprint, 6)
        bank.add(Direction.create(np.ones((2, 3, 16, 16)), np.array(starts), info), name)
    cut = bank.get("cut").path
    cut.write_bytes(cut.read_bytes()[:-100] + b"\xff" * 100)  # the header is whole, the numbers are none
    knots = usual_grid(model, bank).knots
    assert 3 in knots and knots[-1] == 6


# --- the identity budget ----------------------------------------------------------------------------------------


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances that grow with the change, so that what should be found is known."""

    monkeypatch.setattr(directions.apply.edit, "descriptors", lambda images: images.flatten(1))
    monkeypatch.setattr(directions.apply.identity, "has_faces", lambda: True)


def test_each_face_gets_the_largest_share_within_the_budget(
    tiny: Tiny, tmp_path: Path, images: torch.Tensor, control: Control, descriptors: None
) -> None:
    model = load_model(str(make_model(tmp_path / "model", tiny.guide, aligned=True)), "cpu", "fp32")
    inverted = join(invert_for(model, images, control))
    limit = float(np.mean([edit.distance for edit in keep_identity(model, control, inverted, 1e9)])) / 2
    edits = keep_identity(model, control, inverted, limit)
    for i, edit in enumerate(edits):
        assert 0 < edit.share < 1 and edit.distance is not None and edit.distance < limit
        (further,) = keep_identity(model, control * (edit.share + 1 / 16), inverted.select([i]), 1e9)
        assert further.distance is not None and further.distance > limit * 0.95
    none = keep_identity(model, control, inverted, 1e-9)[0]
    assert none.share == 0 and torch.equal(none.after[0], none.before)
    still = keep_identity(model, control * 0.0, inverted, 0.5)[0]
    assert (still.share, still.distance) == (1.0, 0.0) and not still.difference().any()


@pytest.mark.parametrize(
    ("limit", "message"),
    [(0.5, "needs a model of faces"), (-1.0, "above 0; got -1"), (float("nan"), "above 0; got nan")],
)
def test_a_budget_needs_faces_and_a_distance(model: Model, limit: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_budget(model, limit)


# --- interference -----------------------------------------------------------------------------------------------


def test_the_matrix_of_a_bank(tiny: Tiny, model: Model, tmp_path: Path) -> None:
    bank = Bank(tmp_path / "own-bank")
    for i, name in enumerate(("smiling", "old")):
        info = DirectionInfo(name, "tiny", model.fingerprint, 6, text=f"a {name} face", source_text="a face")
        u = np.random.default_rng(i).normal(size=(2, 3, 16, 16))
        bank.add(Direction.create(u, np.array([0, 3]), info), name)
    result = call("bank", "matrix", "--model", tiny.model, "--count", 2, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["names"] == ["old", "smiling"] and np.shape(answer["changes"]) == (2, 2)
    rows = list(csv.reader((tmp_path / "interference/matrix.csv").open()))
    assert rows[0] == ["applied", "old", "smiling"] and float(rows[1][1]) == pytest.approx(
        answer["changes"][0][0], abs=1e-3
    )
    assert (tmp_path / "interference/matrix.png").stat().st_size > 5000
    assert call("bank", "matrix", "--model", tiny.model).exit_code == 2  # the files exist
    assert call("bank", "matrix", "smiling", "--model", tiny.model, "-o", "x").exit_code == 2  # one alone
    gallery = call("bank", "gallery")
    assert gallery.exit_code == 0 and (tmp_path / "gallery.html").is_file()


def test_shares_are_of_the_own_effect() -> None:
    found = Interference(("a", "b"), np.array([[2.0, 1.0], [1.0, 4.0]]))
    assert np.allclose(found.shares(), [[1, 0.25], [0.5, 1]])


@pytest.mark.parametrize("gate", [{}, {"norm": (0.0, 0.1)}])
def test_only_what_there_is_a_range_for_is_computed(model: Model, images: torch.Tensor, gate: dict) -> None:
    def refuse(states: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing is to be checked that needs an image")

    inverted = join(invert_images(model, images))
    gated = replace(model, config=model.config.model_copy(update={"gate": gate}), decode=refuse)
    for text in judge_familiarity(gated, inverted):
        assert (text is not None) == bool(gate)


def test_strength_zero_is_not_computed(model: Model, images: torch.Tensor, control: Control) -> None:
    inverted = join(invert_images(model, images))
    seen = []

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return model.velocity(x, t)

    watched = replace(model, velocity=counted)
    edits = edit_images(watched, control, inverted, (0.0, 1.0))
    assert sum(seen) == len(control.grid) * len(images)
    assert all(torch.equal(edit.after[0], edit.before) for edit in edits)
    seen.clear()
    assert edit_images(watched, control, inverted, (0.0,)) and edit_images(watched, control * 0.0, inverted)
    assert not seen
