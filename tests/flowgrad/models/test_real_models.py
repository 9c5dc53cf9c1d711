"""The main job on a tiny model of every family, from its configuration file on; and the check of a model."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

import directions.bank.bank
from cli import app
from directions.apply.inversion import invert_images, join
from directions.measure import model_card as portrait
from directions.measure.model_check import check_model, problems
from flowgrad.models import load_config, load_model
from flowgrad.ode import Grid, integrate
from flowgrad.resources import model_files
from tests.helpers.pipelines import has_transformers, make_pipeline, make_unet
from tests.helpers.tiny import make_guide, make_model, make_photos

FAMILIES = (  # the embedded model's own is in test_cli.py
    "rf",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("ldm-vq", "ldm-kl")),
    "diffusion",
    pytest.param("instaflow", marks=has_transformers),
    *(pytest.param(kind, marks=(has_transformers, pytest.mark.slow)) for kind in ("sd3", "flux")),
)
COMMON = "name: {name}\nguide: {guide}\nsteps: {steps}\nsubject: a face\nprobes: [a woman - a man]\n"
OWN = {
    "rf": "family: rf-ncsnpp\nsize: 32\nnetwork: {channels: 16, multipliers: [1, 2, 2], attention: [16]}\n",
    "ldm-vq": "family: ldm\nsize: 64\n",
    "ldm-kl": "family: ldm\nsize: 32\ntrajectories: host-half\n",
    "diffusion": "family: diffusers\nsize: 16\ndtype: bf16\nbatch: 1\n",
    "instaflow": "family: diffusers\nsize: 32\nprediction: velocity\nprompt: a face\nguidance_scale: 2\n",
    "sd3": "family: diffusers\nsize: 32\nprompt: a face\nguidance_scale: 2\ncheckpointing: true\n",
    "flux": "family: diffusers\nsize: 32\nprompt: a face\nguidance_scale: 3.5\ntrajectories: host\n",
}
REFERENCES = {"rf": "rf_ncsnpp_tiny/checkpoint_10.pth", "ldm-vq": "ldm_vq_tiny", "ldm-kl": "ldm_kl_tiny"}
RECIPE = ("--iterations", "1", "--eta", "1", "--intervals", "2", "--augmentations", "1", "--calibration-photos", "2")


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_guide(tmp_path_factory.mktemp("guide") / "tiny-guide.safetensors")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWGRAD_BANK", str(tmp_path / "bank"))
    monkeypatch.setenv("FLOWGRAD_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(directions.bank.bank, "_shipped_folder", lambda: None)
    monkeypatch.chdir(tmp_path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def configured(family: str, folder: Path, guide: Path, request: pytest.FixtureRequest) -> Path:
    """A configuration file of a tiny model of the family."""
    if family in REFERENCES:
        weights = request.getfixturevalue("shared") / "reference" / REFERENCES[family]
    elif family == "diffusion":
        weights = folder / "weights"
        DDPMPipeline(make_unet(), DDPMScheduler()).save_pretrained(weights)
    else:
        weights = folder / "weights"
        make_pipeline(family).save_pretrained(weights)
    path = folder / f"{family}.yaml"
    steps = 5 if family.startswith("ldm") else 4
    path.write_text(
        COMMON.format(name=f"tiny-{family}", guide=guide, steps=steps) + OWN[family] + f"weights: {weights}\n"
    )
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_the_main_job(family: str, tmp_path: Path, guide: Path, request: pytest.FixtureRequest):
    config = configured(family, tmp_path, guide, request)
    size = load_config(str(config)).size
    photos = make_photos(tmp_path / "photos", 2, size)
    texts = ("--text", "a smiling face", "--source", "a serious face", "--name", "smiling")
    trained = call("train-direction", photos, *texts, "--model", config, *RECIPE, "--json")
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["info"]["model"] == load_config(str(config)).name
    applied = call("apply-direction", "smiling", photos, "--model", config, "--strength", "0.5")
    assert applied.exit_code == 0, applied.output
    with Image.open(tmp_path / "edited" / "photo-0-smiling@0.5.png") as edited:
        assert edited.size == (size, size)
    listed = call("bank", "list", "--json")
    assert [entry["name"] for entry in json.loads(listed.stdout)] == ["smiling"]
    other = make_model(tmp_path / "other", guide, name="other")
    refused = call("apply-direction", "smiling", photos, "--model", other, "--output", "x")
    assert refused.exit_code and "Traceback" not in refused.output


@pytest.mark.parametrize("family", ["rf", "diffusion"])
def test_a_checkpoint_that_is_added_stays_where_it_is(
    family: str, tmp_path: Path, guide: Path, request: pytest.FixtureRequest
):
    config = configured(family, tmp_path, guide, request)
    weights = load_config(str(config)).weights_path
    assert f"its weights stay where they are: {weights}" in call("models", "add", "mine", config).output
    assert {path.name for path in (tmp_path / "models" / "mine").iterdir()} == {"flowgrad.yaml", guide.name}
    assert load_model("mine", "cpu").fingerprint == load_model(str(config), "cpu").fingerprint
    removed = call("models", "remove", "mine").output.split()[-4].strip("`")
    assert weights.exists() and call("models", "add", "mine", removed).exit_code == 0
    added = call("models", "add", "other", weights, "--like", config, "--guide", "ViT-B/32", "--json")
    assert json.loads(added.stdout)["weights"] == str(weights)
    assert (
        load_config("other").guide == "ViT-B/32" and load_model("other", "cpu").config.size == load_config("mine").size
    )
    listed = {m["name"]: m for m in json.loads(call("models", "list", "--json").stdout)}
    assert listed["other"]["weights"] and not listed["other"]["shipped"]


def test_a_model_that_is_added_can_be_measured_and_others_cannot(
    tmp_path: Path, guide: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(portrait, "STEPS", 3)
    config = configured("ldm-vq", tmp_path, guide, request)
    refused = call("models", "measure", config)
    assert refused.exit_code == 2 and "has no folder for a card" in refused.output
    call("models", "add", "mine", config)
    photos = make_photos(tmp_path / "photos", 2, load_config("mine").size)
    measured = call("models", "measure", "mine", "--photos", photos, "--count", 2, "--json")
    assert measured.exit_code == 0, measured.output
    now = json.loads(measured.stdout)["now"]
    assert now["held_out"] is None and now["curvature"] > 0  # its paths are no straight lines between pixels
    assert "## Measured" in (tmp_path / "models" / "mine" / "README.md").read_text()


def test_a_flow_is_not_trained_on_from_another_family(tmp_path: Path, guide: Path, request: pytest.FixtureRequest):
    config = configured("diffusion", tmp_path, guide, request)
    refused = call("train-flow", make_photos(tmp_path / "photos", 4), "--from", config, "--steps", 1)
    assert refused.exit_code == 2 and "is of the family diffusers" in refused.output


@pytest.mark.parametrize("family", ["rf", "ldm-vq", "ldm-kl"])
def test_batches_equal_one_by_one_and_strength_0_returns_what_the_model_can_show(
    family: str, tmp_path: Path, guide: Path, request: pytest.FixtureRequest
):
    model = load_model(str(configured(family, tmp_path, guide, request)), "cpu", "fp32")
    x, t = model.noise(2, seed=0), torch.tensor([0.1, 0.9])
    alone = torch.cat([model.velocity(x[i : i + 1], t[i]) for i in range(2)])
    assert (model.velocity(x, t) - alone).norm() < 1e-5 * alone.norm(), "up to rounding in float32"
    leaf = x.clone().requires_grad_()
    decoded = model.decode(leaf)
    assert torch.autograd.grad(decoded.square().sum(), leaf)[0].abs().max() > 0
    assert torch.equal(model.decode(x), decoded), "the same without a gradient"
    images = torch.rand(2, 3, model.config.size, model.config.size) * 2 - 1
    photos = join(invert_images(model, images))
    with torch.no_grad():
        torch.testing.assert_close(photos.images, model.decode(model.encode(images)), atol=1e-5, rtol=1e-5)
        residual = photos.residual(Grid((0, 2), model.config.steps))
        x1 = integrate(model.velocity, photos.x0, Grid((0, 2), model.config.steps), residual=residual).x1
        largest = photos.trajectory.states.float().flatten(1).norm(dim=1).max()  # rounding is relative to the states
        assert (x1 - model.encode(images)).norm() < (5e-3 if model.store.dtype else 1e-4) * largest
    assert photos.trajectory.velocities.dtype == (model.store.dtype or torch.float32)


def test_check_says_whether_a_model_is_fit(tmp_path: Path, guide: Path):
    folder = make_model(tmp_path / "model", guide)
    found, samples = check_model(load_model(str(folder), "cpu", "fp32"))
    assert len(samples) == 4 and found.returned > 60 and found.first_stage == float("inf")
    assert found.seconds[0] > 0 and found.memory > 1e6 and found.bends[1] >= found.bends[0] >= 0
    shown = call("models", "check", folder, "--output", tmp_path / "samples.png")
    assert shown.exit_code == (1 if found.problems else 0), shown.output
    assert found.verdict in " ".join(shown.output.split()) and (tmp_path / "samples.png").is_file()
    answer = json.loads(call("models", "check", folder, "--json").stdout)
    assert answer["verdict"] == found.verdict and answer["shape"] == [3, 16, 16]
    assert answer["first_stage"] is None, "JSON has no infinity"


@pytest.mark.parametrize(
    ("images", "measured", "message"),
    [
        (torch.full((4, 3, 8, 8), float("nan")), (1.0, 99.0, 99.0), "not finite"),
        (torch.zeros(4, 3, 8, 8), (1.0, 99.0, 99.0), "samples are flat"),
        (torch.randn(1, 3, 8, 8).repeat(4, 1, 1, 1), (1.0, 99.0, 99.0), "all samples are one image"),
        (torch.randn(4, 3, 8, 8), (1.0, 10.0, 99.0), "returns with 10.0 dB only"),
        (torch.randn(4, 3, 8, 8), (1.0, 99.0, 12.0), "keeps 12.0 dB"),
    ],
)
def test_each_problem_is_named(images: Tensor, measured: tuple[float, float, float], message: str):
    assert any(message in problem for problem in problems(images, *measured))
    assert problems(torch.randn(4, 3, 8, 8), 1.0, 99.0, 99.0) == ()


def test_shipped_configurations_are_valid_and_say_where_weights_come_from():
    for name in model_files():
        config = load_config(name)
        shown = call("models", "show", name)
        assert shown.exit_code == 0 and config.name == name
        if not config.weights_path.exists():
            assert config.source and config.licence
            told = "fetched from the hub" if config.on_hub else "missing; put them at"
            assert told in " ".join(shown.output.split())
            if not config.on_hub:
                failed = call("models", "check", name)
                assert failed.exit_code == 1 and "licence" in failed.output and config.source[:20] in failed.output
