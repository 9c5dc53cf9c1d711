"""Weights as they are given away: float16 safetensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flowgrad.files import atomic_path


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a network's state, floating-point numbers in float16. Raises FlowgradError where the disk refuses."""
    halves = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    halves = {key: value.to(torch.float16) if value.is_floating_point() else value for key, value in halves.items()}
    with atomic_path(path) as temporary:
        save_file(halves, temporary, metadata=dict(metadata))
