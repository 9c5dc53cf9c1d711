"""Rectified Flow's official checkpoints: the published network's outputs, its layout, and what wrong files are told."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flowgrad.errors import FlowgradError
from flowgrad.memory import activation_sizes
from flowgrad.models import Model, load_model
from flowgrad.models.config import NCSNppSizes
from flowgrad.models.ncsnpp import NCSNpp, fir_down, fir_up
from flowgrad.ode import Grid, integrate, invert
from flowgrad.velocity import checked

CONFIG = """\
name: tiny-rf
family: rf-ncsnpp
weights: {weights}
size: 32
steps: 100
network: {{channels: 16, multipliers: [1, 2, 2], attention: [16]}}
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def load(weights: Path, folder: Path) -> Model:
    path = folder / "tiny-rf.yaml"
    path.write_text(CONFIG.format(weights=weights))
    return load_model(str(path), "cpu", "fp32")


@pytest.fixture
def reference(shared: Path) -> Path:
    return shared / "reference" / "rf_ncsnpp_tiny"


@pytest.fixture
def model(reference: Path, tmp_path: Path) -> Model:
    return load(reference / "checkpoint_10.pth", tmp_path)


def test_velocity_and_trajectory_are_the_published_ones(model: Model, reference: Path):
    expected = load_file(reference / "expected.safetensors")
    t = (expected["t"] - 1e-3) / (1 - 1e-3)  # the vectors give v(x, 999 t), the model's clock adds eps
    v = checked(model.velocity, expected["x"], t)
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


def test_batches_equal_one_by_one_and_checkpointing_changes_no_gradient(model: Model):
    x, t = model.noise(2, seed=0), torch.tensor([0.2, 0.9])
    alone = torch.cat([model.velocity(x[i : i + 1], t[i]) for i in range(2)])
    assert (model.velocity(x, t) - alone).norm() < 1e-5 * alone.norm(), "up to rounding in float32"

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


def saved(path: Path, raw: object) -> Path:
    torch.save(raw, path)
    return path


def test_bad_checkpoints_say_what_is_wrong(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = (reference / "checkpoint_10.pth").read_bytes()
    good = torch.load(reference / "checkpoint_10.pth", weights_only=True)
    (tmp_path / "truncated.pth").write_bytes(data[: len(data) // 2])
    (tmp_path / "noise.pth").write_bytes(b"no checkpoint at all" * 99)
    (tmp_path / "empty.pth").write_bytes(b"")
    few = {**good, "ema": {**good["ema"], "shadow_params": good["ema"]["shadow_params"][1:]}}
    cases = {
        tmp_path / "truncated.pth": "damaged",
        tmp_path / "noise.pth": "damaged",
        tmp_path / "empty.pth": "damaged",
        saved(tmp_path / "code.pth", {"model": Payload()}): "asks for .*print, which is code",
        saved(tmp_path / "other.pth", {"state_dict": {}}): "no checkpoint of Rectified Flow's code",
        saved(tmp_path / "list.pth", [1, 2]): "no checkpoint of Rectified Flow's code",
        saved(tmp_path / "few.pth", few): "averages do not match",
        saved(tmp_path / "numbers.pth", {**good, "model": {"a": 1}}): "holds int as 'a' among its weights",
        tmp_path / "nowhere.pth": "the weights of tiny-rf are missing: put them at .*nowhere",
    }
    for path, message in cases.items():
        with pytest.raises(FlowgradError, match=message) as found:
            load(path, tmp_path)
        assert len(str(found.value).splitlines()) <= 2
    assert "never" not in capsys.readouterr().out


def test_a_file_with_another_hash_is_refused(reference: Path, tmp_path: Path):
    path = tmp_path / "hashed.yaml"
    path.write_text(CONFIG.format(weights=reference / "checkpoint_10.pth") + f"sha256: {'ab' * 32}\n")
    with pytest.raises(FlowgradError, match=r"its SHA-256 is [0-9a-f]{64}, not (ab){32}\."):
        load_model(str(path), "cpu")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("multipliers: [1, 2, 2]", "multipliers: [1, 2]", r"does not fit an NCSN\+\+ .*all_modules\.\d+"),
        ("size: 32", "size: 30", "size must be a multiple of 4"),
        ("channels: 16", "channels: 136", r"no NCSN\+\+ has the `network` sizes"),
        ("[1, 2, 2]", "[]", "network.multipliers: Tuple should have at least 1 item"),
        ("[1, 2, 2]", "[1, -2]", "network.multipliers.1: Input should be greater than 0"),
        ("attention: [16]", "attentions: [16]", r"unknown key 'network.attentions'; did you mean 'attention'\?"),
    ],
)
def test_another_architecture_is_refused(reference: Path, tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "other.yaml"
    path.write_text(CONFIG.format(weights=reference / "checkpoint_10.pth").replace(old, new))
    with pytest.raises(FlowgradError, match=message):
        load_model(str(path), "cpu")
