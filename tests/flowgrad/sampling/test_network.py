"""The feed-forward sampler: its determinant against autograd's Jacobian, its subspace, and what its file keeps."""

import pytest
import torch

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.sampling.network import Coupling, NetworkSampler, NetworkSizes, restore
from flowgrad.sampling.subspace import Subspace

SIZES = NetworkSizes(4, 3, 16)


def shaken(sizes=SIZES):
    """A network that is not the identity, in float64."""
    network = Coupling(sizes).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return network


@pytest.fixture
def noise():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_new_network_is_the_identity(noise):
    torch.testing.assert_close(Coupling(SIZES).double()(noise), noise)


def test_the_log_determinant_is_autograds(noise):
    network = shaken()
    z, ladj = network.transform().call_and_ladj(noise)
    for row in range(len(noise)):
        jacobian = torch.autograd.functional.jacobian(lambda e: network(e[None])[0], noise[row])
        assert float(ladj[row].detach()) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-9)
    torch.testing.assert_close(network.transform().inv(z), noise)


def test_in_a_subspace_the_rest_of_the_noise_stays(noise):
    basis, _ = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    sampler = NetworkSampler(Subspace(basis.T.contiguous()), shaken(NetworkSizes(2, 2, 8)))
    moved = sampler.push(noise) - noise
    assert moved.abs().max() > 0.01
    torch.testing.assert_close(moved @ basis @ basis.T, moved)


def test_what_a_file_keeps_restores_the_sampler(noise):
    sampler = NetworkSampler(Subspace(torch.eye(4, dtype=torch.float64)), shaken())
    again = restore(SIZES, sampler.tensors())
    torch.testing.assert_close(again.push(noise.float()).double(), sampler.push(noise), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["missing", "more", "shape", "basis"])
def test_tensors_of_another_network_are_refused(change):
    tensors = NetworkSampler(Subspace(torch.eye(4)), Coupling(SIZES)).tensors()
    first = next(name for name in tensors if name != "basis")
    if change == "missing":
        del tensors[first]
    tensors |= {"more": {"network.more": torch.zeros(1)}, "shape": {first: torch.zeros(1, 1)}}.get(change, {})
    tensors |= {"basis": torch.eye(4)[:3]} if change == "basis" else {}
    with pytest.raises(FlowgradError, match="train the sampler again"):
        restore(SIZES, tensors)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 0, 1), (2, 1, 0)])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(UsageError):
        NetworkSizes(*sizes)


def test_a_network_does_not_draw_on_another_sampler(tiny):
    from flowgrad.models import load_model

    model = load_model(str(tiny.model), "cpu", "fp32")
    basis = torch.linalg.qr(model.noise(4, 0).flatten(1).T)[0].T.reshape(4, *model.shape)
    drawn = NetworkSampler(Subspace(basis), Coupling(SIZES)).on(model)
    torch.testing.assert_close(drawn.noise(2, 3), model.noise(2, 3))
    with pytest.raises(UsageError, match="own noise"):
        NetworkSampler(Subspace(basis), Coupling(SIZES)).on(drawn)


@pytest.mark.parametrize("sizes", [NetworkSizes(4, 3, 1_000_000), NetworkSizes(4, 1_000_000, 16)])
def test_a_file_that_claims_a_larger_network_than_it_holds_makes_none(sizes, monkeypatch):
    made = Coupling(SIZES)
    tensors = {"basis": torch.eye(4), **{f"network.{name}": value for name, value in made.weights().items()}}
    monkeypatch.setattr("flowgrad.sampling.network.Coupling", None)  # it would fill the memory
    with pytest.raises(FlowgradError, match="not those of a network"):
        restore(sizes, tensors)
