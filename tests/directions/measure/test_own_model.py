"""A model of one's own on the command line: trained, added, used, measured and removed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from directions.measure import model_card as portrait
from directions.own_models.catalogue import list_models
from flowgrad.errors import FlowgradError
from flowgrad.models import load_config, load_model
from flowgrad.models.diffusers_unet import WEIGHTS
from flowgrad.training.flow import run as flow_run
from flowgrad.training.loop.run import Run
from tests.helpers.command_line import call, failed, passed
from tests.helpers.flow_process import TINY
from tests.helpers.pipelines import make_autoencoder, make_unet
from tests.helpers.tiny import Tiny, guide_recipe, make_guide, make_model

SIZES = {key: list(value) if isinstance(value, tuple) else value for key, value in TINY.items() if key != "precision"}
RECIPE = {"network": SIZES, "training": {"batch": 8, "held_out": 0.25, "precision": "fp32", "warmup": 2}}


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four pictures, and a file that is none."""
    return fill(tmp_path_factory.mktemp("squares"), 24)


@pytest.fixture(autouse=True)
def quick(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that takes seconds, in a folder of the test's own."""
    monkeypatch.setattr(flow_run, "SHEET_STEPS", 3)
    monkeypatch.setattr(portrait, "STEPS", 3)
    (home / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))


