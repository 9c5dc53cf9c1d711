"""Models as diffusers saves them, by folder or by name on the Hugging Face hub, and their samplers as schedules."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.model_config import ModelConfig
from flowgrad.models.autoencoder import load_first_stage
from flowgrad.models.diffusers_classes import network_classes
from flowgrad.models.diffusers_folder import fingerprints, hub_folder, load_component, read_json
from flowgrad.models.parts import Flow, Parts, check_size, joint_fingerprint
from flowgrad.models.regions import Region
from flowgrad.models.schedule import ScheduledVelocity, load_scheduler, rectified, to_schedule
from flowgrad.models.text_flows import PIPELINES, UNUSED, text_flow

INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")


def load(config: ModelConfig, device: torch.device, dtype: torch.dtype, regions: Sequence[Region] = ()) -> Parts:
    """Load what a folder or a hub name holds: a UNet2DModel alone or in a pipeline, or a text-conditioned pipeline.

    regions: see `flowgrad.models.load_model`. Raises FlowgradError if it cannot be had, is damaged, or is of a kind
    that is not read, UsageError for regions that it cannot have.
    """
    folder = _folder(config)
    kinds = part_kinds(folder)
    part, kind = _network_kind(kinds)
    if kind not in ("UNet2DModel", *PIPELINES):
        raise FlowgradError(f"{folder} has a {kind}: only UNet2DModel, {', '.join(PIPELINES)} can be read")
    if regions and kind not in PIPELINES:
        raise UsageError(f"{folder} holds an unconditional model, which reads no words: leave its regions out")
    stages = [name for name in ("vqvae", "vae") if kinds.get(name) or (folder / name).is_dir()]
    stage_folder = folder / stages[0] if stages else None
    stage = load_first_stage(stage_folder, device, dtype)
    if kind in PIPELINES:
        flow = text_flow(config, folder, kinds, part, config.size // stage.factor, device, dtype, regions)
    else:
        flow = unconditional_flow(config, folder, config.size // stage.factor)
    check_size(config, flow.side, stage.factor)
    _check_channels(flow.module.config, flow.folders[0])
    if config.checkpointing:
        flow.module.enable_gradient_checkpointing()
    flow.module.to(device)
    if config.prediction == "velocity":
        network, schedule, prediction = rectified(flow.network, config.steps)
    else:
        network = flow.network
        schedule, prediction = to_schedule(load_scheduler(folder), config.steps, flow.tokens, flow.even)
    velocity = ScheduledVelocity(network, schedule, prediction, dtype)
    stage.gain = velocity.gain
    weights = fingerprints(flow.folders[0], stage_folder, *flow.folders[1:])
    fingerprint = joint_fingerprint(*weights, *flow.conditions, velocity.conditions, *stage.conditions)
    return Parts(velocity, (flow.channels, flow.side, flow.side), stage.encode, stage.decode, fingerprint)


def unconditional_flow(config: ModelConfig, folder: Path, side: int) -> Flow:
    """A UNet2DModel, for states of `side` pixels where it does not say its own.

    Raises FlowgradError if it is damaged, is no field of squares, or if the configuration has a prompt for it.
    """
    texts = {"prompt": config.prompt, "negative_prompt": config.negative_prompt}
    texts["guidance_scale"] = "" if config.guidance_scale == 1 else "given"
    if given := [key for key, value in texts.items() if value]:
        raise FlowgradError(f"{folder} holds an unconditional model, which reads no {given[0]}: remove it")
    inner = folder / "unet" if (folder / "unet").is_dir() else folder  # as diffusers itself looks
    unet = load_component(network_classes().unet, inner).to(memory_format=torch.channels_last)
    size = unet.config["sample_size"] or side
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if height != width:
        raise FlowgradError(f"{config.name}: its states are {height} x {width}, and only squares can be read")

    def network(x: Tensor, time: Tensor, t: Tensor) -> Tensor:
        return unet(x, time, return_dict=False)[0]

    return Flow(unet, network, int(unet.config["in_channels"]), height, (inner,))


def _check_channels(settings: Mapping[str, Any], folder: Path) -> None:
    """Raise FlowgradError for a network that is no field of its states: it returns others, or asks for a class."""
    inward, outward = settings["in_channels"], settings.get("out_channels") or settings["in_channels"]
    if inward != outward:
        raise FlowgradError(
            f"{folder} takes {inward} channels and returns {outward}: models for inpainting, or with learned "
            "variances, cannot be read"
        )
    if settings.get("class_embed_type") or settings.get("num_class_embeds"):
        raise FlowgradError(f"{folder} asks for a class: only unconditional and text-conditioned models can be read")


# --- folders ------------------------------------------------------------------------------------------------------


def is_text_conditioned(config: ModelConfig) -> bool:
    """Whether a network reads a prompt; its files are fetched where they are not here."""
    return _network_kind(part_kinds(_folder(config)))[1] in PIPELINES


def _folder(config: ModelConfig) -> Path:
    return hub_folder(config.weights) if config.on_hub else config.weights_file()


def _network_kind(kinds: Mapping[str, str | None]) -> tuple[str, str]:
    """The name and the class of a pipeline's network, or of a network alone."""
    part = "transformer" if kinds.get("transformer") else "unet"
    return part, kinds.get(part) or "UNet2DModel"


def part_kinds(folder: Path) -> dict[str, str | None]:
    """The classes of a pipeline's parts by name, None for those it has not; none for a network without a pipeline.

    Raises FlowgradError for a class of neither diffusers nor transformers: code in the folder, which is never run.
    """
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    for name, (library, kind) in parts.items():
        if library not in (None, *_LIBRARIES) and name not in UNUSED:
            raise FlowgradError(
                f"the {name} of {folder} is {library}.{kind}, code of its own, which is not run: use a model of "
                "diffusers' and transformers' classes"
            )
    return {name: kind for name, (_, kind) in parts.items()}
