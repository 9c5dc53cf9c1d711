"""Models as diffusers saves them, by folder or by name on the Hugging Face hub, and their samplers as schedules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError
from flowgrad.models.config import ModelConfig
from flowgrad.models.diffusers_folder import (
    UNUSED,
    check_channels,
    folder_fingerprint,
    load_component,
    load_first_stage,
    local_folder,
    read_json,
)
from flowgrad.models.diffusers_unet import unet_class
from flowgrad.models.parts import Parts, check_size, identity
from flowgrad.models.samplers import load_scheduler, to_schedule
from flowgrad.models.schedule import Network, Schedule, ScheduledVelocity, rectified

INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")


def load_diffusers(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Parts:
    """Load what a folder or a hub name holds: a UNet2DModel alone or in a pipeline, or a text-conditioned pipeline.

    Raises FlowgradError if it cannot be had, is damaged, or is of a kind that is not read.
    """
    folder = local_folder(config)
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    kinds = part_kinds(folder, index)
    if kinds.get("transformer") or (kinds.get("unet") or "UNet2DModel") != "UNet2DModel":
        from flowgrad.models.text_flows import load_text_flow

        return load_text_flow(config, folder, kinds, device, dtype)
    return load_unconditional(config, folder, kinds, device, dtype)


def part_kinds(folder: Path, index: Mapping[str, Any]) -> dict[str, str | None]:
    """The classes of a pipeline's parts by name, None for those it has not.

    Raises FlowgradError for a class of neither diffusers nor transformers: code in the folder, which is never run.
    """
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    for name, (library, kind) in parts.items():
        if library not in (None, *_LIBRARIES) and name not in UNUSED:
            raise FlowgradError(
                f"the {name} of {folder} is {library}.{kind}, code of its own, which is not run: use a model of "
                "diffusers' and transformers' classes"
            )
    return {name: kind for name, (_, kind) in parts.items()}


def load_unconditional(
    config: ModelConfig, folder: Path, kinds: Mapping[str, str | None], device: torch.device, dtype: torch.dtype
) -> Parts:
    """A UNet2DModel with its scheduler, and with its autoencoder if `kinds` names one (`vqvae` or `vae`).

    Raises FlowgradError if it is damaged, asks for more than states and times, or is told of a prompt.
    """
    _refuse_texts(config, folder)
    inner = folder / "unet" if (folder / "unet").is_dir() else folder  # as diffusers itself looks
    network = load_component(unet_class(), inner).to(device).to(memory_format=torch.channels_last)
    check_channels(network.config, inner)
    if config.checkpointing:
        network.enable_gradient_checkpointing()
    velocity = ScheduledVelocity(*_unconditional(network, config, folder), dtype)
    stage = next((name for name in ("vqvae", "vae") if kinds.get(name)), None)
    if stage is None:
        fingerprint = folder_fingerprint([inner], velocity.told)
        return Parts(velocity, _shape(network, config, 1), identity, identity, fingerprint)
    first_stage, factor = load_first_stage(folder / stage, kinds[stage] or "", velocity.gain, device, dtype)
    fingerprint = folder_fingerprint([inner, folder / stage], velocity.told, first_stage.told)
    return Parts(velocity, _shape(network, config, factor), first_stage.encode, first_stage.decode, fingerprint)


def _refuse_texts(config: ModelConfig, folder: Path) -> None:
    given = {"prompt": config.prompt, "negative_prompt": config.negative_prompt}
    given["guidance_scale"] = "" if config.guidance_scale == 1 else "given"
    if told := [key for key, value in given.items() if value]:
        raise FlowgradError(f"{folder} holds an unconditional model, which reads no {told[0]}: remove it")


def _unconditional(network: Any, config: ModelConfig, folder: Path) -> tuple[Network, Schedule, str]:
    """The network as a function of states and times, its steps, and what it predicts."""

    def called(x: Tensor, time: Tensor) -> Tensor:
        return network(x, time, return_dict=False)[0]

    if config.prediction == "velocity":
        return rectified(called, config.steps)
    return called, *to_schedule(load_scheduler(folder), config.steps)


def _shape(network: Any, config: ModelConfig, factor: int) -> tuple[int, int, int]:
    """Of states; the size is the network's own, or the configuration's where it says none.

    Raises FlowgradError unless it is a square, and the configuration's.
    """
    found = network.config["sample_size"] or config.size // factor
    height, width = found if isinstance(found, (tuple, list)) else (found, found)
    if height != width:
        raise FlowgradError(f"{config.name}: its states are {height} x {width}, and only squares can be read")
    check_size(config, height, factor)
    return int(network.config["in_channels"]), height, width


# --- samplers ----------------------------------------------------------------------------------------------------
