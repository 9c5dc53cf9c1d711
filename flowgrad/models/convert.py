"""Weights as they ship: fp16 safetensors beside their network's config.json."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from flowgrad.errors import UsageError
from flowgrad.files import atomic_path
from flowgrad.models.diffusers_unet import WEIGHTS, load_unet, write_unet_config


def convert_unet(source: Path, destination: Path) -> Path:
    """Write the UNet2DModel of folder `source` to folder `destination` in fp16; returns the weights' path.

    Raises FlowgradError if the source does not load, UsageError if a weight has no place in fp16.
    """
    network = load_unet(source)
    state = {name: value.to(torch.float16).contiguous() for name, value in network.state_dict().items()}
    if lost := [name for name, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise UsageError(f"{source}: {lost[0]} exceeds the range of fp16; keep these weights in float32")
    write_unet_config(network, destination)
    with safe_open(source / WEIGHTS, "pt") as file:
        metadata = {"format": "pt", **(file.metadata() or {})}
    with atomic_path(destination / WEIGHTS) as path:
        save_file(state, path, metadata)
    return destination / WEIGHTS
