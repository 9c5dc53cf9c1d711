"""Text-conditioned flows with the prompt frozen: Stable Diffusion's U-Net, and the transformers of SD3 and FLUX.

The text encoders run once, when the model is loaded, and are let go.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from flowgrad.errors import FlowgradError
from flowgrad.models.config import ModelConfig
from flowgrad.models.diffusers_folder import (
    FAILURES,
    UNUSED,
    check_channels,
    first_stage_factor,
    folder_fingerprint,
    load_first_stage,
    quiet,
    read_json,
)
from flowgrad.models.parts import Parts, check_size
from flowgrad.models.samplers import load_scheduler, to_schedule
from flowgrad.models.schedule import TRAIN_TIMESTEPS, Network, Schedule, ScheduledVelocity, rectified

PIPELINES = {
    "UNet2DConditionModel": "StableDiffusionPipeline",
    "SD3Transformer2DModel": "StableDiffusion3Pipeline",
    "FluxTransformer2DModel": "FluxPipeline",
}


def load_text_flow(
    config: ModelConfig, folder: Path, kinds: Mapping[str, str | None], device: torch.device, dtype: torch.dtype
) -> Parts:
    """Load a pipeline as the velocity at the configuration's prompt and guidance scale.

    The fingerprint covers these too: at another prompt it is another field. Raises FlowgradError if the pipeline is
    damaged, of another class, or needs a package that is missing.
    """
    part = "transformer" if kinds.get("transformer") else "unet"
    kind = kinds[part] or ""
    if kind not in PIPELINES:
        raise FlowgradError(f"{folder} has a {kind}: only {', '.join(PIPELINES)} can be read")
    factor = first_stage_factor(read_json(folder / "vae" / "config.json"))
    side = config.size // factor
    check_size(config, side, factor)
    if part == "transformer" and side % 2:
        raise FlowgradError(f"{config.name}: size must be a multiple of {2 * factor}; got {config.size}")
    pipe = _load_pipeline(folder, PIPELINES[kind], kinds, dtype)
    encoders = [name for name in pipe.components if name.startswith("text_encoder")]
    for name in encoders:  # which need not fit on the device beside the network
        _place(pipe, name, device)
    network, channels = _NETWORKS[kind](pipe, config, side, device)
    pipe.register_modules(**dict.fromkeys(encoders))
    _place(pipe, part, device)
    if config.checkpointing:
        getattr(pipe, part).enable_gradient_checkpointing()
    check_channels(getattr(pipe, part).config, folder / part)
    if config.prediction == "velocity":
        network, schedule, prediction = rectified(network, config.steps)
    else:
        schedule, prediction = _schedule(config, folder, kind, side, pipe)
    velocity = ScheduledVelocity(network, schedule, prediction, dtype)
    first_stage, _ = load_first_stage(folder / "vae", kinds.get("vae") or "", velocity.gain, device, dtype)
    folders = [folder / name for name in (part, "vae", *encoders)]
    fingerprint = folder_fingerprint(folders, *_conditions(config), velocity.told, first_stage.told)
    return Parts(velocity, (channels, side, side), first_stage.encode, first_stage.decode, fingerprint)


def _place(pipe: Any, name: str, device: torch.device) -> None:
    if (module := pipe.components[name]) is not None:
        module.to(device)


def _conditions(config: ModelConfig) -> tuple[str, ...]:
    """What the field is at; without guidance there is no negative prompt."""
    negative = config.negative_prompt if config.guidance_scale > 1 else ""
    return config.prompt, negative, f"{config.guidance_scale:g}"


def _load_pipeline(folder: Path, name: str, kinds: Mapping[str, str | None], dtype: torch.dtype) -> Any:
    """A diffusers pipeline with frozen networks, without its autoencoder and what it was saved without.

    Raises FlowgradError if it does not load.
    """
    import diffusers

    absent = {part: None for part, kind in kinds.items() if kind is None or part in ("vae", *UNUSED)}
    try:
        with quiet():
            pipe = getattr(diffusers, name).from_pretrained(folder, torch_dtype=dtype, **absent)
    except FAILURES as error:
        reason = str(error).strip().splitlines()[0][:160]
        remedy = "pip install 'flowgrad[text]'" if find_spec("transformers") is None else "get it again"
        raise FlowgradError(f"the {name} in {folder} does not load ({reason}): {remedy}") from error
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


def _schedule(config: ModelConfig, folder: Path, kind: str, side: int, pipe: Any) -> tuple[Schedule, str]:
    """The steps that the pipeline itself would take."""
    scheduler = load_scheduler(folder)
    patch = 2 if kind == "FluxTransformer2DModel" else int(getattr(pipe, "patch_size", 2) or 2)
    shift = _shift(scheduler.config, (side // patch) ** 2) if scheduler.config.get("use_dynamic_shifting") else None
    even = [1 - k / config.steps for k in range(config.steps)]
    flux = kind == "FluxTransformer2DModel" and not scheduler.config.get("use_flow_sigmas")
    return to_schedule(scheduler, config.steps, even if flux else None, shift)


def _shift(settings: Any, tokens: int) -> float:
    """mu, linear in the number of tokens of the image, from the scheduler's two points."""
    low, high = settings.get("base_image_seq_len", 256), settings.get("max_image_seq_len", 4096)
    base, top = settings.get("base_shift", 0.5), settings.get("max_shift", 1.15)
    return base + (top - base) * (tokens - low) / (high - low)


