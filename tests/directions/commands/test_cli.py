"""The command line from end to end on a tiny model, and what it says when things go wrong."""

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import Result

import directions.apply.files
import directions.bank.bank
import directions.train.calibration
import directions.train.checkpoint
import directions.train.run
from directions.apply.inversion import Inversion, Inverted, invert_for
from directions.bank.bank import Bank
from directions.file.direction import Direction, read_direction, write_direction
from directions.train.recipe import load_recipe
from flowgrad.models import Model
from flowgrad.ode import Control
from tests.helpers.command_line import call, failed, passed
from tests.helpers.paths import ROOT
from tests.helpers.tiny import Tiny, guide_recipe, make_judge, make_model

RECIPE = ("--iterations", "2", "--intervals", "3", "--augmentations", "1", "--eta", "1")

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bank that holds the direction "smiling", and the run that made it."""
    folder = tmp_path_factory.mktemp("trained")
    result = train(tiny, folder, "smiling", "--json")
    assert result.exit_code == 0, result.output
    (folder / "answer.json").write_text(result.stdout)
    return folder


def train(tiny: Tiny, folder: Path, name: str, *more: object) -> Result:
    texts = ("--text", "a smiling face", "--source", "a serious face", "--name", name, "--calibration-photos", 2)
    places = ("--model", tiny.model, "--bank", folder / "bank", "--output", folder / "runs" / name)
    return call("train-direction", tiny.photos, *texts, *places, *RECIPE, *more)


def apply(tiny: Tiny, trained: Path, spec: object, *more: object) -> Result:
    return call("apply-direction", spec, *more, "--model", tiny.model, "--bank", trained / "bank")


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def difference(a: Path | str, b: Path | str) -> int:
    """The largest difference of two images' pixels, of 255."""
    return int(np.abs(pixels(a) - pixels(b)).max())


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# --- the main job ------------------------------------------------------------------------------------------------


def test_training_fills_the_bank_and_the_folder(tiny: Tiny, trained: Path) -> None:
    answer = json.loads((trained / "answer.json").read_text())
    assert answer["name"] == "smiling" and len(answer["history"]) == 3
    run = trained / "runs" / "smiling"
    assert {path.name for path in run.iterdir()} == {"before-after.png", "curves.png", "summary.json"}
    entry = Bank(trained / "bank").get("smiling")
    assert entry.info is not None and entry.preview and entry.card
    assert entry.info.thumbnail.startswith("data:image/jpeg;base64,") and len(entry.info.image_hashes) == 4
    assert entry.info.calibration is not None and entry.info.calibration.photos == 2
    assert "| strength |" in entry.card.read_text()


def test_training_tells_people_what_it_found_and_wrote(tiny: Tiny, tmp_path: Path) -> None:
    texts = ("--text", "a zebra face", "--name", "zebra", "--model", tiny.model, "--title", "Zebra", "--tag", "odd")
    said = passed("train-direction", "--samples", 2, *texts, *RECIPE)
    for words in ("never seen the word 'zebra'", "a zebra face", "safe from", "side effect at strength 1", "seconds"):
        assert words in said
    assert "summary.json" in said and "flowgrad apply-direction zebra" in said
    assert (tmp_path / "runs" / "zebra" / "before-after.png").is_file()
    assert call("bank", "search", "odd").output.startswith("name")


def test_texts_that_are_kept_make_another_recipe_the_usual_one(tiny: Tiny) -> None:
    asked = ("train-direction", "--samples", 2, "--text", "a smiling face", "--model", tiny.model, *RECIPE[2:])
    for name, more in {"default": (), "keep": ("--keep", "an old face - a young face")}.items():
        passed(*asked, "--name", name, "--calibration-photos", 2, *more)
        assert Bank.default().get(name).load().info.iterations == load_recipe(name).iterations


def test_a_text_of_unknown_words_is_trained_only_if_forced(tiny: Tiny) -> None:
    arguments = ("train-direction", "--samples", 2, "--text", "a xyzzy", "--name", "x", "--model", tiny.model, *RECIPE)
    failed(call(*arguments), 2, "knows no word of the text 'a xyzzy'", "--force")
    assert "never seen the word 'xyzzy'" in passed(*arguments, "--force")


