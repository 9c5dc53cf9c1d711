"""Latent diffusion models as CompVis published them, config.yaml and model.ckpt, in diffusers' networks."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor, nn

from flowgrad.checkpoints import converted, fill, read_checkpoint, require_tensors, verified_fingerprint
from flowgrad.errors import FlowgradError
from flowgrad.files import file_fingerprint
from flowgrad.models.autoencoder import FirstStage
from flowgrad.models.config import ModelConfig
from flowgrad.models.diffusers_unet import unet_class
from flowgrad.models.parts import Parts, check_size, joint_fingerprint
from flowgrad.models.schedule import Schedule, ScheduledVelocity, ddim_schedule

CONFIG, WEIGHTS = "config.yaml", "model.ckpt"
UNET, FIRST_STAGE = "unet.", "first_stage."
_GROUPS = 32  # of every group norm

# What the parts of a residual block and of attention are called in the U-Net and in the first stage, and by diffusers.
_UNET_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
    "proj_out": "to_out.0",
    "op": "conv",
}
_STAGE_PARTS = {"nin_shortcut": "conv_shortcut", "norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v"}
_STAGE_PARTS |= {"proj_out": "to_out.0"}


def load_ldm(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Parts:
    """Load a CompVis folder as the probability flow of DDIM with the configuration's number of steps.

    Raises FlowgradError if a file is missing or damaged, or holds another kind of model.
    """
    folder = config.weights_file()
    params, path = read_config(folder / CONFIG), folder / WEIGHTS
    if not path.is_file():
        raise FlowgradError(f"{path} is missing: the folder must hold {CONFIG} and {WEIGHTS}. {config.source}")
    network, stage, schedule, side, factor = _described(params, config.steps, folder / CONFIG)
    check_size(config, side, factor)
    fingerprint = verified_fingerprint(path, config.sha256)
    both = f"{fingerprint}-{file_fingerprint(folder / CONFIG)}"  # how heads are split, and the scale, are said there
    state = converted(folder.name, both, lambda: compvis_state(path, params))
    fill(network, _below(state, UNET), path, "the U-Net of its config.yaml")
    fill(stage, _below(state, FIRST_STAGE), path, "the first stage of its config.yaml")
    if config.checkpointing:
        network.enable_gradient_checkpointing()
    network.to(device).to(memory_format=torch.channels_last)
    velocity = ScheduledVelocity(lambda x, t: network(x, t, return_dict=False)[0], schedule, "epsilon", dtype)
    first_stage = FirstStage(stage.to(device), float(state["scale_factor"]) * velocity.gain, 0.0, dtype)
    shape = (int(params["channels"]), side, side)
    told = json.dumps(params["unet_config"]["params"], sort_keys=True, default=str)
    fingerprint = joint_fingerprint(fingerprint, told, velocity.told, first_stage.told)
    return Parts(velocity, shape, first_stage.encode, first_stage.decode, fingerprint)


def _described(params: Mapping[str, Any], steps: int, path: Path) -> tuple[Any, nn.Module, Schedule, int, int]:
    """The two networks on the meta device, the schedule, the size of a state, and how much larger images are.

    Raises FlowgradError if something is missing or no sizes of such networks.
    """
    try:
        unet, stage = build_unet(params["unet_config"]["params"]), build_first_stage(params["first_stage_config"])
        factor = 2 ** (len(params["first_stage_config"]["params"]["ddconfig"]["ch_mult"]) - 1)
        return unet, stage, compvis_schedule(params, steps), int(params["image_size"]), factor
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise FlowgradError(f"{path} describes no latent diffusion model ({reason}): get it again") from error


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def read_config(path: Path) -> dict[str, Any]:
    """The parameters of the latent diffusion model that a config.yaml describes.

    Raises FlowgradError if it is missing, is not such a file, or describes a conditional model.
    """
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        unet, stage, condition = params["unet_config"], params["first_stage_config"], params["cond_stage_config"]
        found = (unet["target"].rpartition(".")[2], stage["target"].rpartition(".")[2])
    except OSError as error:
        raise FlowgradError(f"{path} cannot be read ({error.strerror}): the folder must hold {CONFIG}") from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise FlowgradError(f"{path} is no configuration of a latent diffusion model ({reason})") from error
    if condition != "__is_unconditional__" or found[0] != "UNetModel" or found[1] not in _STAGES:
        raise FlowgradError(
            f"{path} describes {found[0]} with {found[1]}, {condition}: only unconditional UNetModel with "
            f"{', '.join(_STAGES)} can be read"
        )
    _refuse_variants(params, path)
    return params


def _refuse_variants(params: Mapping[str, Any], path: Path) -> None:
    """Raise FlowgradError for what would load as the usual model, and be computed wrongly."""
    usual = {"parameterization": "eps", "beta_schedule": "linear"}
    told: dict[str, tuple[object, object]] = {key: (params.get(key, value), value) for key, value in usual.items()}
    for key in ("use_new_attention_order", "use_spatial_transformer"):
        told[key] = (bool((params["unet_config"].get("params") or {}).get(key)), False)
    for key, (found, value) in told.items():
        if found != value:
            raise FlowgradError(f"{path} has {key}: {found}, and only models with {value} can be read")


def compvis_schedule(params: Mapping[str, Any], steps: int) -> Schedule:
    """The steps of CompVis' DDIM sampler: uniform spacing, shifted by one, ending at the first cumulative alpha.

    Raises FlowgradError unless their number divides that of the training.
    """
    total = int(params["timesteps"])
    if total % steps:
        raise FlowgradError(f"steps must divide the {total} of the model, as 200 and 100 do; got {steps}")
    ends = torch.tensor([params["linear_start"], params["linear_end"]], dtype=torch.float64).sqrt()
    alphas = (1 - torch.linspace(float(ends[0]), float(ends[1]), total, dtype=torch.float64).square()).cumprod(0)
    timesteps = range(1, total, total // steps)
    return ddim_schedule(alphas, timesteps[::-1], float(alphas[0]))


# --- networks ----------------------------------------------------------------------------------------------------


def build_unet(p: Mapping[str, Any]) -> Any:
    """A UNet2DModel on the meta device, of the sizes of CompVis' UNetModel."""
    multipliers, rates = p["channel_mult"], p["attention_resolutions"]
    attends = [2**level in rates for level in range(len(multipliers))]
    resample = "resnet" if p.get("resblock_updown") else "conv"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resample == "resnet" else _PLAIN_BLOCKS
    heads = p.get("num_head_channels", -1)
    with torch.device("meta"):
        network = unet_class()(
            sample_size=p["image_size"],
            in_channels=p["in_channels"],
            out_channels=p["out_channels"],
            block_out_channels=tuple(p["model_channels"] * m for m in multipliers),
            layers_per_block=p["num_res_blocks"],
            down_block_types=tuple("AttnDownBlock2D" if a else plain[0] for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else plain[1] for a in reversed(attends)),
            downsample_type=resample,
            upsample_type=resample,
            attention_head_dim=heads if heads != -1 else None,
            attn_norm_num_groups=_GROUPS,
            resnet_time_scale_shift="scale_shift" if p.get("use_scale_shift_norm") else "default",
        )
    if heads == -1:
        _set_heads(network, p["num_heads"])
    return network


