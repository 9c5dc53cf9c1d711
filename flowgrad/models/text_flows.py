"""Text-conditioned flows with the prompt frozen: Stable Diffusion's U-Net, and the transformers of SD3 and FLUX.

The text encoders run once, when the model is loaded, and are let go.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from flowgrad.errors import FlowgradError, reason
from flowgrad.model_config import ModelConfig
from flowgrad.models.diffusers_folder import FAILURES, quiet
from flowgrad.models.parts import Flow, Network
from flowgrad.models.regions import Region
from flowgrad.models.schedule import TRAIN_TIMESTEPS
from flowgrad.models.text_bias import (
    BiasedCrossAttention,
    BiasedJointAttention,
    TextBias,
    replace_processors,
    text_bias,
)

PIPELINES = {  # of text-conditioned models, by the class of their network
    "UNet2DConditionModel": "StableDiffusionPipeline",
    "SD3Transformer2DModel": "StableDiffusion3Pipeline",
    "FluxTransformer2DModel": "FluxPipeline",
}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of pipelines that no field depends on


@torch.no_grad()
def text_flow(
    config: ModelConfig,
    folder: Path,
    kinds: Mapping[str, str | None],
    part: str,
    side: int,
    device: torch.device,
    dtype: torch.dtype,
    regions: Sequence[Region] = (),
) -> Flow:
    """The network `part` of a pipeline at the configuration's prompt and guidance scale, for states of `side` pixels.

    It also depends on these: at another prompt it is another field. regions: where words of the prompt are meant.
    Raises FlowgradError if the pipeline is damaged, or needs a package that is missing, UsageError for words that it
    does not read.
    """
    kind = kinds[part] or ""
    if part == "transformer" and side % 2:
        raise FlowgradError(f"{config.name}: its states have {side} pixels, and this model needs an even number")
    pipe = _load_pipeline(folder, PIPELINES[kind], kinds, dtype)
    getattr(pipe, part).to(dtype)  # without accelerate, diffusers leaves SD3's in the dtype of the file
    encoders = [name for name, network in pipe.components.items() if name.startswith("text_encoder") and network]
    for name in encoders:  # which need not fit on the device beside the network
        pipe.components[name].to(device)
    network = _NETWORKS[kind](pipe, config, side, device, regions)
    pipe.register_modules(**dict.fromkeys(encoders))
    module, is_flux = getattr(pipe, part), kind == "FluxTransformer2DModel"
    channels = int(module.config["in_channels"]) // (4 if is_flux else 1)
    tokens = (side // int(getattr(pipe, "patch_size", None) or 2)) ** 2
    folders = tuple(folder / name for name in (part, *encoders))
    negative_prompt = config.negative_prompt if config.guidance_scale > 1 else ""
    told = config.prompt, negative_prompt, f"{config.guidance_scale:g}"
    conditions = *told, *(region.condition for region in regions)
    return Flow(module, network, channels, side, folders, conditions, tokens, is_flux)


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
        remedy = "pip install 'flowgrad[text]'" if find_spec("transformers") is None else "get it again"
        raise FlowgradError(f"the {name} in {folder} does not load ({reason(error)}): {remedy}") from error
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


def guided(conditional: Network, unconditional: Network | None, scale: float) -> Network:
    """Classifier-free guidance: the unconditional output, moved `scale` times towards the conditional one."""
    if unconditional is None:
        return conditional
    return lambda x, time, t: torch.lerp(unconditional(x, time, t), conditional(x, time, t), scale)


def _rows(embedding: Tensor, x: Tensor) -> Tensor:
    return embedding.expand(len(x), *embedding.shape[1:])


def _stable_diffusion(
    pipe: Any, config: ModelConfig, side: int, device: torch.device, regions: Sequence[Region]
) -> Network:
    if pipe.unet.config.get("addition_embed_type"):
        raise FlowgradError("SDXL's U-Net, which also asks for sizes, cannot be read: use a model of SD 1.5's kind")
    free = config.guidance_scale > 1
    texts = pipe.encode_prompt(config.prompt, device, 1, free, config.negative_prompt or None)
    unet, bias = pipe.unet, None
    if regions:
        bias = text_bias(regions, config.prompt, [(pipe.tokenizer, texts[0].shape[1])], side, texts[0])
        replace_processors(unet, BiasedCrossAttention)

    def at(embedding: Tensor, bias: TextBias | None = None) -> Network:
        def network(x: Tensor, time: Tensor, t: Tensor) -> Tensor:
            # An argument, and nothing that the processors keep: checkpointed layers are run again at their own t.
            drawn = {"text_bias": partial(bias.cross, t)} if bias else None
            rows = _rows(embedding, x)
            return unet(x.to(unet.dtype), time, rows, cross_attention_kwargs=drawn, return_dict=False)[0]

        return network

    return guided(at(texts[0], bias), at(texts[1]) if free else None, config.guidance_scale)


def _stable_diffusion_3(
    pipe: Any, config: ModelConfig, side: int, device: torch.device, regions: Sequence[Region]
) -> Network:
    free = config.guidance_scale > 1
    prompts, negatives = (config.prompt,) * 3, (config.negative_prompt,) * 3
    texts = pipe.encode_prompt(*prompts, device, 1, free, *negatives)
    transformer, bias = pipe.transformer, None
    tokens = (side // int(transformer.config["patch_size"])) ** 2
    if regions:  # CLIP's tokens come first, of both its encoders at once, and then T5's
        clip = int(pipe.tokenizer_max_length)
        readers = [(pipe.tokenizer, clip), (pipe.tokenizer_3, texts[0].shape[1] - clip)]
        bias = text_bias(regions, config.prompt, readers if pipe.text_encoder_3 else readers[:1], side, texts[0])
        replace_processors(transformer, BiasedJointAttention)

    def at(embedding: Tensor, pooled: Tensor, bias: TextBias | None = None) -> Network:
        return lambda x, time, t: transformer(
            hidden_states=x.to(transformer.dtype),
            timestep=time,
            encoder_hidden_states=_rows(embedding, x),
            pooled_projections=_rows(pooled, x),
            joint_attention_kwargs={"attention_mask": bias.joint(t, tokens, text_first=False)} if bias else None,
            return_dict=False,
        )[0]

    return guided(at(texts[0], texts[2], bias), at(texts[1], texts[3]) if free else None, config.guidance_scale)


def _flux(pipe: Any, config: ModelConfig, side: int, device: torch.device, regions: Sequence[Region]) -> Network:
    """FLUX reads 2x2 patches as tokens; its guidance scale is an input of the network, where it has one.

    Its attention takes a bias as it is. Raises FlowgradError for options that it does not read.
    """
    has_guidance = bool(pipe.transformer.config.get("guidance_embeds"))
    if config.negative_prompt or (config.guidance_scale != 1 and not has_guidance):
        option = "negative_prompt" if config.negative_prompt else "guidance_scale"
        raise FlowgradError(f"{config.name}: this FLUX reads no {option}: remove it from the configuration")
    embedding, pooled, text_ids = pipe.encode_prompt(config.prompt, None, device)
    transformer, half = pipe.transformer, side // 2
    image_ids = torch.cartesian_prod(torch.arange(1), torch.arange(half), torch.arange(half)).to(text_ids)
    bias = None
    if regions:  # only T5's tokens are attended to
        bias = text_bias(regions, config.prompt, [(pipe.tokenizer_2, embedding.shape[1])], side, embedding)

    def network(x: Tensor, time: Tensor, t: Tensor) -> Tensor:
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
            joint_attention_kwargs={"attention_mask": bias.joint(t, half**2, text_first=True)} if bias else None,
            return_dict=False,
        )[0]
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (half, half)), 2)

    return network


_NETWORKS: dict[str, Callable[[Any, ModelConfig, int, torch.device, Sequence[Region]], Network]] = {
    "UNet2DConditionModel": _stable_diffusion,
    "SD3Transformer2DModel": _stable_diffusion_3,
    "FluxTransformer2DModel": _flux,
}
