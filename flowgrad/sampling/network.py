"""The feed-forward sampler: an invertible network on a subspace of x0 (PromptGen, Wu et al., NeurIPS 2022, section 3).

`x0 = B f(B^T n) + (I - B B^T) n` for n ~ N(0, I) and B orthonormal (D, d): f minimises KL(q || p*), up to a constant

    E[sum_i lambda_i E_i(G(x0)) | z] + |z|^2 / 2 - log |det df/de|,    z = f(e).

Coupling layers and their determinants are zuko's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flowgrad.errors import FlowgradError, UsageError, reason
from flowgrad.models import Model
from flowgrad.sampling.subspace import Subspace
from flowgrad.seeds import Key, generator

if TYPE_CHECKING:
    from zuko.transforms import Transform


@dataclass(frozen=True)
class NetworkSizes:
    """dimensions of the subspace, coupling layers, and width of their hidden layer. Raises UsageError below 2, 1, 1."""

    dimensions: int
    layers: int = 6
    width: int = 64

    def __post_init__(self) -> None:
        if self.dimensions < 2 or self.layers < 1 or self.width < 1:
            raise UsageError(f"a network has 2 dimensions or more, layers and a width of 1 or more; got {self}")


class Coupling(nn.Module):
    """f: (B, d) -> (B, d), affine coupling layers that leave one half as it is and move the other by it.

    A new one is the identity: training starts from the model's own samples.
    """

    def __init__(self, sizes: NetworkSizes, seed: int = 0) -> None:
        super().__init__()
        try:
            from zuko.flows import MAF
        except ImportError as error:
            raise FlowgradError("a sampler's network needs zuko. Run: pip install 'flowgrad[samplers]'") from error
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(generator(seed).initial_seed())
            self.flow = MAF(sizes.dimensions, transforms=sizes.layers, passes=2, hidden_features=(sizes.width,))
        self.sizes = sizes
        for layer in self.flow.transform.transforms:
            nn.init.zeros_(layer.hyper[-1].weight)
            nn.init.zeros_(layer.hyper[-1].bias)

    def forward(self, e: Tensor) -> Tensor:
        """z = f(e)."""
        return self.transform()(e)

    def transform(self) -> "Transform":
        """f with its inverse and log-determinants; see `zuko.transforms`."""
        transform: Transform = self.flow.transform()
        return transform

    def weights(self) -> dict[str, Tensor]:
        """The parameters alone, by name: what zuko derives from the sizes is not among them."""
        return {name: value.detach() for name, value in self.named_parameters()}


@dataclass(frozen=True)
class NetworkSampler:
    """One pass of a network in place of rejection: approximate, as good as its training, and without any proposals."""

    subspace: Subspace
    network: Coupling

    @torch.no_grad()
    def push(self, noise: Tensor) -> Tensor:
        """x0 (B, *D) from the model's own noise (B, *D)."""
        return self.subspace.moved(noise, self.network(self.subspace.inside(noise)))

    def on(self, model: Model) -> Model:
        """The same model with the network's latents. Raises UsageError if another sampler is its source already."""
        if model.source is not None:
            raise UsageError("a network is trained on a model's own noise, and cannot draw on another sampler")

        def source(keys: Sequence[Key]) -> Tensor:
            return self.push(model.latents(keys))

        return replace(model, source=source)

    def tensors(self) -> dict[str, Tensor]:
        """All that a file needs, by name, float32 on the CPU."""
        found = {"basis": self.subspace.basis, **{f"network.{k}": v for k, v in self.network.weights().items()}}
        return {name: value.float().cpu().contiguous() for name, value in found.items()}


def restore(sizes: NetworkSizes, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> NetworkSampler:
    """The sampler of such tensors. Raises FlowgradError if they are not those of a network of these sizes."""
    weights = {name.removeprefix("network."): value for name, value in tensors.items() if name != "basis"}
    hidden = (sizes.width, sizes.dimensions)  # a network is not made before it is known to be as small as its tensors
    if sum(tuple(value.shape) == hidden for value in weights.values()) < sizes.layers:
        raise FlowgradError(f"tensors are not those of a network of {sizes}: train the sampler again")
    network = Coupling(sizes)
    try:
        missing = network.load_state_dict(weights, strict=False)
        unknown, absent = missing.unexpected_keys, set(weights) ^ set(network.weights())
        if unknown or absent or len(tensors["basis"]) != sizes.dimensions:
            raise FlowgradError(f"tensors are not those of a network of {sizes}: train the sampler again")
    except (RuntimeError, KeyError) as error:
        raise FlowgradError(f"tensors do not fit {sizes} ({reason(error)}): train the sampler again") from error
    return NetworkSampler(Subspace(tensors["basis"].to(device)), network.to(device).eval().requires_grad_(False))