def test_all_photos_that_cannot_be_used_are_named(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("one.jpg", "two.jpg"):
        (tmp_path / name).write_text("no image")
    photos = (tmp_path / "one.jpg", *tiny.files, tmp_path / "two.jpg")
    result = call("train-direction", *photos, "--text", "a smiling face", "--name", "x", "--model", tiny.model)
    failed(result, 1, "2 of 6 photos cannot be used", "one.jpg is not an image", "two.jpg is not an image")


def test_a_finished_run_is_not_replaced_unless_told(tiny: Tiny, trained: Path) -> None:
    failed(train(tiny, trained, "smiling"), 2, "exists already", "--overwrite")


def test_strength_0_keeps_photos(tiny: Tiny, trained: Path) -> None:
    result = apply(tiny, trained, "smiling", tiny.photos, "--strength", 0, "--output", "same")
    assert result.exit_code == 0 and "4 of 4 photos written" in result.output
    for photo in tiny.files:
        assert difference(photo, f"same/{photo.stem}-smiling@0.png") <= 1
    assert apply(tiny, trained, "smiling", tiny.files[0], "--output", "same").exit_code == 0
    failed(apply(tiny, trained, "smiling", tiny.files[0], "--output", "same"), 2, "exists already", "--overwrite")
    edited = apply(tiny, trained, "smiling", tiny.files[0], "--output", "same", "--overwrite")
    assert edited.exit_code == 0 and edited.output.strip().endswith("photo-0-smiling.png")
    assert difference(tiny.files[0], "same/photo-0-smiling.png") > 1


def test_mixtures_add(tiny: Tiny, trained: Path) -> None:
    file = trained / "bank/tiny/smiling.safetensors"
    for spec, folder in (("smiling:0.25+smiling:0.25", "sum"), (file, "half"), ("smiling:1+smiling:-1", "none")):
        strength = ("--strength", 0.5 if folder == "half" else 1)
        assert apply(tiny, trained, spec, tiny.files[0], "-o", folder, *strength).exit_code == 0
    added, half = "sum/photo-0-smiling@0.25+smiling@0.25.png", "half/photo-0-smiling@0.5.png"
    assert difference(added, half) <= 1
    assert difference("none/photo-0-smiling+smiling@-1.png", tiny.files[0]) <= 1


def test_strips_and_contact_sheets(tiny: Tiny, trained: Path) -> None:
    result = apply(tiny, trained, "smiling", tiny.photos, "--strengths", "-1,0,1", "--grid", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert [Path(file["output"]).name for file in answer["files"]] == [f"photo-{i}-smiling-strip.png" for i in range(4)]
    for path in ("edited/photo-3-smiling-strip.png", "edited/contact-sheet-smiling-strip.png"):
        assert pixels(path).shape[1] > 3 * 128


def test_photos_of_one_name_do_not_replace_one_another(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "photo-0.png"
    other.parent.mkdir()
    other.write_bytes(tiny.files[1].read_bytes())
    assert apply(tiny, trained, "smiling", tiny.files[0], other).exit_code == 0
    assert {path.name for path in Path("edited").iterdir()} == {
        "photo-0-smiling.png",
        "other-photo-0-smiling.png",
    }


def test_an_output_never_replaces_a_photo_that_is_edited(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    first, second, sheet = (tmp_path / "a" / f"{name}.png" for name in ("photo", "photo-smiling", "contact-sheet-old"))
    first.parent.mkdir()
    for path, source in zip((first, second, sheet), tiny.files, strict=False):
        path.write_bytes(source.read_bytes())
    for more in ("--overwrite", "--skip-existing"):
        result = apply(tiny, trained, "smiling", first, second, "--output", first.parent, more)
        assert result.exit_code == 1 and "would replace one of the photos themselves" in result.output
    old = tmp_path / "old.safetensors"
    old.write_bytes((trained / "bank/tiny/smiling.safetensors").read_bytes())
    result = apply(tiny, trained, old, first, sheet, "--output", first.parent, "--overwrite", "--grid")
    failed(result, 2, "contact-sheet-old.png", "photos themselves")
    for path, source in zip((first, second, sheet), tiny.files, strict=False):
        assert path.read_bytes() == source.read_bytes()


def test_a_contact_sheet_never_replaces_a_photo_of_its_name(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    photo = tmp_path / "a" / "contact-sheet.png"
    photo.parent.mkdir()
    photo.write_bytes(tiny.files[0].read_bytes())
    assert apply(tiny, trained, "smiling", photo).exit_code == 0
    (edited,) = Path("edited").iterdir()
    before = edited.read_bytes()
    assert apply(tiny, trained, "smiling", photo, "--grid", "--skip-existing").exit_code == 0
    names = {"a-contact-sheet-smiling.png", "contact-sheet-smiling.png"}
    assert {path.name for path in Path("edited").iterdir()} == names
    assert edited.name in names and edited.read_bytes() == before and pixels(edited).shape == (16, 16, 3)


def test_two_directions_on_one_photo_are_two_files(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.safetensors"
    old.write_bytes((trained / "bank/tiny/smiling.safetensors").read_bytes())
    for spec in ("smiling", old, "smiling:0.5", "tiny/smiling:-0.5+smiling"):
        for more in ((), ("--crop",), ("--strengths=0,1",), ("--crop", "--strengths=0,1")):
            result = apply(tiny, trained, spec, tiny.files[0], "--grid", *more)
            assert result.exit_code == 0, result.output
    assert len(list(Path("edited").iterdir())) == 2 * 4 * 4


def test_a_strength_beyond_the_safe_range_is_warned_of(tiny: Tiny, trained: Path) -> None:
    result = apply(tiny, trained, "smiling", tiny.files[0], "--strength", 1000)
    assert "beyond the safe range" in result.output


def test_edit_is_put_back_into_the_one_photo_unless_a_crop_is_wanted(tiny: Tiny, tmp_path: Path) -> None:
    photo = tmp_path / "wide.png"
    Image.open(tiny.files[0]).resize((90, 60), Image.Resampling.BICUBIC).save(photo, dpi=(300, 300))
    common = ("edit", photo, "--text", "a smiling face", "--model", tiny.model, "--strength", 3, *RECIPE)
    assert "log-odds of a smiling face - a face" in passed(*common)
    assert {path.name for path in Path("edited").iterdir()} == {
        "wide-a-smiling-face.png",
        "wide-a-smiling-face-before-after.png",
    }
    passed(*common, "--crop", "--output", "crop")
    before, after = pixels(photo), pixels("edited/wide-a-smiling-face.png")
    changed = np.flatnonzero((before != after).any(axis=(0, 2)))
    assert before.shape == after.shape and 15 <= changed.min() < changed.max() < 75, "the central square alone"
    assert pixels("crop/wide-a-smiling-face.png").shape == (16, 16, 3)
    failed(call("edit", tiny.photos, *common[2:]), 2, "one photo")


def test_samples_with_and_without_a_direction(tiny: Tiny, trained: Path) -> None:
    common = ("--model", tiny.model, "--bank", trained / "bank", "--seed", 5)
    passed("sample", "--count", 3, "--output", "plain", "--grid", *common)
    passed("sample", "--count", 2, "--output", "zero", "-d", "smiling:0", *common)
    passed("sample", "--count", 1, "--output", "edited", "-d", "smiling:2", *common)
    names = ["sample-5-00000.png", "sample-5-00001.png", "sample-5-00002.png"]
    assert sorted(path.name for path in Path("plain").iterdir()) == ["contact-sheet.png", *names]
    assert difference(f"plain/{names[1]}", f"zero/{names[1]}") <= 1
    assert difference(f"plain/{names[0]}", f"edited/{names[0]}") > 1


def test_evaluate_measures_at_every_strength_and_asks_a_judge(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    judge = make_judge(tmp_path / "judge.safetensors")
    places = ("--model", tiny.model, "--bank", trained / "bank", "--judge", judge)
    assert "judged happy" in passed("evaluate", "smiling", "--photos", tiny.photos, "--strengths=-1,1", *places)
    answer = json.loads(Path("evaluation/evaluation.json").read_text())
    again = call("evaluate", "smiling", "--photos", tiny.photos, "--strengths=-1,1", *places, "--json", "--overwrite")
    assert json.loads(again.stdout) == answer
    before, reverse, after = answer["measured"]
    assert (before["strength"], before["effect"]) == (0, 0) and reverse["effect"] < after["effect"]
    for measured in answer["measured"]:
        assert measured["answers"]["happy"] + measured["answers"]["sad"] == pytest.approx(1)
    assert {path.name for path in Path("evaluation").iterdir()} == {"contact-sheet.png", "evaluation.json"}


def test_a_direction_is_applied_and_evaluated_by_its_own_inversion(
    tiny: Tiny, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def invert(model: Model, images: torch.Tensor, control: Control, way: Inversion) -> Iterator[Inverted]:
        asked.append(str(way))
        return invert_for(model, images, control, way)

    for module in ("directions.apply.files", "directions.measure.evaluation"):
        monkeypatch.setattr(f"{module}.invert_for", invert)
    direction = read_direction(trained / "bank/tiny/smiling.safetensors")
    other = Direction(direction.u, direction.starts, replace(direction.info, inversion="fixed-point"))
    file = write_direction(other, tmp_path / "other.safetensors")
    passed("apply-direction", file, tiny.files[0], "--model", tiny.model)
    passed("evaluate", file, "--photos", tiny.files[0], "--model", tiny.model)
    assert asked == ["fixed-point", "fixed-point"]


def test_a_guide_is_trained_from_a_table(tiny: Tiny, tmp_path: Path) -> None:
    question = "{name: red, text: a red thing, against: a blue thing, positive: {colour: [red]}}"
    recipe = guide_recipe("colour", ("red", "blue"), "a {colour} thing")
    (tmp_path / "guide.yaml").write_text(f"{recipe}table: {{split: split}}\nevaluation: [{question}]\n")
    rows = [f"photo-{i % 4}.png,{('red', 'blue')[i % 2]},{('train', 'test')[i // 4]}" for i in range(8)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,colour,split", *rows]))
    arguments = ("train-guide", tiny.photos, "labels.csv", "--config", "guide.yaml", "--output", "guide", "--steps", 2)
    assert "red" in passed(*arguments)
    assert {path.name for path in Path("guide").iterdir()} == {"model.safetensors", "README.md", "training"}
    assert "red" in passed(*arguments)  # the run is complete: it is exported once more
    more = (*arguments[:-3], "more", "--steps", 1)
    passed(*more, "--from", "guide/model.safetensors")
    assert "| begins with | guide/model.safetensors" in Path("more/README.md").read_text()
    failed(call(*more, "--from", "faces64-guide"), 2, "other weights to begin with", "start again")
    failed(call(*more, "--no-resume", "--from", "faces64-guide"), 2, "other sizes")


# --- bank and models ---------------------------------------------------------------------------------------------


def test_the_bank_is_listed_shown_and_changed(trained: Path, tmp_path: Path) -> None:
    file = trained / "bank/tiny/smiling.safetensors"
    passed("bank", "import", file, "--name", "grin")
    assert "grin" in passed("bank", "list")
    assert [entry["name"] for entry in json.loads(passed("bank", "list", "--model", "tiny", "--json"))] == ["grin"]
    shown = passed("bank", "show", "grin")
    for words in ("a smiling face - a serious face", "safe from", "side effect at strength 1", "seed 0"):
        assert words in shown
    assert shown.count("a smiling face") == 2  # title and text: what is wanted is no side effect
    assert passed("bank", "path", "grin").strip() == str(tmp_path / "own-bank/tiny/grin.safetensors")
    passed("bank", "rename", "grin", "big-grin")
    passed("bank", "export", "big-grin", tmp_path)
    assert (tmp_path / "big-grin.safetensors").is_file()
    passed("bank", "remove", "big-grin")
    assert "restored" in passed("bank", "restore", "big-grin")
    failed(call("bank", "import", file, "--name", "big-grin"), 2, "exists already")


def test_a_compact_direction_is_a_direction_like_others(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    """With as many patterns as intervals, 8 bits are all that is lost, and hardly a pixel shows it."""
    bank = ("--bank", trained / "bank")
    whole = read_direction(trained / "bank/tiny/smiling.safetensors")
    intervals = whole.info.intervals
    file = tmp_path / "small.safetensors"
    answer = json.loads(passed("bank", "export", "smiling", file, "--rank", intervals, "--json", *bank))
    assert answer["file"] == str(file) and 0 < answer["missed"] < 0.02
    told = passed("bank", "export", "smiling", file, "--rank", intervals, "--overwrite", *bank)
    assert f"is missed (patterns in 8 bits: {intervals})" in told
    passed("bank", "import", file, "--name", "small")
    assert "small" in passed("bank", "list") and f"{intervals}, in 8 bits" in passed("bank", "show", "small")
    passed("bank", "export", "small", "again.safetensors")
    assert Path("again.safetensors").read_bytes() == file.read_bytes()
    for name, spec in (("a", trained / "bank/tiny/smiling.safetensors"), ("b", "small")):
        passed("apply-direction", spec, tiny.files[0], "--model", tiny.model, "--output", name, "--lossless")
    edited = (pixels(next(Path(name).rglob("*.png"))) for name in ("a", "b"))
    assert np.abs(np.subtract(*edited)).max() <= 2
    failed(call("bank", "export", "smiling", "x.safetensors", "--rank", intervals + 1, *bank), 2, "rank must lie in")
    assert not Path("x.safetensors").exists()


def test_a_damaged_direction_is_listed_with_its_error(trained: Path, tmp_path: Path) -> None:
    bad = tmp_path / "own-bank/tiny/bad.safetensors"
    bad.parent.mkdir(parents=True)
    bad.write_bytes((trained / "bank/tiny/smiling.safetensors").read_bytes()[:300])
    listed = passed("bank", "list", "--model", "tiny")
    assert "bad" in listed and "truncated" in listed


def test_browsing_the_bank_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'diffusers', 'matplotlib', 'yaml'}"
    code = f"import sys, cli; cli.app(['bank', 'list'], standalone_mode=False); print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("set()"), found.stdout


def test_the_version() -> None:
    assert passed("--version").startswith("flowgrad")


# --- what goes wrong ---------------------------------------------------------------------------------------------


def test_one_bad_photo_does_not_stop_the_others(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    result = apply(tiny, trained, "smiling", bad, *tiny.files)
    assert result.exit_code == 1 and f"error: {bad} is not an image" in result.output
    assert "4 of 5 photos written" in result.output and "1 failed" in result.output


def test_no_face_where_one_is_demanded(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    model = make_model(tmp_path / "aligned", tiny.guide, aligned=True)
    arguments = ("--model", model, "--bank", trained / "bank", "--align", "always")
    failed(call("apply-direction", "smiling", tiny.files[0], *arguments), 1, "photo-0.png", "no face was found")


def test_another_models_direction_needs_force(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", tiny.guide, seed=1)
    arguments = ("apply-direction", "smiling", tiny.files[0], "--model", other, "--bank", trained / "bank")
    failed(call(*arguments), 1, "another model's weights", "--force")
    passed(*arguments, "--force")


def test_not_enough_memory(tiny: Tiny, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Iterator[None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(directions.apply.files, "invert_for", refuse)
    failed(apply(tiny, trained, "smiling", *tiny.files), 1, "not enough memory", "fewer photos", "--device cpu")


def test_a_full_disk(tiny: Tiny, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "photo.png")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    result = apply(tiny, trained, "smiling", *tiny.files)
    failed(result, 1, "No space left on device", "Free some space")
    assert result.output.count("No space left") == 1  # the first photo stops the rest
    monkeypatch.setattr(directions.apply.files, "write_bytes", refuse)
    failed(apply(tiny, trained, "smiling", *tiny.files), 1, "the disk is full", "Free some space")


def test_an_interrupted_training_resumes_bit_for_bit(
    tiny: Tiny, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = directions.train.checkpoint.save_checkpoint

    def save_and_interrupt(path: Path, identity: str, training: directions.train.run.Training) -> None:
        save(path, identity, training)
        if len(training.history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(directions.train.checkpoint, "save_checkpoint", save_and_interrupt)
        failed(train(tiny, tmp_path, "smiling"), 130, "interrupted", "same command again")
    checkpoint = tmp_path / "runs/smiling/checkpoint.pt"
    assert checkpoint.is_file() and not Bank(tmp_path / "bank").list()
    result = train(tiny, tmp_path, "smiling")
    assert result.exit_code == 0 and "going on after 2 of 3 evaluations" in result.output
    assert not checkpoint.exists()
    whole, resumed = (read_direction(folder / "bank/tiny/smiling.safetensors") for folder in (trained, tmp_path))
    assert whole.info == resumed.info and (whole.u == resumed.u).all()


@pytest.mark.parametrize("other", ["version", "task"])
def test_a_checkpoint_that_is_not_gone_on_from_is_told_of(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    with monkeypatch.context() as patched:
        if other == "version":
            patched.setattr(directions.train.checkpoint, "VERSION", directions.train.checkpoint.VERSION - 1)
        patched.setattr(directions.train.run, "held_out", interrupt)
        failed(train(tiny, tmp_path, "smiling"), 130, "interrupted")
    result = train(tiny, tmp_path, "smiling", *(("--seed", 1) if other == "task" else ()))
    assert result.exit_code == 0 and "another training" in result.stderr and "going on" not in result.output


def test_bugs_show_a_traceback_on_demand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(Bank, "lines", fail)
    failed(call("bank", "list"), 1, "ZeroDivisionError", "FLOWGRAD_DEBUG=1")
    monkeypatch.setenv("FLOWGRAD_DEBUG", "1")
    assert isinstance(call("bank", "list").exception, ZeroDivisionError)
