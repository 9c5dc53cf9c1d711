"""Tiny random pipelines of diffusers, with a tokenizer of single letters, for tests."""

import json
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

has_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers, of the extra text")
PIPELINES = ("stable-diffusion", "instaflow", "sd3", "flux")


def make_unet(channels: int = 3, size: int = 16) -> UNet2DModel:
    """A random UNet2DModel for states (channels, size, size)."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


def make_pipeline(kind: str) -> Any:
    """A random pipeline for images of 32 pixels and latents of 16."""
    torch.manual_seed(0)
    return {"stable-diffusion": _diffusion, "instaflow": _diffusion, "sd3": _sd3, "flux": _flux}[kind]()


def make_autoencoder(channels: int, kind: Any = AutoencoderKL, **settings: Any) -> Any:
    """A random autoencoder, AutoencoderKL or VQModel, to latents (channels, H / 2, W / 2)."""
    return kind(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        **settings,
    ).eval()


def _stage(shift: float | None) -> AutoencoderKL:
    return make_autoencoder(4, scaling_factor=0.7, shift_factor=shift, sample_size=32)


def letter_tokenizer() -> Any:
    """CLIP's tokenizer with letters as its only tokens."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77)


def word_tokenizer() -> Any:
    """A tokenizer of T5's kind: pieces of words that begin with their space, and an end; letters for all else."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["▁a", "▁an", "▁photo", "▁of", "▁cat", "▁ca", "thed", "ral", "▁and", "▁dog", "▁ice-cream", *"(),.▁"]
    letters = [letter for letter in "aAbcdefghijklmnopqrstuvwxyz" if letter not in words]
    pieces = [("</s>", 0.0), ("<unk>", -20.0), *((word, -1.0) for word in words), *((each, -5.0) for each in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<unk>")


def _text_encoder(projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def make_t5() -> Any:
    """A random T5 encoder of 54 tokens."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=54, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)).eval()


def _diffusion() -> Any:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    return StableDiffusionPipeline(
        vae=_stage(None),
        text_encoder=_text_encoder(False),
        tokenizer=letter_tokenizer(),
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd3() -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_stage(0.1),
        text_encoder=_text_encoder(True),
        tokenizer=letter_tokenizer(),
        text_encoder_2=_text_encoder(True),
        tokenizer_2=letter_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _flux() -> Any:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return FluxPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=_stage(0.1),
        text_encoder=_text_encoder(False),
        tokenizer=letter_tokenizer(),
        text_encoder_2=make_t5(),
        tokenizer_2=letter_tokenizer(),
    )
