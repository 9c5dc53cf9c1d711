"""A flow of one's own in the latents of an autoencoder: from a tiny checkpoint, in the layout of larger ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from safetensors.torch import load_file
from torch import Tensor

from directions.own_models.folder import add_model
from flowgrad.errors import FlowgradError
from flowgrad.models import Model, load_model
from flowgrad.models.autoencoder import FirstStage
from flowgrad.ode import Grid, anchor, integrate, invert
from tests.helpers.pipelines import make_autoencoder, make_unet
from tests.helpers.tiny import load_described

MEAN, STD = [0.3, -0.2, 0.0, 1.5], [0.5, 2.0, 1.0, 0.1]


@pytest.fixture(params=["unet", "."])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Both networks in fp16; the U-Net in a folder of its own, or beside that of the autoencoder."""
    torch.manual_seed(0)
    stage = make_autoencoder(4, scaling_factor=1.0, latents_mean=MEAN, latents_std=STD)
    stage.half().save_pretrained(tmp_path / "weights" / "vae")
    make_unet(4, 8).half().save_pretrained(tmp_path / "weights" / request.param)
    return tmp_path / "weights"


def load(folder: Path, size: int = 16, **changes: object) -> Model:
    keys = {"name": "latent", "family": "diffusers-unet", "weights": folder, "size": size, "steps": 8, **changes}
    return load_described(folder.parent / "latent.yaml", **keys)


def stage_of(model: Model) -> FirstStage:
    return model.decode.__self__  # type: ignore[attr-defined]


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_states_are_normalised_means_of_the_posterior(folder: Path):
    assert {v.dtype for file in folder.rglob("*.safetensors") for v in load_file(file).values()} == {torch.float16}
    model, network = load(folder), AutoencoderKL.from_pretrained(folder / "vae").float().eval()
    mean, std = (torch.tensor(numbers).view(1, 4, 1, 1) for numbers in (MEAN, STD))
    with torch.no_grad():
        latent = network.encode(images()).latent_dist.mean
        states = model.encode(images())
        torch.testing.assert_close(states, (latent - mean) / std)
        torch.testing.assert_close(model.decode(states), network.decode(latent).sample, atol=1e-5, rtol=1e-4)
    assert model.shape == (4, 8, 8) == states.shape[1:]


def test_the_field_has_the_clock_of_our_own_flows(folder: Path):
    model, t = load(folder), torch.tensor([0.2, 0.7])
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    network = UNet2DModel.from_pretrained(inner).float().eval()
    x = model.noise(2, seed=0)
    with torch.no_grad():
        torch.testing.assert_close(model.velocity(x, t), network(x, 1000 * t).sample)


def test_an_anchored_round_trip_returns_the_states(folder: Path):
    model = load(folder)
    with torch.no_grad():
        states = model.encode(images())
    there = invert(model.velocity, states, 8)
    back = integrate(model.velocity, there.x0, Grid.full(8), residual=anchor(there)).x1
    torch.testing.assert_close(back, states, atol=1e-5, rtol=1e-5)


def test_the_gradient_through_decode_agrees_with_finite_differences(folder: Path):
    model, step = load(folder), 1e-5
    stage_of(model).network.double()
    states = model.noise(2, seed=0).double().requires_grad_()
    probe, weights = states.detach().flip(2), torch.linspace(-1, 1, 2 * 3 * 16 * 16).double().view(2, 3, 16, 16)
    decoded = model.decode(states)
    assert decoded.dtype == torch.float64
    (gradient,) = torch.autograd.grad((weights * decoded).sum(), states)
    with torch.no_grad():
        ends = [(weights * model.decode(states + s * probe)).sum().item() for s in (step, -step)]
    assert (gradient * probe).sum().item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_it_is_added_with_both_networks(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLOWGRAD_MODELS", str(tmp_path / "models"))
    fingerprint = load(folder).fingerprint
    add_model("mine", tmp_path / "latent.yaml")
    shutil.rmtree(folder)
    assert load_model("mine", "cpu").fingerprint == fingerprint


def test_the_family_diffusers_reads_the_folder_too(folder: Path):
    model, other = load(folder), load(folder, family="diffusers", prediction="velocity")
    with torch.no_grad():
        assert torch.equal(model.encode(images()), other.encode(images()))
    assert model.shape == other.shape


def test_its_normalisation_is_checked_and_in_its_fingerprint(folder: Path):
    path = folder / "vae" / "config.json"
    settings = json.loads(path.read_text())
    fingerprints = {load(folder).fingerprint}
    for changes in ({"latents_mean": [0.0] * 4}, {"latents_std": [1.0] * 4}, {"scaling_factor": 0.5}):
        path.write_text(json.dumps({**settings, **changes}))
        fingerprints.add(load(folder).fingerprint)
    assert len(fingerprints) == 4
    for changes in ({"latents_mean": [0.0] * 3}, {"latents_std": [1.0, 0.0, 1.0, 1.0]}):
        path.write_text(json.dumps({**settings, **changes}))
        with pytest.raises(FlowgradError, match="need one number for each of its 4 channels"):
            load(folder)


def test_a_wrong_size_is_refused(folder: Path):
    with pytest.raises(FlowgradError, match=r"size is 8, and the model's images have 16 pixels \(8 times 2\)"):
        load(folder, size=8)
