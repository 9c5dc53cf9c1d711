"""Rectified Flow's official checkpoints: the published network's outputs, its layout, and what wrong files are told."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flowgrad.errors import FlowgradError
from flowgrad.memory import activation_sizes
from flowgrad.model_config import NCSNppSizes
from flowgrad.models import Model
from flowgrad.models.ncsnpp import NCSNpp, fir_down, fir_up
from flowgrad.ode import Grid, integrate, invert
from flowgrad.velocity import checked
from tests.helpers.tiny import load_described

SIZES = {"channels": 16, "multipliers": [1, 2, 2], "attention": [16]}


def load(weights: Path, folder: Path, network: object = SIZES, **keys: object) -> Model:
    keys = {"name": "tiny-rf", "family": "rf-ncsnpp", "weights": weights, "size": 32, "network": network, **keys}
    return load_described(folder / "tiny-rf.yaml", **keys)


@pytest.fixture
def reference(shared: Path) -> Path:
    return shared / "reference" / "rf_ncsnpp_tiny"


@pytest.fixture
def model(reference: Path, tmp_path: Path) -> Model:
    return load(reference / "checkpoint_10.pth", tmp_path)


def test_velocity_and_trajectory_are_the_published_ones(model: Model, reference: Path):
    expected = load_file(reference / "expected.safetensors")
    t = (expected["t"] - 1e-3) / (1 - 1e-3)  # the vectors give v(x, 999 t), the model's clock adds eps
    v = checked(model.velocity(expected["x"], t), expected["x"])
    assert (v - expected["v"]).norm() < 1e-4 * expected["v"].norm()
    trajectory = integrate(model.velocity, expected["z0"], Grid.full(100))
    assert (trajectory.x1 - expected["x1"]).abs().max() < 1e-5
    torch.testing.assert_close(trajectory.states[::10], expected["trajectory_every_10"], atol=1e-5, rtol=1e-4)


def test_rk45_inverts_what_was_sampled(model: Model, reference: Path):
    expected = load_file(reference / "expected.safetensors")
    back = invert(model.velocity, expected["x1"], 4, "rk45").x0
    assert (back - expected["z0"]).norm() < 0.05 * expected["z0"].norm()


def test_the_full_network_has_the_published_layout(shared: Path):
    folder = shared / "reference" / "rf_celebahq_layout"
    shapes = {name: tuple(shape) for name, shape in json.loads((folder / "state_dict_shapes.json").read_text()).items()}
    with torch.device("meta"):
        network = NCSNpp(256, NCSNppSizes())
    shapes.pop("sigmas")  # a buffer that the network does not read
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == shapes
    trained = [name for name, value in network.named_parameters() if value.requires_grad]
    assert trained == json.loads((folder / "ema_order.json").read_text())


def test_resampling_keeps_constants_and_is_adjoint():
    x, y = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(fir_up(torch.ones(1, 2, 8, 8))[..., 2:-2, 2:-2], torch.ones(1, 2, 12, 12))
    torch.testing.assert_close(fir_down(torch.ones(1, 2, 8, 8))[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    torch.testing.assert_close((fir_up(x) * y).sum(), 4 * (x * fir_down(y)).sum())


def test_checkpointing_saves_memory_and_changes_no_gradient(model: Model):
    x, t = model.noise(2, seed=0), torch.tensor([0.2, 0.9])

    def gradient() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(model.velocity(leaf, t).square().sum(), leaf)[0]

    with activation_sizes() as without:
        plain = gradient()
    model.velocity.inner.network.checkpointing = True
    with activation_sizes() as kept:
        torch.testing.assert_close(gradient(), plain)
    assert sum(kept.values()) < sum(without.values()) / 2


def test_a_checkpoint_is_converted_once(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLOWGRAD_CACHE", str(tmp_path / "cache"))
    first = load(reference / "checkpoint_10.pth", tmp_path)
    (cached,) = (tmp_path / "cache").iterdir()
    assert first.fingerprint in cached.name
    monkeypatch.setattr("flowgrad.models.ncsnpp.official_state", None)
    again = load(reference / "checkpoint_10.pth", tmp_path)
    x, t = first.noise(1, 0), torch.tensor(0.5)
    assert torch.equal(first.velocity(x, t), again.velocity(x, t))


def test_a_cache_that_cannot_be_written_costs_no_job(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model
):
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setenv("FLOWGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("flowgrad.checkpoints.save_file", full)
    assert load(reference / "checkpoint_10.pth", tmp_path).fingerprint == model.fingerprint
    assert list((tmp_path / "cache").iterdir()) == []


class Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_bad_checkpoints_say_what_is_wrong(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = (reference / "checkpoint_10.pth").read_bytes()
    good = torch.load(reference / "checkpoint_10.pth", weights_only=True)
    few = {**good, "ema": {**good["ema"], "shadow_params": good["ema"]["shadow_params"][1:]}}
    path = tmp_path / "a.pth"
    for content, message in (
        (data[: len(data) // 2], "damaged"),
        (b"no checkpoint at all" * 99, "damaged"),
        (b"", "damaged"),
        ({"model": Payload()}, "asks for .*print, which is code"),
        ({"state_dict": {}}, "no checkpoint of Rectified Flow's code"),
        ([1, 2], "no checkpoint of Rectified Flow's code"),
        (few, "averages do not match"),
        ({**good, "model": {"a": 1}}, "holds int as 'a' among its weights"),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(FlowgradError, match=message) as error:
            load(path, tmp_path)
        assert len(str(error.value).splitlines()) == 1
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "sizes", "message"),
    [
        ({"sha256": "ab" * 32}, {}, r"its SHA-256 is [0-9a-f]{64}, not (ab){32}\."),
        ({}, {"multipliers": [1, 2]}, r"does not fit an NCSN\+\+ .*all_modules\.\d+"),
        ({"size": 30}, {}, "size must be a multiple of 4"),
        ({}, {"channels": 136}, r"no NCSN\+\+ has the `network` sizes"),
        ({}, {"multipliers": []}, "network.multipliers: Tuple should have at least 1 item"),
        ({}, {"multipliers": [1, -2]}, "network.multipliers.1: must be greater than 0"),
        ({}, {"attentions": [16]}, r"unknown key 'network.attentions'; did you mean 'attention'\?"),
    ],
)
def test_what_does_not_fit_the_file_is_refused(reference: Path, tmp_path: Path, keys, sizes, message: str):
    with pytest.raises(FlowgradError, match=message):
        load(reference / "checkpoint_10.pth", tmp_path, {**SIZES, **sizes}, **keys)
