"""Unconditional flows in diffusers' `UNet2DModel`, on pixels or on an autoencoder's latents."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowgrad.checkpoints import verified_fingerprint
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path
from flowgrad.model_config import ModelConfig
from flowgrad.models.diffusers_classes import network_classes
from flowgrad.models.parts import Parts, check_size, joint_fingerprint

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET, AUTOENCODER = "unet", "vae"  # folders of a model that has an autoencoder


class UNetVelocity(nn.Module):
    """v(x, t) of a UNet2DModel: x (B, C, H, W) float32, t () or (B,) in [0, 1].

    The network sees `patch` x `patch` pixel-unshuffled patches and the time `time_scale` t; it computes in `dtype`
    by autocast, while states stay in the dtype of x.
    """

    def __init__(self, network: nn.Module, patch: int, time_scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.patch, self.time_scale, self.dtype = network, patch, time_scale, dtype

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            patches = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
            v = self.network(patches, self.time_scale * t, return_dict=False)[0]
        return F.pixel_shuffle(v, self.patch).to(x)


def load(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Parts:
    """Load a UNet2DModel that was trained as a rectified flow with the clock `time_scale` t.

    `weights` is its folder, or a folder with the network in `unet/` and, for a flow in latents, their AutoencoderKL in
    `vae/`. Raises FlowgradError if weights are missing, damaged, not those of `sha256`, or do not fit config.json.
    """
    from flowgrad.models.autoencoder import load_first_stage
    from flowgrad.models.diffusers_folder import fingerprints

    folder = config.weights_file()
    inner = unet_folder(folder)
    stage_folder = folder / AUTOENCODER if (folder / AUTOENCODER).is_dir() else None
    network: Any = load_unet(inner)
    if config.checkpointing:
        network.enable_gradient_checkpointing()
    velocity = UNetVelocity(network, config.patch, config.time_scale, dtype)
    velocity.to(device).to(memory_format=torch.channels_last)
    stage = load_first_stage(stage_folder, device, dtype)
    side = int(network.config["sample_size"] or 0) * config.patch or config.size // stage.factor
    check_size(config, side, stage.factor)
    shape = (int(network.config["in_channels"]) // config.patch**2, side, side)
    weights = verified_fingerprint(inner / WEIGHTS, config.sha256), *fingerprints(stage_folder)
    clock = () if config.time_scale == 1000 else (f"time_scale {config.time_scale:g}",)
    return Parts(velocity, shape, stage.encode, stage.decode, joint_fingerprint(*weights, *clock, *stage.conditions))


def unet_folder(folder: Path) -> Path:
    """Where a model's U-Net lies in its folder: in `unet/` if it has an autoencoder beside it."""
    return folder / UNET if (folder / UNET).is_dir() else folder


def network_files(folder: Path) -> list[Path]:
    """The files of a model's networks in a folder: of the U-Net, and of the autoencoder of a flow in latents."""
    places = [folder / place / name for place in ("", UNET, AUTOENCODER) for name in ("config.json", WEIGHTS)]
    return [path for path in places if path.is_file()]


def load_unet(folder: Path) -> nn.Module:
    """The frozen float32 UNet2DModel of `config.json` and safetensors weights (any float dtype) in a folder.

    Raises FlowgradError if a file is missing, damaged, or does not fit the network.
    """
    from flowgrad.models.diffusers_folder import load_component

    if not (folder / WEIGHTS).is_file():
        raise FlowgradError(f"weights are missing: {folder / WEIGHTS} is not there. Get the model again")
    return load_component(network_classes().unet, folder)


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


def write_unet_config(network: Any, folder: Path) -> None:
    """Write the `config.json` of a UNet2DModel, without the path it was once loaded from on somebody's machine."""
    keys = json.loads(network.to_json_string())
    keys.pop("_name_or_path", None)
    with atomic_path(folder / "config.json") as path:
        path.write_text(json.dumps(keys, indent=2, sort_keys=True) + "\n", encoding="utf-8")