# --- networks: states (B, C, H, W) and times (B,), with everything else frozen --------------------------------------


def guided(conditional: Network, unconditional: Network | None, scale: float) -> Network:
    """Classifier-free guidance: the unconditional output, moved `scale` times towards the conditional one."""
    if unconditional is None:
        return conditional
    return lambda x, time: torch.lerp(unconditional(x, time), conditional(x, time), scale)


def _rows(embedding: Tensor, x: Tensor) -> Tensor:
    return embedding.detach().expand(len(x), *embedding.shape[1:])


@torch.no_grad()
def _stable_diffusion(pipe: Any, config: ModelConfig, side: int, device: torch.device) -> tuple[Network, int]:
    if pipe.unet.config.get("addition_embed_type"):
        raise FlowgradError("SDXL's U-Net, which also asks for sizes, cannot be read: use a model of SD 1.5's kind")
    free = config.guidance_scale > 1
    texts = pipe.encode_prompt(config.prompt, device, 1, free, config.negative_prompt or None)
    unet = pipe.unet

    def at(embedding: Tensor) -> Network:
        return lambda x, time: unet(x.to(unet.dtype), time, _rows(embedding, x), return_dict=False)[0]

    network = guided(at(texts[0]), at(texts[1]) if free else None, config.guidance_scale)
    return network, int(unet.config["in_channels"])


@torch.no_grad()
def _stable_diffusion_3(pipe: Any, config: ModelConfig, side: int, device: torch.device) -> tuple[Network, int]:
    free = config.guidance_scale > 1
    prompts, negatives = (config.prompt,) * 3, (config.negative_prompt,) * 3
    texts = pipe.encode_prompt(*prompts, device, 1, free, *negatives)
    transformer = pipe.transformer

    def at(embedding: Tensor, pooled: Tensor) -> Network:
        return lambda x, time: transformer(
            hidden_states=x.to(transformer.dtype),
            timestep=time,
            encoder_hidden_states=_rows(embedding, x),
            pooled_projections=_rows(pooled, x),
            return_dict=False,
        )[0]

    network = guided(at(texts[0], texts[2]), at(texts[1], texts[3]) if free else None, config.guidance_scale)
    return network, int(transformer.config["in_channels"])


@torch.no_grad()
def _flux(pipe: Any, config: ModelConfig, side: int, device: torch.device) -> tuple[Network, int]:
    """FLUX reads 2x2 patches as tokens; its guidance scale is an input of the network, where it has one.

    Raises FlowgradError for options that it does not read.
    """
    has_guidance = bool(pipe.transformer.config.get("guidance_embeds"))
    if config.negative_prompt or (config.guidance_scale != 1 and not has_guidance):
        option = "negative_prompt" if config.negative_prompt else "guidance_scale"
        raise FlowgradError(f"{config.name}: this FLUX reads no {option}: remove it from the configuration")
    embedding, pooled, text_ids = pipe.encode_prompt(config.prompt, None, device)
    transformer, half = pipe.transformer, side // 2
    rows, columns = torch.meshgrid(torch.arange(half), torch.arange(half), indexing="ij")
    image_ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).to(text_ids)

    def network(x: Tensor, time: Tensor) -> Tensor:
        guidance = torch.full_like(time, config.guidance_scale) if has_guidance else None
        tokens = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        out = transformer(
            hidden_states=tokens.to(transformer.dtype),
            timestep=time / TRAIN_TIMESTEPS,
            guidance=guidance,
            pooled_projections=_rows(pooled, x),
            encoder_hidden_states=_rows(embedding, x),
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0]
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (half, half)), 2)

    return network, int(transformer.config["in_channels"]) // 4


_NETWORKS: dict[str, Callable[[Any, ModelConfig, int, torch.device], tuple[Network, int]]] = {
    "UNet2DConditionModel": _stable_diffusion,
    "SD3Transformer2DModel": _stable_diffusion_3,
    "FluxTransformer2DModel": _flux,
}
