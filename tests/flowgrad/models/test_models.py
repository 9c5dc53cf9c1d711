"""The embedded model: configuration, loading, precision, and what a wrong file is told."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.model_config import FAMILY_KEYS
from flowgrad.models import Model, load_config, load_model
from flowgrad.models.diffusers_unet import WEIGHTS, UNetVelocity, convert_unet, load_unet
from flowgrad.resources import resource
from flowgrad.velocity import checked
from tests.helpers.paths import ROOT

MINIMAL = "name: mine\nfamily: {family}\nweights: x\nsize: 8\n"


@pytest.fixture(scope="module")
def faces64() -> Model:
    return load_model("faces64", "cpu", "fp32")


def test_the_shipped_model_meets_the_contract(faces64: Model):
    assert faces64.shape == (3, 64, 64)
    x = faces64.noise(2, seed=1)
    for t in (torch.tensor(0.3), torch.tensor([0.3, 0.3])):
        assert checked(faces64.velocity(x, t), x).isfinite().all()
    torch.testing.assert_close(faces64.velocity(x, torch.tensor(0.3)), faces64.velocity(x, torch.tensor([0.3, 0.3])))


def test_loading_it_imports_of_diffusers_only_what_it_needs():
    code = "import sys; from flowgrad.models import load_model; load_model(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "diffusers.models.unets.unet_2d" in loaded
    assert not {"scipy", "torchvision", "diffusers.schedulers.scheduling_ddim"} & loaded


def test_the_velocity_is_the_one_that_the_card_states(faces64: Model):
    network = UNet2DModel.from_config(faces64.velocity.inner.network.config)
    state = load_file(resource("weights") / "faces64" / WEIGHTS)
    network.load_state_dict({k: v.float() for k, v in state.items()})
    x, t = faces64.noise(2, seed=1), torch.tensor(0.37)
    with torch.no_grad():
        expected = F.pixel_shuffle(network(F.pixel_unshuffle(x, 2), 1000 * t).sample, 2)
    torch.testing.assert_close(faces64.velocity(x, t), expected, atol=1e-4, rtol=1e-4)


def test_bf16_keeps_the_dtype_of_states(faces64: Model):
    low = UNetVelocity(faces64.velocity.inner.network, 2, 1000, torch.bfloat16)
    x, t = faces64.noise(1, seed=1), torch.tensor(0.5)
    v, exact = low(x, t), faces64.velocity(x, t)
    assert v.dtype == torch.float32
    assert (v - exact).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()


def test_noise_of_an_image_does_not_depend_on_how_many_there_are(faces64: Model):
    assert torch.equal(faces64.noise(3, seed=5)[:1], faces64.noise(1, seed=5))
    assert not torch.equal(faces64.noise(2, seed=5)[1], faces64.noise(1, seed=6)[0]), "seeds share no image"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL.format(family="ldm") + "step: 3", "unknown key 'step'; did you mean 'steps'"),
        (MINIMAL.format(family="ldm") + "steps: 0", "steps: .*greater than 0"),
        (MINIMAL.format(family="ldm") + "steps: many", "steps: .*integer"),
        (MINIMAL.format(family="diffusers") + f"sha256: {'ab' * 32}", "sha256 is of one file"),
        ("- a\n- list\n", "must be a table"),
        ("name: [unclosed", "not a readable YAML"),
        ("a: 2024-13-45", "not a readable YAML"),
        ("1: 2", "keys must be words, and 1 is none"),
    ],
)
def test_a_wrong_configuration_says_where(tmp_path: Path, text: str, message: str):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_config(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("key", FAMILY_KEYS)
def test_a_key_of_another_family_is_refused(key: str, tmp_path: Path):
    other = "ldm" if FAMILY_KEYS[key] != "ldm" else "rf-ncsnpp"
    value = {"patch": 2, "time_scale": 10, "network": "{}", "guidance_scale": 2, "prediction": "velocity"}.get(key, "a")
    (tmp_path / "mine.yaml").write_text(MINIMAL.format(family=other) + f"{key}: {value}\n")
    with pytest.raises(FlowgradError, match=f"{key} belongs to the family {FAMILY_KEYS[key]}"):
        load_config(str(tmp_path / "mine.yaml"))


def test_names_and_devices_that_are_not_there_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no model called 'face64'; there is faces64"):
        load_config("face64")
    with pytest.raises(UsageError, match="device 'tpu9' cannot be used"):
        load_model("faces64", "tpu9")
    with pytest.raises(UsageError, match="precision must be one of auto, fp32, bf16, fp16; got 'int8'"):
        load_model("faces64", "cpu", "int8")
    (tmp_path / "mine.yaml").write_text(MINIMAL.format(family="ldm"))
    with pytest.raises(FlowgradError, match=r"the weights of mine are missing: put them at .*x"):
        load_model(str(tmp_path / "mine.yaml"), "cpu")


def test_damaged_and_foreign_weights_are_refused(tmp_path: Path):
    folder = shutil.copytree(resource("weights") / "faces64", tmp_path / "weights")
    state, data = load_file(resource("weights") / "faces64" / WEIGHTS), (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(FlowgradError, match="damaged"):
        load_unet(folder)
    others = list(state)[1:]
    for wrong, word in (
        ({name: state[name] for name in others}, "missing"),
        ({**state, "odd": torch.ones(2)}, "unknown"),
    ):
        save_file(wrong, folder / WEIGHTS)
        with pytest.raises(FlowgradError, match=rf"do not fit a UNet2DModel .* is {word}"):
            load_unet(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FlowgradError, match="damaged"):
        load_unet(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FlowgradError, match="weights are missing"):
        load_unet(folder)


def test_conversion_is_fp16_and_repeatable(tmp_path: Path):
    source = resource("weights") / "faces64"
    written = convert_unet(source, tmp_path / "out")
    again = load_file(written)
    assert {value.dtype for value in again.values()} == {torch.float16}
    assert all(torch.equal(value, again[name]) for name, value in load_file(source / WEIGHTS).items())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "out")]
    assert configs[0] == configs[1]
    load_unet(tmp_path / "out")
