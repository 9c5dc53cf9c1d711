"""Unconditional flows in diffusers' `UNet2DModel`, brought to the velocity contract."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flowgrad.checkpoints import verified_fingerprint
from flowgrad.errors import FlowgradError
from flowgrad.files import atomic_path
from flowgrad.models.config import ModelConfig
from flowgrad.models.parts import Parts, check_size, identity, joint_fingerprint

WEIGHTS = "diffusion_pytorch_model.safetensors"


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


def load_diffusers_unet(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Parts:
    """Load a folder with a UNet2DModel that was trained as a rectified flow with the clock `time_scale` t.

    Raises FlowgradError if its weights are missing, damaged, not those of `sha256`, or do not fit its config.json.
    """
    folder = config.weights_file()
    network: Any = load_unet(folder)
    if network.config["sample_size"]:
        check_size(config, int(network.config["sample_size"]), config.patch)
    if config.checkpointing:
        network.enable_gradient_checkpointing()
    velocity = UNetVelocity(network, config.patch, config.time_scale, dtype)
    velocity.to(device).to(memory_format=torch.channels_last)  # the network's own to() imports half of diffusers
    shape = (int(network.config["in_channels"]) // config.patch**2, config.size, config.size)
    clock = () if config.time_scale == 1000 else (f"time_scale {config.time_scale:g}",)
    fingerprint = joint_fingerprint(verified_fingerprint(folder / WEIGHTS, config.sha256), *clock)
    return Parts(velocity, shape, identity, identity, fingerprint)


def load_unet(folder: Path) -> nn.Module:
    """Load `config.json` and safetensors weights (any float dtype) into a frozen float32 UNet2DModel.

    Raises FlowgradError if a file is missing, damaged, or does not fit the network.
    """
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise FlowgradError(
                f"weights are missing: {folder / name} is not there. Get the model again, or mend the path"
            )
    network_class = unet_class()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with torch.device("meta"):
            network = network_class.from_config(config)
        state = load_file(folder / WEIGHTS)
        network.load_state_dict({k: v.float() for k, v in state.items()}, strict=True, assign=True)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise FlowgradError(f"the weights in {folder} are damaged ({error}): copy or download them again") from error
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FlowgradError(
            f"the weights in {folder} do not fit a UNet2DModel with its config.json: {reason}"
        ) from error
    return network.eval().requires_grad_(False)


def write_unet_config(network: Any, folder: Path) -> None:
    """Write the `config.json` of a UNet2DModel, without the path it was once loaded from on somebody's machine."""
    keys = json.loads(network.to_json_string())
    keys.pop("_name_or_path", None)
    with atomic_path(folder / "config.json") as path:
        path.write_text(json.dumps(keys, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def unet_class() -> Any:
    """diffusers' UNet2DModel, imported without what it does not need (4 s become 1 s)."""
    if "diffusers" in sys.modules:
        from diffusers.models.unets.unet_2d import UNet2DModel

        return UNet2DModel
    try:
        with _light_imports():
            from diffusers.models.unets.unet_2d import UNet2DModel
    except (ImportError, AttributeError, RuntimeError):  # another diffusers, laid out differently
        for name in [name for name in sys.modules if name.split(".")[0] == "diffusers"]:
            del sys.modules[name]
        from diffusers.models.unets.unet_2d import UNet2DModel
    return UNet2DModel


@contextmanager
def _light_imports() -> Iterator[None]:
    """Keep diffusers from importing torch's compiler and every transformer that it has, for the time of a block.

    `torch._dynamo` is asked for a decorator that matters to compiled models alone, and two packages import all
    of their modules although one of each is used.
    """
    compiler = ModuleType("torch._dynamo")
    compiler.allow_in_graph = lambda function: function  # type: ignore[attr-defined]
    stand_ins: dict[str, ModuleType] = {}

    def stand_in(module: ModuleType) -> None:
        if sys.modules.setdefault(module.__name__, module) is module:
            stand_ins[module.__name__] = module

    stand_in(compiler)  # before any of diffusers, whose utilities ask for it
    try:
        import diffusers.models

        for package in ("transformers", "unets"):
            module = ModuleType(f"diffusers.models.{package}")
            module.__path__ = [str(Path(diffusers.models.__path__[0]) / package)]
            stand_in(module)
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
