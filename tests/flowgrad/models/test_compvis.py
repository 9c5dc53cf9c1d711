"""CompVis' latent diffusion: the published code's outputs, latents and images, and its DDIM as an exact Euler flow."""

import os
import re
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from flowgrad.checkpoints import read_checkpoint
from flowgrad.errors import FlowgradError
from flowgrad.models import Model
from flowgrad.ode import Grid, integrate
from tests.helpers.tiny import load_described

SIZES = {"vq": 64, "kl": 32}


@pytest.fixture(params=("vq", "kl"))
def kind(request) -> str:
    return request.param


@pytest.fixture
def reference(shared: Path, kind: str) -> Path:
    return shared / "reference" / f"ldm_{kind}_tiny"


def load(weights: Path, folder: Path, kind: str) -> Model:
    keys = {"family": "ldm", "weights": weights, "size": SIZES[kind], "steps": 200}
    return load_described(folder / "tiny-ldm.yaml", name="tiny-ldm", **keys)


@pytest.fixture
def model(reference: Path, tmp_path: Path, kind: str) -> Model:
    return load(reference, tmp_path, kind)


@pytest.fixture
def expected(reference: Path) -> dict[str, torch.Tensor]:
    return load_file(reference / "expected.safetensors")


def test_the_network_is_the_published_one(model: Model, expected: dict[str, torch.Tensor]):
    with torch.no_grad():
        eps = model.velocity.inner.network(expected["x"], expected["t"], None)
    assert (eps - expected["eps"]).norm() < 1e-4 * expected["eps"].norm()
    assert (eps - expected["eps"]).abs().max() < 1e-4


def test_latents_and_images_are_the_published_ones(model: Model, expected: dict[str, torch.Tensor]):
    with torch.no_grad():
        states = model.encode(expected["image"])
        assert (states / model.velocity.inner.gain - expected["latent"]).abs().max() < 1e-3
        assert (model.decode(states) - expected["decoded"]).abs().max() < 1e-3


def test_euler_on_the_flow_is_ddim(model: Model, expected: dict[str, torch.Tensor]):
    x1 = integrate(model.velocity, expected["x_T"], Grid.full(200)).x1 / model.velocity.inner.gain
    assert (x1 - expected["ddim200_x0"]).norm() < 1e-3 * expected["ddim200_x0"].norm()


@pytest.mark.parametrize("kind", ["vq"], indirect=True)
def test_bad_folders_say_what_is_wrong(reference: Path, tmp_path: Path, kind: str):
    state = torch.load(reference / "model.ckpt", weights_only=True)["state_dict"]
    config = yaml.safe_load((reference / "config.yaml").read_text())["model"]["params"]
    unet = config["unet_config"]["params"]
    lost = {k: v for k, v in state.items() if k != "model_ema.diffusion_modelout2bias"}

    def sized(**sizes: object) -> dict[str, object]:
        return {"unet_config": {"target": "x.UNetModel", "params": {**unet, **sizes}}}

    cases = (  # what the config.yaml has otherwise, what the model.ckpt has, and what is said
        ({}, None, "model.ckpt is missing"),
        ({}, {"model": {}}, "no checkpoint of latent diffusion"),
        ({}, {"state_dict": {k: v for k, v in state.items() if k.startswith("model.")}}, "holds no first stage"),
        ({}, {"state_dict": lost}, "none of out.2.bias"),
        ({}, {"state_dict": {**state, "model.diffusion_model.out.2.bias": 1}}, "among its weights"),
        (sized(model_channels=64), {"state_dict": state}, "does not fit the U-Net"),
        (sized(channel_mult=[1]), {"state_dict": state}, "does not fit the U-Net"),
        (sized(use_new_attention_order=True), {}, "has use_new_attention_order: True"),
        ({"parameterization": "x0"}, {}, "has parameterization: x0"),
        ({"beta_schedule": "cosine"}, {}, "has beta_schedule: cosine"),
        ({"unet_config": {"target": "x.UNetModel"}}, {}, r"describes no latent diffusion model \(KeyError"),
        ({"timesteps": None}, {}, r"describes no latent diffusion model \(TypeError"),
        ({"image_size": 32}, {"state_dict": state}, "size is 64, and the model's images have 128 pixels"),
        ({"cond_stage_config": {"target": "x.ClassEmbedder"}}, {}, "only models with __is_unconditional__"),
    )
    for i, (params, raw, message) in enumerate(cases):
        folder = tmp_path / str(i)
        folder.mkdir()
        if raw is not None:
            torch.save(raw, folder / "model.ckpt")
        (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"params": {**config, **params}}}))
        with pytest.raises(FlowgradError, match=message):
            load(folder, tmp_path, kind)
    (folder / "config.yaml").unlink()
    with pytest.raises(FlowgradError, match=r"config\.yaml is not a readable YAML file"):
        load(folder, tmp_path, kind)
    with pytest.raises(FlowgradError, match="the weights of tiny-ldm are missing"):
        load(tmp_path / "nowhere", tmp_path, kind)


@pytest.mark.parametrize("kind", ["vq"], indirect=True)
def test_another_config_is_another_conversion(reference: Path, tmp_path: Path, kind: str):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.ckpt").symlink_to(reference / "model.ckpt")
    text = (reference / "config.yaml").read_text()

    def attended(config: str) -> torch.Tensor:
        (folder / "config.yaml").write_text(config)
        model = load(folder, tmp_path, kind)
        fingerprints.append(model.fingerprint)
        with torch.no_grad():
            return model.velocity(model.noise(1, seed=0), torch.tensor(0.5))

    fingerprints: list[str] = []
    first = attended(text)
    assert not torch.equal(attended(text.replace("num_head_channels: 16", "num_head_channels: 8")), first)
    torch.testing.assert_close(attended(f"# a comment\n{text}"), first)
    attended(re.sub(r"linear_end: .*", "linear_end: 0.03", text))
    assert fingerprints[0] == fingerprints[2] and len(set(fingerprints)) == 3
    assert len(list(Path(os.environ["FLOWGRAD_CACHE"]).glob("model-*"))) == 4


def test_a_trainers_bookkeeping_is_ignored_and_its_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType("pytorch_lightning.callbacks")

    class Checkpoint:
        def __init__(self) -> None:
            self.best = 1

    Checkpoint.__module__, Checkpoint.__qualname__ = module.__name__, "Checkpoint"
    module.Checkpoint = Checkpoint  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"state_dict": {"w": torch.ones(2)}, "callbacks": {Checkpoint: Checkpoint()}}, tmp_path / "a.ckpt")
    monkeypatch.delitem(sys.modules, module.__name__)
    assert torch.equal(read_checkpoint(tmp_path / "a.ckpt")["state_dict"]["w"], torch.ones(2))
