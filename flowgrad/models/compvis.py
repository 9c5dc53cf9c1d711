"""Latent diffusion models as CompVis published them, config.yaml and model.ckpt, in diffusers' networks."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, VQModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_vae_diffusers_config_from_ldm,
    update_unet_resnet_ldm_to_diffusers,
)
from diffusers.models.attention_processor import Attention
from torch import Tensor

from flowgrad.checkpoints import converted, fill, read_checkpoint, require_tensors, verified_fingerprint
from flowgrad.errors import FlowgradError, reason
from flowgrad.files import file_fingerprint
from flowgrad.model_config import ModelConfig
from flowgrad.models.autoencoder import FirstStage
from flowgrad.models.diffusers_classes import network_classes
from flowgrad.models.parts import Parts, check_size, joint_fingerprint
from flowgrad.models.schedule import Schedule, ScheduledVelocity, to_schedule
from flowgrad.resources import read_table

CONFIG, WEIGHTS = "config.yaml", "model.ckpt"
UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
STAGES = ("VQModelInterface", "VQModel", "AutoencoderKL")
_PLAIN_BLOCKS = {
    "conv": ("DownBlock2D", "UpBlock2D"),
    "resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
}
_QKV = ("to_q", "to_k", "to_v")


def load(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Parts:
    """Load a CompVis folder as the probability flow of DDIM with the configuration's number of steps.

    Raises FlowgradError if a file is missing or damaged, or holds another kind of model.
    """
    folder = config.weights_file()
    path, described = folder / WEIGHTS, folder / CONFIG
    try:
        params = read_config(described)
        network, stage = build_unet(params["unet_config"]["params"]), build_first_stage(params)
        schedule, side, channels = compvis_schedule(params, config.steps), params["image_size"], params["channels"]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        what = f"{type(error).__name__}: {reason(error)}"
        raise FlowgradError(f"{described} describes no latent diffusion model ({what}): get it again") from error
    if not path.is_file():
        raise FlowgradError(f"{path} is missing: the folder must hold {CONFIG} and {WEIGHTS}. {config.source}")
    fingerprint = verified_fingerprint(path, config.sha256)
    both = f"{fingerprint}-{file_fingerprint(described)}"  # how heads are split, and the scale, are said there
    state = converted(folder.name, both, lambda: compvis_state(path, params, stage.config))
    fill(network, _below(state, "unet."), path, "the U-Net of its config.yaml")
    fill(stage, _below(state, "first_stage."), path, "the first stage of its config.yaml")
    stage.register_to_config(scaling_factor=float(state["scale_factor"]))
    if config.checkpointing:
        network.enable_gradient_checkpointing()
    network.to(device).to(memory_format=torch.channels_last)
    velocity = ScheduledVelocity(lambda x, time, _: network(x, time, return_dict=False)[0], schedule, "epsilon", dtype)
    first_stage = FirstStage(stage.to(device), dtype, velocity.gain)
    check_size(config, side, first_stage.factor)
    sizes = json.dumps(params["unet_config"]["params"], sort_keys=True, default=str)
    fingerprint = joint_fingerprint(fingerprint, sizes, velocity.conditions, *first_stage.conditions)
    return Parts(velocity, (channels, side, side), first_stage.encode, first_stage.decode, fingerprint)


def read_config(path: Path) -> dict[str, Any]:
    """The parameters of the latent diffusion model that a config.yaml describes.

    Raises FlowgradError for a variant that would load as the usual model, and be computed wrongly.
    """
    params = read_table(path)["model"]["params"]
    unet, stage = params["unet_config"], params["first_stage_config"]
    settings: dict[str, tuple[Any, Sequence[Any]]] = {
        "cond_stage_config": (params["cond_stage_config"], ["__is_unconditional__"]),
        "parameterization": (params.get("parameterization", "eps"), ["eps"]),
        "beta_schedule": (params.get("beta_schedule", "linear"), ["linear"]),
        "unet_config.target": (unet["target"].rpartition(".")[2], ["UNetModel"]),
        "use_new_attention_order": (bool(unet["params"].get("use_new_attention_order")), [False]),
        "use_spatial_transformer": (bool(unet["params"].get("use_spatial_transformer")), [False]),
        "first_stage_config.target": (stage["target"].rpartition(".")[2], STAGES),
        "attn_resolutions": (stage["params"]["ddconfig"].get("attn_resolutions") or [], [[]]),
    }
    for key, (value, usual) in settings.items():
        if value not in usual:
            only = " or ".join(map(str, usual))
            raise FlowgradError(f"{path} has {key}: {value}, and only models with {only} can be read")
    return params


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def compvis_schedule(params: Mapping[str, Any], steps: int) -> Schedule:
    """The steps of CompVis' DDIM sampler: uniform spacing, shifted by one, ending at the first cumulative alpha.

    Raises FlowgradError unless their number divides that of the training.
    """
    total = int(params["timesteps"])
    if total % steps:
        raise FlowgradError(f"steps must divide the {total} of the model, as 200 and 100 do; got {steps}")
    ends = params["linear_start"], params["linear_end"]
    # "scaled_linear" is linear in the square roots, which CompVis calls linear
    return to_schedule(DDIMScheduler(total, *ends, "scaled_linear", set_alpha_to_one=False, steps_offset=1), steps)[0]


def build_unet(p: Mapping[str, Any]) -> Any:
    """A UNet2DModel on the meta device, of the sizes of CompVis' UNetModel."""
    attends = [2**level in p["attention_resolutions"] for level in range(len(p["channel_mult"]))]
    resample = "resnet" if p.get("resblock_updown") else "conv"
    down, up = _PLAIN_BLOCKS[resample]
    width = p.get("num_head_channels", -1)
    with torch.device("meta"):
        network = network_classes().unet(
            sample_size=p["image_size"],
            in_channels=p["in_channels"],
            out_channels=p["out_channels"],
            block_out_channels=tuple(p["model_channels"] * multiplier for multiplier in p["channel_mult"]),
            layers_per_block=p["num_res_blocks"],
            down_block_types=tuple("AttnDownBlock2D" if attention else down for attention in attends),
            up_block_types=tuple("AttnUpBlock2D" if attention else up for attention in reversed(attends)),
            downsample_type=resample,
            upsample_type=resample,
            attention_head_dim=width if width != -1 else None,
            attn_norm_num_groups=32,
            resnet_time_scale_shift="scale_shift" if p.get("use_scale_shift_norm") else "default",
        )
    if width == -1:  # a number of heads for all attention, where UNet2DModel has an argument for their width alone
        for module in network.modules():
            if isinstance(module, Attention):
                module.heads, module.scale = p["num_heads"], (module.inner_dim // p["num_heads"]) ** -0.5
    return network


def build_first_stage(params: Mapping[str, Any]) -> Any:
    """The autoencoder of a latent diffusion model on the meta device."""
    sizes, stage = create_vae_diffusers_config_from_ldm({"model": {"params": params}}, {}), params["first_stage_config"]
    with torch.device("meta"):
        if stage["target"].endswith("AutoencoderKL"):
            return AutoencoderKL(**sizes)
        own = {"num_vq_embeddings": stage["params"]["n_embed"], "vq_embed_dim": stage["params"]["embed_dim"]}
        return VQModel(**sizes, **own)


def compvis_state(path: Path, params: Mapping[str, Any], stage_config: Any) -> dict[str, Tensor]:
    """The weights of a model.ckpt by diffusers' names, below "unet." and "first_stage.", and `scale_factor` ().

    Those of the U-Net are the averages (EMA) where the file has them. Raises FlowgradError if it is damaged, holds
    code, or is no such checkpoint.
    """
    raw = read_checkpoint(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("state_dict"), dict):
        raise FlowgradError(f"{path} is no checkpoint of latent diffusion, which has `state_dict`. Check `family`")
    state = require_tensors(raw["state_dict"], path)
    unet, stage = _below(state, UNET), _below(state, FIRST_STAGE)
    if not unet or not stage:
        raise FlowgradError(f"{path} holds no {'U-Net' if not unet else 'first stage'}: it is another model's file")
    renamed = convert_ldm_vae_checkpoint({FIRST_STAGE + name: value for name, value in stage.items()}, stage_config)
    renamed |= {name: value for name, value in stage.items() if name.startswith("quantize.")}
    averaged = _unet_state(_averaged(unet, state, path), params["unet_config"]["params"])
    scale = state.get("scale_factor", torch.tensor(float(params.get("scale_factor", 1.0))))
    return {
        **{f"unet.{name}": value for name, value in averaged.items()},
        **{f"first_stage.{name}": value for name, value in renamed.items()},
        "scale_factor": scale.float().reshape(()),
    }


def _averaged(unet: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The averages of the U-Net's weights, whose names have lost their dots; the weights themselves without them."""
    if not any(name.startswith("model_ema.diffusion_model") for name in state):
        return dict(unet)
    names = {name: "model_ema.diffusion_model" + name.replace(".", "") for name in unet}
    if missing := [name for name, average in names.items() if average not in state]:
        raise FlowgradError(f"{path} has averages (EMA), but none of {missing[0]}: get it again")
    return {name: state[average] for name, average in names.items()}


def _unet_state(unet: Mapping[str, Tensor], p: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a UNetModel under the names of UNet2DModel.

    diffusers' converter is for U-Nets of text models: attention, and residual blocks that resample, are left to us.
    """
    blocks, width = p["num_res_blocks"], p.get("num_head_channels", -1)
    up = {name for name in unet if re.match(r"output_blocks\.\d+\.[12]\.(in|emb|out)_layers\.", name)}
    others = {UNET + name: value for name, value in unet.items() if name not in up}
    renamed = convert_ldm_unet_checkpoint(others, {"layers_per_block": blocks})
    for name in up:
        _, i, j, *_ = name.split(".")
        place = {"old": f"output_blocks.{i}.{j}", "new": f"up_blocks.{int(i) // (blocks + 1)}.upsamplers.0"}
        update_unet_resnet_ldm_to_diffusers([name], renamed, unet, place)
    state: dict[str, Tensor] = {}
    for name, value in renamed.items():
        if ".qkv." in name:
            heads = p["num_heads"] if width == -1 else len(value) // 3 // width
            state |= {name.replace("qkv", to): part for to, part in zip(_QKV, _split(value, heads), strict=True)}
        elif ".attentions." in name:
            state[name.replace(".norm.", ".group_norm.").replace("proj_out", "to_out.0")] = value.squeeze(-1)
        else:
            state[re.sub(rf"(down_blocks\.\d+)\.resnets\.{blocks}\.", r"\1.downsamplers.0.", name)] = value
    return state


def _split(qkv: Tensor, heads: int) -> list[Tensor]:
    """q, k and v of a convolution (3C, C, 1) or its bias (3C,): each head has its own three, one after another."""
    rows = qkv.reshape(heads, 3, -1, *qkv.shape[1:2])
    return [rows[:, i].flatten(0, 1) for i in range(3)]