def fill(folder: Path, count: int) -> Path:
    """Grey pictures with a square, red in every other one."""
    for i in range(count):
        square(60 + 150 * i // count, i % 2).save(folder / f"{i:03d}.png")
    (folder / "broken.jpg").write_bytes(b"nothing")
    return folder


def square(grey: int, red: float) -> Image.Image:
    """A square on a grey ground: blue at `red` 0, red at 1."""
    pixels = np.full((18, 18, 3), grey, np.uint8)
    pixels[4:12, 4:12] = (20 + round(230 * red), 20, 250 - round(230 * red))
    return Image.fromarray(pixels)


def redness(path: Path) -> float:
    pixels = np.asarray(Image.open(path)).astype(int)
    assert pixels.shape == (18, 18, 3)
    return float((pixels[5:9, 5:9, 0] - pixels[5:9, 5:9, 2]).mean())


def test_a_model_is_trained_added_used_and_removed(squares: Path) -> None:
    common = ("train-flow", squares, "--recipe", "tiny.yaml", "--device", "cpu", "--subject", "a square")
    common = (*common, "--licence", "CC0", "--output", "my-squares")
    said = passed(*common, "--steps", 2)
    for words in ("1 unreadable", "held-out loss", "wrote my-squares", "models add NAME my-squares"):
        assert words in said
    assert json.loads(call(*common, "--steps", 4, "--json").stdout)["steps"] == 4
    passed("models", "add", "squares", "my-squares")
    assert {"name": "squares", "shipped": False}.items() <= list_models()[-1].items()
    shown = json.loads(passed("models", "show", "squares", "--json"))
    assert (shown["name"], shown["subject"], shown["licence"]) == ("squares", "a square", "CC0")
    assert "CC0" in (Path("own-models/squares/README.md")).read_text()
    assert not Path("own-models/squares/training").exists()
    passed("sample", "--model", "squares", "--count", 2, "--output", "drawn")
    assert len(list(Path("drawn").iterdir())) == 2
    removed = passed("models", "remove", "squares")
    failed(call("models", "show", "squares"), 2, "no model called 'squares'")
    passed("models", "add", "squares", removed.split()[-4].strip("`"))
    assert load_model("squares", "cpu").name == "squares"


def test_a_model_is_added_with_its_guide(tiny: Tiny, tmp_path: Path) -> None:
    passed("models", "add", "mine", tiny.model, "--subject", "a thing")
    config = load_config("mine")
    assert (config.subject, Path(config.guide)) == ("a thing", tmp_path / "own-models" / "mine" / tiny.guide.name)
    assert load_model("mine", "cpu").fingerprint == load_model(str(tiny.model), "cpu").fingerprint
    (tmp_path / "shoe-guide").mkdir()
    other = make_guide(tmp_path / "shoe-guide" / "model.safetensors")
    passed("models", "add", "mine", tiny.model, "--guide", other, "--overwrite")
    assert Path(load_config("mine").guide).name == "shoe-guide.safetensors"
    texts = ("--text", "a smiling face", "--name", "smile", "--model", "mine", "--samples", 2)
    recipe = ("--iterations", 1, "--intervals", 2, "--augmentations", 1, "--calibration-photos", 2, "--eta", 1)
    passed("train-direction", *texts, *recipe)
    passed("apply-direction", "mine/smile", tiny.files[0])  # the model is found by the direction's name for it


def test_models_that_cannot_be_added_or_removed_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    for name, source, *words in (
        ("My Model", tiny.model, "lower-case letters", "'My Model'"),
        ("faces64", tiny.model, "'faces64' exists already", "ships with flowgrad"),
        ("mine", "nowhere", "nowhere does not exist", "flowgrad.yaml"),
        ("mine", tiny.photos, "has no flowgrad.yaml", "like = "),
        ("rf-church", tiny.photos, "like = rf-church", "own weights at", "own-models"),
    ):
        failed(call("models", "add", name, source, "--overwrite"), 2, *words)
    failed(call("models", "remove", "faces64"), 2, "ships with flowgrad")
    failed(call("models", "remove", "shoes"), 2, "no model of yours", "none")
    passed("models", "add", "mine", tiny.model)
    failed(call("models", "add", "mine", tiny.model), 2, "exists already", "overwrite")
    failed(call("models", "remove", "shoes"), 2, "there is mine")
    damaged = make_model(tmp_path / "damaged", tiny.guide)
    (damaged / WEIGHTS).write_bytes(b"nothing")
    failed(call("models", "add", "other", damaged), 1, "damaged")
    assert [path.name for path in Path("own-models").iterdir()] == ["mine"]


def test_a_damaged_model_is_listed_with_its_error(tiny: Tiny) -> None:
    passed("models", "add", "mine", tiny.model)
    for text in ("name: [", "a: 2024-13-45"):
        Path("own-models/mine/flowgrad.yaml").write_text(text)
        assert "unreadable" in passed("models", "list")
        failed(call("models", "show", "mine"), 2, "not a readable YAML file")


def test_a_model_without_a_guide_says_how_to_get_one(tiny: Tiny, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", tiny.guide)
    config = yaml.safe_load((model / "flowgrad.yaml").read_text())
    (model / "flowgrad.yaml").write_text(yaml.safe_dump({**config, "guide": ""}))
    result = call("train-direction", "--samples", 2, "--model", model, "--text", "an old face", "--name", "x")
    failed(result, 2, "no guide of its own", "train-guide")


def test_an_interrupted_training_says_how_to_go_on(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_keep", interrupt)
    arguments = ("train-flow", squares, "--recipe", "tiny.yaml", "--steps", 2, "--device", "cpu")
    failed(call(*arguments), 130, "interrupted", "run the same command again")


def test_wrong_calls_are_refused_before_anything_is_read(squares: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for code, word, *arguments in (
        (2, "above zero", squares, "--steps", 0),
        (2, "multiple of 8", squares, "--size", 20),
        (2, "lower-case letters", squares, "--name", "My Shoes"),
        (2, "no 'shoes' in configs/flows", squares, "--recipe", "shoes"),
        (2, "nowhere does not exist", "nowhere"),
        (1, "holds no pictures", "empty"),
        (2, "hf://owner/name", "hf://shoes"),
    ):
        failed(call("train-flow", *arguments), code, word)
    assert not (tmp_path / "my-flow" / "training" / "checkpoint.pt").exists()


# measuring


def test_models_are_measured_into_their_cards(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    model = make_model(tmp_path / "now", tiny.guide, aligned=True)
    before = make_model(tmp_path / "before", tiny.guide, seed=1)
    (before / "flowgrad.yaml").unlink()  # as diffusers saves it
    (model / "README.md").write_text("# Mine\n\n## Measured\n\ngone\n\n## Licence\n\nNone.\n")
    Path("log.jsonl").write_text(
        '{"seen": 0, "held_out": 0.08}\n{"seen": 64, "loss": 0.2}\n'
        '{"seen": 64, "loss": 0.1}\n{"seen": 64, "held_out": 0.07}\n'
    )
    assert portrait.read_log(Path("log.jsonl")) == [
        {"seen": 0, "loss": None, "held_out": 0.08},
        {"seen": 64, "loss": 0.1, "held_out": 0.07},
    ]
    options = (
        "--before",
        before,
        "--photos",
        tiny.photos,
        "--log",
        "log.jsonl",
        "--count",
        3,
        "--device",
        "cpu",
        "--steps",
        3,
    )
    found = json.loads(passed("models", "measure", model, *options, "--json"))
    assert set(found) == {"before", "now", "photos"}
    assert found["now"]["faces"] == 0 and found["photos"]["curvature"] is None
    assert sum(found["now"]["answers"][name] for name in ("female", "male")) == pytest.approx(1, abs=1e-5)
    assert found["now"]["held_out"] != found["before"]["held_out"]
    card = (model / "README.md").read_text()
    assert "gone" not in card and card.startswith("# Mine\n\n## Measured\n") and card.endswith("## Licence\n\nNone.\n")
    for words in ("| held-out loss |", "dlib finds a face | 0.0% | 0.0% | 0.0% |", "(samples-before.jpg)", "curve.png"):
        assert words in card
    for name in ("samples.jpg", "samples-before.jpg", "curve.png"):
        Image.open(model / name).load()
    few = json.loads(passed("models", "measure", model, *options, "--steps", 1, "--json"))
    assert few["now"]["curvature"] == found["now"]["curvature"] and few["now"]["answers"] != found["now"]["answers"]
    assert "3 samples of 1 Euler step, seed" in (model / "README.md").read_text()


def test_a_flow_in_latents_is_measured_with_its_autoencoder(tiny: Tiny, tmp_path: Path) -> None:
    """Against test photos, as photos of the training are; its loss is that of the latents."""
    torch.manual_seed(0)
    make_autoencoder(4).save_pretrained(tmp_path / "latent" / "vae")
    make_unet(4, 8).save_pretrained(tmp_path / "latent" / "unet")
    keys = {"name": "latent", "family": "diffusers-unet", "weights": ".", "size": 16, "judge": "faces64-judge"}
    (tmp_path / "latent" / "flowgrad.yaml").write_text(yaml.safe_dump(keys))
    names = [path.name for path in tiny.files]
    rows = [f"{name},{side}" for name, side in zip(names, ("test", "test", "train", "train"), strict=True)]
    Path("splits.csv").write_text("\n".join(["file,split", *rows]))
    options = ("--photos", tiny.photos, "--splits", "splits.csv", "--count", 3, "--device", "cpu", "--steps", 3)
    found = json.loads(passed("models", "measure", "latent", *options, "--json"))
    assert set(found) == {"now", "trained_on", "photos"}
    model = load_model("latent", "cpu", "fp32")
    photos = torch.stack([torch.from_numpy(np.array(Image.open(tiny.photos / name))) for name in names[:2]])
    photos = photos.permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        error = (model.decode(model.encode(photos)).clamp(-1, 1) - photos).square().flatten(1).mean(1)
    assert found["now"]["returned"] == pytest.approx(float(-10 * (error / 4).log10().mean()), abs=0.02)
    assert 0.5 < found["now"]["held_out"] < 10
    assert found["photos"]["distance"] is None and found["trained_on"]["distance"] > 0
    assert "2 photos of the training | 2 test photos" in (tmp_path / "latent" / "README.md").read_text()


def test_conversion_measures_what_it_replaces(tiny: Tiny, tmp_path: Path) -> None:
    target = make_model(tmp_path / "target", tiny.guide)
    new = make_model(tmp_path / "new", tiny.guide, seed=1)
    keys = json.loads((new / "config.json").read_text())
    (new / "config.json").write_text(json.dumps({**keys, "_name_or_path": "/home/somebody"}))  # as save_pretrained does
    options = ("--before", target, "--photos", tiny.photos, "--count", 2, "--device", "cpu", "--overwrite", "--json")
    found = json.loads(passed("models", "convert", new, target, *options))
    assert found["before"]["held_out"] != pytest.approx(found["now"]["held_out"], rel=1e-3)
    assert "_name_or_path" not in json.loads((target / "config.json").read_text())
    again = json.loads(passed("models", "measure", target, *options[2:-2], "--json"))
    assert again["now"]["held_out"] == pytest.approx(found["now"]["held_out"], rel=1e-5)


def test_conversion_writes_among_the_shipped_weights_only_those_that_ship(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = make_model(tmp_path / "package" / "faces64", tiny.guide, seed=1).parent
    monkeypatch.setattr("flowgrad.resources.resource", lambda _: shipped)
    passed("models", "convert", tiny.model, "out-here")
    assert (tmp_path / "out-here" / WEIGHTS).is_file()
    failed(call("models", "convert", tiny.model, "faces64"), 2, "exists already")
    passed("models", "convert", tiny.model, "faces64", "--overwrite")
    assert (shipped / "faces64" / WEIGHTS).read_bytes() == (tmp_path / "out-here" / WEIGHTS).read_bytes()
    assert [path.name for path in shipped.iterdir()] == ["faces64"]


def test_nothing_is_replaced_where_measuring_would_fail(tiny: Tiny, tmp_path: Path) -> None:
    target = make_model(tmp_path / "target", tiny.guide)
    before = (target / WEIGHTS).read_bytes()
    call_on = ("models", "convert", make_model(tmp_path / "new", tiny.guide, seed=1), target, "--overwrite")
    (tmp_path / "log.jsonl").write_text("{")
    failed(call(*call_on, "--log", "log.jsonl"), 1, "not a log of training")
    failed(call(*call_on, "--before", "faces64"), 2, "draws 64 pixels and", "compare equal sizes")
    (tmp_path / "empty").mkdir()
    failed(call(*call_on, "--photos", "empty"), 2, "no photos")
    assert (target / WEIGHTS).read_bytes() == before


def test_a_resumed_log_goes_back_to_where_it_was_resumed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"seen": {seen}, "loss": {loss}}}\n' for seen, loss in [(8, 3), (16, 2), (12, 1)]))
    assert [(record["seen"], record["loss"]) for record in portrait.read_log(path)] == [(8, 3), (12, 1)]


def test_photos_that_cannot_be_used_are_left_out_of_a_measurement(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.photos, tmp_path / "photos")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"nothing")
    model = make_model(tmp_path / "model", tiny.guide)
    said = passed("models", "measure", model, "--photos", "photos", "--count", 1, "--steps", 1, "--device", "cpu")
    assert "1 of 5 photos" in said and "left out" in said


def test_logs_and_photos_that_cannot_be_read_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("[1]\n")
    with pytest.raises(FlowgradError, match="not a log of training"):
        portrait.read_log(tmp_path / "log.jsonl")
    for option, value in (("--steps", 0), ("--count", 0), ("--splits", "none.csv"), ("--log", "none.jsonl")):
        refused = call("models", "measure", tiny.model, option, value)
        assert refused.exit_code == 2 and option in refused.output
    (tmp_path / "empty").mkdir()
    failed(call("models", "measure", tiny.model, "--photos", tmp_path / "empty"), 2, "no photos")


# from end to end


LATENTS = {
    "network": {"size": 16, "channels": [16, 32], "latent_channels": 4, "groups": 4},
    "training": {"batch": 16, "crop": 16, "precision": "fp32", "warmup": 10, "held_out": 0.05},
}


@pytest.mark.slow
@pytest.mark.parametrize(("space", "step_size"), [("pixels", 0.03), ("latents", 0.3)])
def test_from_pictures_to_an_edited_photo(space: str, step_size: float, tmp_path: Path) -> None:
    """A short training on two hundred pictures, then the main job on what it made.

    Their squares have all colours from blue to red, so that the guide's answer has a slope everywhere: what is learned
    then does not hang on the order in which threads add up.
    """
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    reds = [(37 * i % 200) / 199 for i in range(200)]
    for i, red in enumerate(reds):
        square(60 + 150 * i // 200, red).save(pictures / f"{i:03d}.png")
    (tmp_path / "guide.yaml").write_text(guide_recipe("colour", ("red", "blue"), "a {colour} square"))
    (tmp_path / "latents.yaml").write_text(yaml.safe_dump(LATENTS))
    rows = [f"{i:03d}.png,{'red' if red > 0.5 else 'blue'}" for i, red in enumerate(reds)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,colour", *rows]))
    trained = ("--recipe", "tiny.yaml", "--set", "learning_rate=0.003", "--steps", 1000, "--device", "cpu")
    if space == "latents":
        made = passed("train-autoencoder", pictures, "--recipe", "latents.yaml", "--steps", 300, "--output", "latents")
        assert float(made[made.index("held-out") :].split()[4]) > 20, "decibels"
        trained = (*trained, "--autoencoder", "latents", "--set", "patch=1")
    said = passed("train-flow", pictures, *trained, "--output", "flow")
    start, end = (float(part) for part in said[said.index("held-out loss") :].split()[2:5:2])
    assert end < 0.5 * start
    passed("train-guide", pictures, "labels.csv", "--config", "guide.yaml", "--output", "guide", "--steps", 60)
    passed("models", "add", "squares", "flow", "--guide", "guide/model.safetensors", "--subject", "a blue square")
    *photos, unseen = [pictures / f"{i:03d}.png" for i, red in enumerate(reds) if red < 0.4][:11]
    recipe = ("--iterations", 10, "--intervals", 6, "--augmentations", 2, "--calibration-photos", 4)
    text = ("--text", "a red square", "--name", "red", "--step-size", step_size)
    passed("train-direction", *photos, *text, "--model", "squares", *recipe)
    passed("apply-direction", "red", unseen, "--strength", 1)
    assert redness(Path("edited") / f"{unseen.stem}-red.png") > redness(unseen) + 20
    assert "red" in passed("bank", "list", "--model", "squares")
    assert "a red square - a blue square" in passed("bank", "show", "red")
