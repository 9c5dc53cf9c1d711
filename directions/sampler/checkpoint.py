"""An interrupted training of a network goes on bit for bit: its subspace and its last state, in one file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from directions.sampler.pool import Parts
from flowgrad.files import atomic_path
from flowgrad.sampling.latent import Generator
from flowgrad.sampling.network_training import NetworkState
from flowgrad.sampling.subspace import Subspace

BASIS, DONE, EXPLAINED = "basis", "done", "explained"


@dataclass(frozen=True)
class Begun:
    """The subspace, the share of the energy's variance that it explains, and the state; None before any update."""

    subspace: Subspace
    explained: float
    state: NetworkState | None = None


@dataclass(frozen=True)
class NetworkFile:
    """Where a training keeps what it has."""

    path: Path
    device: torch.device

    @classmethod
    def of(cls, parts: Parts, generator: Generator) -> "NetworkFile":
        """The file of a training that depends on nothing but the identity of these parts, and model and grid."""
        return cls(parts.of("network").path(generator, []), generator.model.device)

    def write(self, begun: Begun) -> None:
        """Keep a training. Raises FlowgradError where the disk refuses."""
        state = begun.state or NetworkState(0, {})
        tensors = {
            name: value.cpu().contiguous() for name, value in {BASIS: begun.subspace.basis, **state.tensors}.items()
        }
        with atomic_path(self.path) as temporary:
            save_file(tensors, temporary, {DONE: str(state.done), EXPLAINED: repr(begun.explained)})

    def read(self) -> Begun | None:
        """What is kept; None where there is nothing, or where it is damaged."""
        try:
            with safe_open(self.path, framework="pt", device=str(self.device)) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                facts = file.metadata() or {}
            basis, done, explained = tensors.pop(BASIS).clone(), int(facts[DONE]), float(facts[EXPLAINED])
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        return Begun(Subspace(basis), explained, NetworkState(done, tensors) if done else None)
