"""What a loader of any family returns: the pieces of a model, before they have its name and device."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from flowgrad.errors import FlowgradError
from flowgrad.files import FINGERPRINT
from flowgrad.model_config import ModelConfig
from flowgrad.velocity import Velocity

# States (B, *D), the network's own times (B,), and the contract's t (B,) -> the network's output (B, *D).
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class Parts(NamedTuple):
    """velocity, shape of one state, encode and decode, fingerprint of the weights; see `flowgrad.models.Model`."""

    velocity: Velocity
    shape: tuple[int, ...]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    fingerprint: str


class Flow(NamedTuple):
    """What a folder holds, before it has its sampler and its autoencoder.

    module: the network. network: its function of states (B, channels, side, side) and times, with all else frozen.
    folders: of the weights that the field depends on, the network's first; conditions: what else it depends on.
    tokens, even: see `to_schedule`.
    """

    module: Any
    network: Network
    channels: int
    side: int
    folders: tuple[Path, ...]
    conditions: tuple[str, ...] = ()
    tokens: int | None = None
    even: bool = False


def identity(x: Tensor) -> Tensor:
    """States that are images."""
    return x


def joint_fingerprint(*parts: str) -> str:
    """Hexadecimal digits of everything that a field depends on; of one thing alone, that itself."""
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()[:FINGERPRINT]


def check_size(config: ModelConfig, states: int, factor: int) -> None:
    """Raise FlowgradError unless the configuration's images are those of the model's states."""
    if config.size != states * factor:
        raise FlowgradError(
            f"{config.name}: size is {config.size}, and the model's images have {states * factor} pixels "
            f"({states} times {factor}). Correct the configuration"
        )