_PLAIN_BLOCKS = ("DownBlock2D", "UpBlock2D")


def _set_heads(network: nn.Module, heads: int) -> None:
    """A number of heads for all attention: UNet2DModel has an argument for their width alone."""
    from diffusers.models.attention_processor import Attention

    for module in network.modules():
        if isinstance(module, Attention):
            module.heads, module.scale = heads, (module.inner_dim // heads) ** -0.5


def build_first_stage(config: Mapping[str, Any]) -> nn.Module:
    """The autoencoder on the meta device. Raises FlowgradError for one with attention beside the middle block's."""
    params, sizes = config["params"], config["params"]["ddconfig"]
    if sizes.get("attn_resolutions"):
        raise FlowgradError(f"a first stage with attn_resolutions {sizes['attn_resolutions']} cannot be read: use []")
    levels = len(sizes["ch_mult"])
    common: dict[str, Any] = {
        "in_channels": sizes["in_channels"],
        "out_channels": sizes["out_ch"],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(sizes["ch"] * m for m in sizes["ch_mult"]),
        "layers_per_block": sizes["num_res_blocks"],
        "latent_channels": sizes["z_channels"],
        "norm_num_groups": _GROUPS,
    }
    with torch.device("meta"):
        if config["target"].rpartition(".")[2] == "AutoencoderKL":
            return AutoencoderKL(**common)
        return VQModel(**common, num_vq_embeddings=params["n_embed"], vq_embed_dim=params["embed_dim"])


_STAGES = ("VQModelInterface", "VQModel", "AutoencoderKL")


# --- weights -----------------------------------------------------------------------------------------------------


def compvis_state(path: Path, params: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a model.ckpt by diffusers' names, below UNET and FIRST_STAGE, and `scale_factor` ().

    Those of the U-Net are the averages (EMA) where the file has them. Raises FlowgradError if it is damaged, holds
    code, is no such checkpoint, or has weights that have no place.
    """
    raw = read_checkpoint(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("state_dict"), dict):
        raise FlowgradError(f"{path} is no checkpoint of latent diffusion, which has `state_dict`. Check `family`")
    state = require_tensors(raw["state_dict"], path)
    unet, stage = (_below(state, prefix) for prefix in ("model.diffusion_model.", "first_stage_model."))
    if not unet or not stage:
        raise FlowgradError(f"{path} holds no {'U-Net' if not unet else 'first stage'}: it is another model's file")
    heads, width = (params["unet_config"]["params"].get(key, -1) for key in ("num_heads", "num_head_channels"))
    levels = len(params["first_stage_config"]["params"]["ddconfig"]["ch_mult"])
    places = _unet_places(params["unet_config"]["params"])
    found = dict(_unet_weights(_averaged(unet, state, path), places, heads, width, path))
    found |= dict(_stage_weights(stage, levels))
    scale = state.get("scale_factor", torch.tensor(float(params.get("scale_factor", 1.0))))
    return {**found, "scale_factor": scale.float().reshape(())}


def _averaged(unet: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The averages of the U-Net's weights, whose names have lost their dots; the weights themselves without them."""
    if not any(name.startswith("model_ema.diffusion_model") for name in state):
        return dict(unet)
    names = {name: "model_ema.diffusion_model" + name.replace(".", "") for name in unet}
    if missing := [name for name, average in names.items() if average not in state]:
        raise FlowgradError(f"{path} has averages (EMA), but none of {missing[0]}: get it again")
    return {name: state[average] for name, average in names.items()}


def _unet_places(p: Mapping[str, Any]) -> dict[str, str]:
    """Where each module of UNetModel, `input_blocks.3.0`, is in a UNet2DModel, `down_blocks.1.resnets.0`."""
    places = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    levels, blocks = len(p["channel_mult"]), p["num_res_blocks"]
    attends = [2**level in p["attention_resolutions"] for level in range(levels)]
    for level in range(levels):
        first = 1 + level * (blocks + 1)
        for j in range(blocks):
            places[f"input_blocks.{first + j}.0"] = f"down_blocks.{level}.resnets.{j}"
            places[f"input_blocks.{first + j}.1"] = f"down_blocks.{level}.attentions.{j}"
        places[f"input_blocks.{first + blocks}.0"] = f"down_blocks.{level}.downsamplers.0"
        up = levels - 1 - level
        for j in range(blocks + 1):
            block = f"output_blocks.{up * (blocks + 1) + j}"
            places[f"{block}.0"] = f"up_blocks.{up}.resnets.{j}"
            places[f"{block}.1"] = f"up_blocks.{up}.{f'attentions.{j}' if attends[level] else 'upsamplers.0'}"
            places[f"{block}.2"] = f"up_blocks.{up}.upsamplers.0"
    return places


def _unet_weights(
    unet: Mapping[str, Tensor], places: Mapping[str, str], heads: int, width: int, path: Path
) -> Iterator[tuple[str, Tensor]]:
    """Weights of UNetModel under the names of UNet2DModel; one `qkv` becomes three."""
    for name, value in unet.items():
        place = next((prefix for prefix in places if name.startswith(prefix + ".")), None)
        if place is None:
            raise FlowgradError(f"{path}: {name} has no place in the U-Net of its config.yaml. Check both files")
        part, _, kind = name.removeprefix(place + ".").rpartition(".")
        target = UNET + places[place]
        if part == "qkv":
            number = heads if width == -1 else len(value) // 3 // width
            yield from ((f"{target}.{to}.{kind}", piece) for to, piece in zip(_QKV, _split(value, number), strict=True))
        else:
            plain = value.squeeze(-1) if part == "proj_out" and kind == "weight" else value
            yield ".".join(filter(None, (target, _UNET_PARTS.get(part, part), kind))), plain


_QKV = ("to_q", "to_k", "to_v")


def _split(qkv: Tensor, heads: int) -> Sequence[Tensor]:
    """q, k and v of a convolution (3C, C, 1) or its bias (3C,): each head has its own three, one after another."""
    rows = qkv.reshape(heads, 3, -1, *qkv.shape[1:2])
    return [rows[:, i].flatten(0, 1) for i in range(3)]


def _stage_weights(stage: Mapping[str, Tensor], levels: int) -> Iterator[tuple[str, Tensor]]:
    """Weights of CompVis' autoencoder under diffusers' names; those of its training loss are left out."""
    for name, value in stage.items():
        if name.startswith("loss."):
            continue
        pointwise = ".attn_1." in name and value.ndim == 4
        yield FIRST_STAGE + _stage_name(name, levels), value[..., 0, 0] if pointwise else value


def _stage_name(name: str, levels: int) -> str:
    name = re.sub(r"decoder\.up\.(\d+)", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}", name)
    name = re.sub(r"encoder\.down\.(\d+)", r"encoder.down_blocks.\1", name)
    name = re.sub(r"\.block\.(\d+)", r".resnets.\1", name)
    name = re.sub(r"\.(down|up)sample\.conv", r".\1samplers.0.conv", name)
    name = re.sub(r"\.mid\.block_(\d)", lambda m: f".mid_block.resnets.{int(m[1]) - 1}", name)
    name = name.replace(".mid.attn_1", ".mid_block.attentions.0").replace(".norm_out.", ".conv_norm_out.")
    *head, part, kind = name.split(".")
    return ".".join((*head, _STAGE_PARTS.get(part, part), kind))
