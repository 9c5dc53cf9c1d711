"""An interrupted training of a network goes on bit for bit: its subspace and its last state, in one file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from directions.sampler.pool import Parts, kept_tensors
from flowgrad.files import atomic_path
from flowgrad.sampling.latent import Generator
from flowgrad.sampling.network_training import NetworkState
from flowgrad.sampling.subspace import Subspace
from flowgrad.workers import ALONE, Workers

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
        facts = {DONE: torch.tensor(state.done), EXPLAINED: torch.tensor(begun.explained, dtype=torch.float64)}
        tensors = {BASIS: begun.subspace.basis, **facts, **state.tensors}
        with atomic_path(self.path) as temporary:
            save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary)

    def read(self, workers: Workers = ALONE) -> Begun | None:
        """What the leading process keeps, for all processes; None where there is nothing, or where it is damaged."""
        tensors = {name: value.to(self.device) for name, value in kept_tensors(self.path, workers).items()}
        try:
            basis, done, explained = (tensors.pop(name).clone() for name in (BASIS, DONE, EXPLAINED))
        except KeyError:
            return None
        return Begun(Subspace(basis), float(explained), NetworkState(int(done), tensors) if done else None)
