"""The command line from end to end on a tiny model, and what it says when things go wrong."""

import ast
import errno
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import directions.apply.files
import directions.bank.bank
import directions.train.checkpoint
import directions.train.run
from cli import app
from directions.bank.bank import Bank
from directions.file.direction import Direction, read_direction
from flowgrad.models.diffusers_unet import WEIGHTS
from tests.helpers.paths import ROOT
from tests.helpers.tiny import Tiny, make_judge, make_model, make_tiny

RECIPE = ("--iterations", "2", "--intervals", "3", "--augmentations", "1", "--calibration-photos", "2", "--eta", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bank that holds the direction "smiling", and the run that made it."""
    folder = tmp_path_factory.mktemp("trained")
    result = train(tiny, folder, "smiling", "--json")
    assert result.exit_code == 0, result.output
    (folder / "answer.json").write_text(result.stdout)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the bank of whoever runs it, or to the folder it is run in."""
    monkeypatch.setenv("FLOWGRAD_BANK", str(tmp_path / "own-bank"))
    monkeypatch.setattr(directions.bank.bank, "_shipped_folder", lambda: None)
    monkeypatch.delenv("FLOWGRAD_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def train(tiny: Tiny, folder: Path, name: str, *more: object) -> Result:
    texts = ("--text", "a smiling face", "--source", "a serious face", "--name", name)
    places = ("--model", tiny.model, "--bank", folder / "bank", "--output", folder / "runs" / name)
    return call("train-direction", tiny.photos, *texts, *places, *RECIPE, *more)


def apply(tiny: Tiny, trained: Path, spec: object, *more: object) -> Result:
    return call("apply-direction", spec, *more, "--model", tiny.model, "--bank", trained / "bank")


def failed(result: Result, code: int, *words: str) -> None:
    """One or two lines that hold the words, and no traceback."""
    assert result.exit_code == code, result.output
    message = result.output[result.output.rindex("error:") :].strip()
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 2 and "Traceback" not in result.output


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


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
    result = call("train-direction", "--samples", 2, *texts, *RECIPE)
    assert result.exit_code == 0, result.output
    assert "never seen the word 'zebra'" in result.output
    for words in ("effect at strength 1", "side effects", "safe strengths", "seconds", "wrote", "summary.json"):
        assert words in result.output
    assert "next: flowgrad apply-direction zebra your-photo.jpg" in result.output
    assert (tmp_path / "runs" / "zebra" / "before-after.png").is_file()
    assert call("bank", "search", "odd").output.startswith("name")


def test_the_same_seed_gives_the_same_file(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    assert train(tiny, tmp_path, "smiling").exit_code == 0
    first, again = (read_direction(folder / "bank/tiny/smiling.safetensors") for folder in (trained, tmp_path))
    assert first.info == again.info and (first.u == again.u).all()


def test_a_finished_run_is_not_replaced_unless_told(tiny: Tiny, trained: Path) -> None:
    failed(train(tiny, trained, "smiling"), 2, "exists already", "--overwrite")


def test_applying_keeps_names_and_strength_0_keeps_photos(tiny: Tiny, trained: Path) -> None:
    result = apply(tiny, trained, "smiling", tiny.photos, "--strength", 0, "--output", "same")
    assert result.exit_code == 0 and "4 of 4 photos written" in result.output
    for photo in tiny.files:
        assert np.abs(pixels(photo) - pixels(Path("same") / photo.name)).max() <= 1
    failed(apply(tiny, trained, "smiling", tiny.files[0], "--output", "same"), 2, "exists already", "--overwrite")
    edited = apply(tiny, trained, "smiling", tiny.files[0], "--output", "same", "--overwrite")
    assert edited.exit_code == 0 and edited.output.strip().endswith("photo-0.png")
    assert np.abs(pixels(tiny.files[0]) - pixels(Path("same/photo-0.png"))).max() > 1


def test_the_model_tells_apart_directions_of_one_name(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    direction = read_direction(trained / "bank/tiny/smiling.safetensors")
    bank = Bank(tmp_path / "bank")
    bank.add(direction, "smiling")
    bank.add(Direction(direction.u, direction.starts, replace(direction.info, model="other")), "smiling")
    arguments = ("apply-direction", "smiling", tiny.files[0], "--bank", bank.folder)
    failed(call(*arguments), 2, "several models: other, tiny")
    assert call(*arguments, "--model", tiny.model).exit_code == 0


def test_mixtures_add(tiny: Tiny, trained: Path) -> None:
    file = trained / "bank/tiny/smiling.safetensors"
    for spec, folder in (("smiling:0.25+smiling:0.25", "sum"), (file, "half"), ("smiling:1+smiling:-1", "none")):
        strength = ("--strength", 0.5 if folder == "half" else 1)
        assert apply(tiny, trained, spec, tiny.files[0], "-o", folder, *strength).exit_code == 0
    assert np.abs(pixels(Path("sum/photo-0.png")) - pixels(Path("half/photo-0.png"))).max() <= 1
    assert np.abs(pixels(Path("none/photo-0.png")) - pixels(tiny.files[0])).max() <= 1


def test_strips_and_contact_sheets(tiny: Tiny, trained: Path) -> None:
    result = apply(tiny, trained, "smiling", tiny.photos, "--strengths", "-1,0,1", "--grid", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert [Path(file["output"]).name for file in answer["files"]] == [f"photo-{i}-strip.png" for i in range(4)]
    for path in ("edited/photo-3-strip.png", "edited/contact-sheet.png"):
        assert pixels(Path(path)).shape[1] > 3 * 128


def test_photos_of_one_name_do_not_replace_one_another(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "photo-0.png"
    other.parent.mkdir()
    other.write_bytes(tiny.files[1].read_bytes())
    assert apply(tiny, trained, "smiling", tiny.files[0], other).exit_code == 0
    assert {path.name for path in Path("edited").iterdir()} == {"photo-0.png", "other-photo-0.png"}


def test_an_output_never_replaces_another_photo_that_is_edited(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "photo.png", tmp_path / "b" / "photo.png"
    for path, source in zip((first, second), tiny.files, strict=False):
        path.parent.mkdir()
        path.write_bytes(source.read_bytes())
    result = apply(tiny, trained, "smiling", first, second, "--output", second.parent, "--overwrite")
    assert result.exit_code == 1 and "would replace one of the photos themselves" in result.output
    assert second.read_bytes() == tiny.files[1].read_bytes()
    sheet = second.rename(second.with_name("contact-sheet.png"))
    result = apply(tiny, trained, "smiling", first, sheet, "--output", sheet.parent, "--overwrite", "--grid")
    failed(result, 2, "contact-sheet.png", "photos themselves")


def test_a_strength_beyond_the_safe_range_is_warned_of(tiny: Tiny, trained: Path) -> None:
    result = apply(tiny, trained, "smiling", tiny.files[0], "--strength", 1000)
    assert "beyond the safe range" in result.output


def test_edit_is_for_one_photo(tiny: Tiny) -> None:
    recipe = ("--iterations", 2, "--intervals", 3, "--augmentations", 1)
    result = call("edit", tiny.files[0], "--text", "a smiling face", "--model", tiny.model, *recipe)
    assert result.exit_code == 0, result.output
    assert "log-odds of a smiling face - a face" in result.output
    assert {path.name for path in Path("edited").iterdir()} == {"photo-0.png", "photo-0-before-after.png"}
    failed(call("edit", tiny.photos, "--text", "a face", "--model", tiny.model), 2, "one photo")


def test_edit_is_put_back_into_the_photo_unless_a_crop_is_wanted(tiny: Tiny, tmp_path: Path) -> None:
    photo = tmp_path / "wide.png"
    Image.open(tiny.files[0]).resize((90, 60), Image.Resampling.BICUBIC).save(photo, dpi=(300, 300))
    common = ("edit", photo, "--text", "a smiling face", "--model", tiny.model, "--strength", 3)
    recipe = ("--iterations", 1, "--intervals", 3, "--augmentations", 1, "--eta", 1)
    assert call(*common, *recipe).exit_code == 0
    assert call(*common, *recipe, "--crop", "--output", "crop").exit_code == 0
    before, after = pixels(photo), pixels(Path("edited/wide.png"))
    changed = np.flatnonzero((before != after).any(axis=(0, 2)))
    assert before.shape == after.shape and 15 <= changed.min() < changed.max() < 75, "the central square alone"
    assert pixels(Path("crop/wide.png")).shape == (16, 16, 3)
    failed(call(*common, "--output", tmp_path, "--overwrite"), 2, "photos themselves")


def test_samples_with_and_without_a_direction(tiny: Tiny, trained: Path) -> None:
    common = ("--model", tiny.model, "--bank", trained / "bank", "--seed", 5)
    assert call("sample", "--count", 3, "--output", "plain", "--grid", *common).exit_code == 0
    assert call("sample", "--count", 2, "--output", "zero", "-d", "smiling:0", *common).exit_code == 0
    assert call("sample", "--count", 1, "--output", "edited", "-d", "smiling:2", *common).exit_code == 0
    names = ["sample-5-00000.png", "sample-5-00001.png", "sample-5-00002.png"]
    assert sorted(path.name for path in Path("plain").iterdir()) == ["contact-sheet.png", *names]
    assert np.abs(pixels(Path("plain") / names[1]) - pixels(Path("zero") / names[1])).max() <= 1
    assert np.abs(pixels(Path("plain") / names[0]) - pixels(Path("edited") / names[0])).max() > 1


def test_evaluate_measures_at_every_strength(tiny: Tiny, trained: Path) -> None:
    places = ("--model", tiny.model, "--bank", trained / "bank")
    result = call("evaluate", "smiling", "--photos", tiny.photos, "--strengths=-1,1", "--json", *places)
    assert result.exit_code == 0, result.output
    before, reverse, after = json.loads(result.stdout)["measured"]
    assert (before["strength"], before["effect"]) == (0, 0) and reverse["effect"] < after["effect"]
    assert {path.name for path in Path("evaluation").iterdir()} == {"contact-sheet.png", "evaluation.json"}


def test_evaluate_asks_a_judge(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    judge = make_judge(tmp_path / "judge.safetensors")
    places = ("--model", tiny.model, "--bank", trained / "bank", "--judge", judge)
    result = call("evaluate", "smiling", "--photos", tiny.photos, *places)
    assert result.exit_code == 0 and "judged happy" in result.output
    for measured in json.loads(Path("evaluation/evaluation.json").read_text())["measured"]:
        assert measured["answers"]["happy"] + measured["answers"]["sad"] == pytest.approx(1)


GUIDE = """
attributes: {colour: {kind: category, column: colour, values: [red, blue]}}
slots: {colour: [{words: [red], means: {colour: [red]}}, {words: [blue], means: {colour: [blue]}}]}
templates: ["a {colour} thing"]
table: {split: split}
network: {embed_dim: 8, resolution: 32, vision_layers: [1, 1, 1, 1], vision_width: 4, context_length: 8, text_layers: 1}
training: {batch_size: 4, captions: 4, pool: 8, bfloat16: false}
evaluation: [{name: red, text: a red thing, against: a blue thing, positive: {colour: [red]}}]
"""


def test_a_guide_is_trained_from_a_table(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "guide.yaml").write_text(GUIDE)
    rows = [f"photo-{i % 4}.png,{('red', 'blue')[i % 2]},{('train', 'test')[i // 4]}" for i in range(8)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,colour,split", *rows]))
    arguments = ("train-guide", tiny.photos, "labels.csv", "--config", "guide.yaml", "--output", "guide", "--steps", 2)
    result = call(*arguments)
    assert result.exit_code == 0 and "red" in result.output, result.output
    assert {path.name for path in Path("guide").iterdir()} == {"model.safetensors", "README.md"}
    failed(call(*arguments), 2, "exists already")
    failed(call(*arguments[:3], "--output", "new", "--config", "none"), 2, "faces64")
    more = (*arguments[:-3], "more", "--steps", 1)
    assert call(*more, "--from", "guide/model.safetensors").exit_code == 0
    assert "begins with: guide/model.safetensors" in Path("more/README.md").read_text()
    failed(call(*more, "--overwrite", "--from", "faces64-guide"), 2, "other sizes")


# --- bank and models ---------------------------------------------------------------------------------------------


def test_the_bank_is_listed_shown_and_changed(trained: Path, tmp_path: Path) -> None:
    file = trained / "bank/tiny/smiling.safetensors"
    assert call("bank", "import", file, "--name", "grin").exit_code == 0
    assert "grin" in call("bank", "list").output
    assert [each["name"] for each in json.loads(call("bank", "list", "--model", "tiny", "--json").stdout)] == ["grin"]
    shown = call("bank", "show", "grin").output
    for words in ("a smiling face - a serious face", "safe from", "side effect at strength 1", "seed 0"):
        assert words in shown
    assert shown.count("a smiling face") == 2  # title and text: what is wanted is no side effect
    assert call("bank", "path", "grin").output.strip() == str(tmp_path / "own-bank/tiny/grin.safetensors")
    assert call("bank", "rename", "grin", "big-grin").exit_code == 0
    assert call("bank", "export", "big-grin", tmp_path).exit_code == 0
    assert (tmp_path / "big-grin.safetensors").is_file()
    assert call("bank", "remove", "big-grin").exit_code == 0
    assert "restored" in call("bank", "restore", "big-grin").output
    failed(call("bank", "import", file, "--name", "big-grin"), 2, "exists already")


def test_a_damaged_direction_is_listed_with_its_error(trained: Path, tmp_path: Path) -> None:
    bad = tmp_path / "own-bank/tiny/bad.safetensors"
    bad.parent.mkdir(parents=True)
    bad.write_bytes((trained / "bank/tiny/smiling.safetensors").read_bytes()[:300])
    result = call("bank", "list", "--model", "tiny")
    assert result.exit_code == 0 and "bad" in result.output and "truncated" in result.output


def test_models_are_listed_shown_and_converted(tiny: Tiny, tmp_path: Path) -> None:
    assert "faces64" in call("models", "list").output
    assert json.loads(call("models", "show", tiny.model, "--json").stdout)["size"] == 16
    result = call("models", "convert", tiny.model, tmp_path / "half")
    assert result.exit_code == 0 and (tmp_path / "half" / WEIGHTS).is_file()
    failed(call("models", "convert", tiny.model, tmp_path / "half"), 2, "exists already")


def test_browsing_the_bank_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'diffusers', 'matplotlib', 'yaml'}"
    code = f"import sys, cli; cli.app(['bank', 'list'], standalone_mode=False); print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("set()"), found.stdout


def test_version_and_help() -> None:
    assert call("--version").output.startswith("flowgrad")
    for command in ("train-direction", "apply-direction", "edit", "sample", "evaluate", "train-guide", "bank"):
        result = call(command, "--help")
        assert result.exit_code == 0 and command in result.output


# --- what goes wrong ---------------------------------------------------------------------------------------------


def test_an_unreadable_image(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    text, cut = tmp_path / "text.jpg", tmp_path / "cut.png"
    text.write_text("no image")
    cut.write_bytes(tiny.files[0].read_bytes()[:-300])
    failed(apply(tiny, trained, "smiling", text), 1, "text.jpg", "not an image", "Convert it")
    failed(apply(tiny, trained, "smiling", cut), 1, "cut.png", "damaged or truncated")
    failed(apply(tiny, trained, "smiling", tmp_path / "none.jpg"), 2, "none.jpg", "does not exist")


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
    failed(call("apply-direction", "smiling", tiny.files[0], *arguments), 1, "photo-0.png", "no face found")


def test_a_corrupt_direction(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "corrupt.safetensors"
    raw = (trained / "bank/tiny/smiling.safetensors").read_bytes()
    file.write_bytes(raw[:-100] + bytes(100))
    failed(apply(tiny, trained, file, tiny.files[0]), 1, "corrupt.safetensors", "hash")
    file.write_bytes(raw[:1000])
    failed(call("bank", "import", file), 1, "corrupt.safetensors", "truncated")


def test_another_models_direction_needs_force(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", tiny.guide, seed=1)
    arguments = ("apply-direction", "smiling", tiny.files[0], "--model", other, "--bank", trained / "bank")
    failed(call(*arguments), 1, "another model's weights", "--force")
    assert call(*arguments, "--force").exit_code == 0


def test_unknown_names_come_with_the_nearest(tiny: Tiny, trained: Path) -> None:
    failed(apply(tiny, trained, "smilin", tiny.files[0]), 2, "'smilin'", "Nearest: smiling")
    failed(call("bank", "remove", "smiling"), 2, "no direction")
    failed(call("sample", "--model", "faces46"), 2, "faces64")
    failed(train(tiny, trained, "new", "--recipe", "defualt"), 2, "default")
    failed(train(tiny, trained, "new", "--set", "momentun=1"), 2, "momentun", "momentum")
    failed(apply(tiny, trained, "smiling:much", tiny.files[0]), 2, "smiling:0.8+old:0.3")


def option_names(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for inner in getattr(command, "commands", {}).values():
        yield from option_names(inner)


def test_every_option_that_a_message_names_exists() -> None:
    """In all texts of the code; those of pip, torchrun and the like are named in words."""
    known = {*option_names(typer.main.get_command(app)), "--help", "--nproc-per-node"}
    for path in (file for room in ("flowgrad", "directions") for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = set(re.findall(r"(?<![\w<!-])--[a-z][a-z-]*[a-z]", node.value))
                assert named <= known, f"{path.relative_to(ROOT)} names {named - known}"


def test_wrong_calls(tiny: Tiny, trained: Path) -> None:
    assert call("train-direction", "--name", "x").exit_code == 2
    assert call("nonsense").exit_code == 2
    failed(train(tiny, trained, "Big Smile"), 2, "cannot name a direction")
    failed(train(tiny, trained, "new", "--samples", 2), 2, "either photos")
    for wrong in (("--eta", 2), ("--iterations", 0), ("--set", "stepsize=1"), ("--set", "inversion=magic")):
        failed(train(tiny, trained, "new", *wrong), 2, str(wrong[1]).split("=")[0])
    wrong_choice = apply(tiny, trained, "smiling", tiny.files[0], "--align", "perhaps")
    assert wrong_choice.exit_code == 2
    assert all(word in wrong_choice.output for word in ("perhaps", "auto", "always", "never"))
    failed(apply(tiny, trained, "smiling", tiny.files[0], "--strengths", "a,b"), 2, "--strengths")
    failed(apply(tiny, trained, "smiling", tiny.files[0], "--strengths", "0,nan"), 2, "--strengths")
    for strength in ("nan", "inf"):
        failed(apply(tiny, trained, "smiling", tiny.files[0], "--strength", strength), 2, "finite number")
    failed(call("edit", tiny.files[0], "--text", "x", "--model", tiny.model, "--strength", "nan"), 2, "finite number")
    failed(train(tiny, trained, "new", "--set", "momentum=["), 2, "momentum=[", "no value")
    failed(
        apply(tiny, trained, "smiling", tiny.files[0], "--output", tiny.photos, "--overwrite"), 2, "photos themselves"
    )


def test_missing_weights(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", tiny.guide)
    (model / WEIGHTS).unlink()
    result = call("apply-direction", "smiling", tiny.files[0], "--model", model, "--bank", trained / "bank")
    failed(result, 1, "weights are missing", WEIGHTS)
    failed(train(tiny, tmp_path, "new", "--guide", "none.safetensors"), 1, "none.safetensors", "train-guide")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_not_enough_memory(tiny: Tiny, trained: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object, **__: object) -> Iterator[None]:
        raise error

    monkeypatch.setattr(directions.apply.files, "invert_for", refuse)
    failed(apply(tiny, trained, "smiling", *tiny.files), 1, "not enough memory", "fewer photos", "--device cpu")


def test_a_full_disk(tiny: Tiny, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "photo.png")

    monkeypatch.setattr(Image.Image, "save", refuse)
    result = apply(tiny, trained, "smiling", *tiny.files)
    failed(result, 1, "No space left on device", "Free some space")
    assert result.output.count("No space left") == 1  # the first photo stops the rest
    monkeypatch.setattr(directions.apply.files, "save_photo", refuse)
    failed(apply(tiny, trained, "smiling", *tiny.files), 1, "the disk is full", "Free some space")


def test_an_interrupted_training_resumes_bit_for_bit(
    tiny: Tiny, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = directions.train.run.save_checkpoint

    def interrupt(path: Path, checkpoint: directions.train.run.Checkpoint) -> None:
        save(path, checkpoint)
        if len(checkpoint.history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(directions.train.run, "save_checkpoint", interrupt)
    failed(train(tiny, tmp_path, "smiling"), 130, "interrupted; run the same command again to resume")
    checkpoint = tmp_path / "runs/smiling/checkpoint.safetensors"
    assert checkpoint.is_file() and not Bank(tmp_path / "bank").list()
    monkeypatch.setattr(directions.train.run, "save_checkpoint", save)
    result = train(tiny, tmp_path, "smiling")
    assert result.exit_code == 0 and "going on after 2 of 3 evaluations" in result.output
    assert not checkpoint.exists()
    whole, resumed = (read_direction(folder / "bank/tiny/smiling.safetensors") for folder in (trained, tmp_path))
    assert whole.info == resumed.info and (whole.u == resumed.u).all()


@pytest.mark.parametrize("other", ["version", "task"])
def test_a_checkpoint_that_is_not_gone_on_from_is_told_of(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if other == "version":
            patched.setattr(directions.train.checkpoint, "VERSION", directions.train.checkpoint.VERSION - 1)
        patched.setattr(directions.train.run, "_held_out", interrupt)
        failed(train(tiny, tmp_path, "smiling"), 130, "interrupted")
    result = train(tiny, tmp_path, "smiling", *(("--seed", 1) if other == "task" else ()))
    assert (
        result.exit_code == 0 and "another training" in result.stderr and "starts from the beginning" in result.stderr
    )
    assert "going on" not in result.output


def test_bugs_show_a_traceback_on_demand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(Bank, "list", fail)
    failed(call("bank", "list"), 1, "ZeroDivisionError", "FLOWGRAD_DEBUG=1")
    monkeypatch.setenv("FLOWGRAD_DEBUG", "1")
    assert isinstance(call("bank", "list").exception, ZeroDivisionError)
