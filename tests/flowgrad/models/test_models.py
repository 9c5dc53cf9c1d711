"""The embedded model: configuration, loading, precision, and what a wrong file is told."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.models import load_config, load_model, model_names
from flowgrad.models.convert import convert_unet
from flowgrad.models.diffusers_unet import WEIGHTS, UNetVelocity, load_unet
from flowgrad.ode import Grid, integrate
from flowgrad.resources import resource
from flowgrad.velocity import checked


@pytest.fixture(scope="module")
def faces64():
    return load_model("faces64", "cpu", "fp32")


def folder_copy(tmp_path):
    return shutil.copytree(resource("weights") / "faces64", tmp_path / "weights")


def write_config(tmp_path, **changes):
    config = (resource("configs") / "models" / "faces64.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(config + "".join(f"\n{key}: {value}" for key, value in changes.items()))
    return path


def test_the_shipped_model_is_listed_and_meets_the_contract(faces64):
    assert "faces64" in model_names()
    assert faces64.shape == (3, 64, 64)
    x = faces64.noise(2, seed=1)
    for t in (torch.tensor(0.3), torch.tensor([0.3, 0.3])):
        assert checked(faces64.velocity, x, t).isfinite().all()
    torch.testing.assert_close(faces64.velocity(x, torch.tensor(0.3)), faces64.velocity(x, torch.tensor([0.3, 0.3])))


def test_the_velocity_is_the_one_that_the_card_states(faces64):
    from diffusers import UNet2DModel

    network = UNet2DModel.from_config(faces64.velocity.inner.network.config)
    state = load_file(resource("weights") / "faces64" / WEIGHTS)
    network.load_state_dict({k: v.float() for k, v in state.items()})
    x, t = faces64.noise(2, seed=1), torch.tensor(0.37)
    with torch.no_grad():
        expected = F.pixel_shuffle(network(F.pixel_unshuffle(x, 2), 1000 * t).sample, 2)
    torch.testing.assert_close(faces64.velocity(x, t), expected, atol=1e-4, rtol=1e-4)


def test_fp16_weights_lose_nothing_visible(faces64, shared):
    original, rounded = (load_unet(shared / "prior" / "faces64") for _ in range(2))
    rounded.half().float()
    exact, stored = (UNetVelocity(network, 2, 1000, torch.float32) for network in (original, rounded))
    x, grid = faces64.noise(2, seed=1), Grid.uniform(50, 10)
    difference = integrate(exact, x, grid).x1 - integrate(stored, x, grid).x1
    assert difference.any()
    assert difference.abs().max() < 0.02, "of a range of 2"


def test_bf16_keeps_the_dtype_of_states(faces64):
    low = UNetVelocity(faces64.velocity.inner.network, 2, 1000, torch.bfloat16)
    x, t = faces64.noise(1, seed=1), torch.tensor(0.5)
    v, exact = low(x, t), faces64.velocity(x, t)
    assert v.dtype == torch.float32
    assert (v - exact).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()


def test_noise_of_an_image_does_not_depend_on_how_many_there_are(faces64):
    assert torch.equal(faces64.noise(3, seed=5)[:1], faces64.noise(1, seed=5))
    assert not torch.equal(faces64.noise(2, seed=5)[1], faces64.noise(1, seed=6)[0]), "seeds share no image"


def test_the_light_import_gives_the_real_class_and_leaves_diffusers_whole():
    code = (
        "from flowgrad.models.diffusers_unet import unet_class; light = unet_class();"
        "import diffusers, torch._dynamo;"
        "from diffusers.models.transformers import DiTTransformer2DModel;"
        "assert light is diffusers.UNet2DModel; assert hasattr(torch._dynamo, 'optimize')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_model_is_told_the_nearest():
    with pytest.raises(UsageError, match="no model called 'face64'; there is faces64"):
        load_config("face64")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_scal": 1000}, "unknown key 'time_scal'; did you mean 'time_scale'"),
        ({"steps": 0}, "steps: .*greater than 0"),
        ({"steps": "many"}, "steps: .*integer"),
    ],
)
def test_a_wrong_configuration_names_the_key(tmp_path, changes, message):
    with pytest.raises(FlowgradError, match=message):
        load_config(str(write_config(tmp_path, **changes)))


def test_a_configuration_that_is_no_table_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("- a\n- list\n")
    with pytest.raises(FlowgradError, match="must be a table"):
        load_config(str(path))
    for text in ("name: [unclosed", "a: 2024-13-45"):
        path.write_text(text)
        with pytest.raises(FlowgradError, match="not valid YAML"):
            load_config(str(path))
    path.write_text("1: 2")
    with pytest.raises(FlowgradError, match="1: keys must be words"):
        load_config(str(path))


def test_missing_weights_say_which(tmp_path):
    with pytest.raises(FlowgradError, match=r"the weights of faces64 are missing: put them at .*nowhere"):
        load_model(str(write_config(tmp_path, weights="nowhere")), "cpu")


def test_damaged_and_foreign_weights_are_refused(tmp_path):
    folder = folder_copy(tmp_path)
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(FlowgradError, match="damaged"):
        load_unet(folder)
    save_file({"other": torch.zeros(2)}, folder / WEIGHTS)
    with pytest.raises(FlowgradError, match=r"do not fit a UNet2DModel"):
        load_unet(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FlowgradError, match="damaged"):
        load_unet(folder)


def test_a_device_or_precision_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="device 'tpu9' cannot be used"):
        load_model("faces64", "tpu9")
    with pytest.raises(UsageError, match="precision must be one of auto, fp32, bf16, fp16; got 'int8'"):
        load_model("faces64", "cpu", "int8")


def test_conversion_is_fp16_and_repeatable(tmp_path):
    source = resource("weights") / "faces64"
    written = convert_unet(source, tmp_path / "out")
    again = load_file(written)
    assert {value.dtype for value in again.values()} == {torch.float16}
    assert all(torch.equal(value, again[name]) for name, value in load_file(source / WEIGHTS).items())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )
    load_unet(tmp_path / "out")
