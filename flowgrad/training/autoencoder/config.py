"""Recipes for training an autoencoder: network and optimiser as validated configuration."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from flowgrad.resources import read_config
from flowgrad.training.loop.optimization import Optimization, Positive, Share
from flowgrad.validation import Section, validated

Count = Annotated[int, Field(gt=0)]


class AutoencoderNetwork(Section):
    """Sizes of the AutoencoderKL: `channels` has one entry for each resolution, finest first.

    Images of `size` pixels become latents of `latent_channels` channels, 2^(levels - 1) times smaller.
    """

    size: Count = 128
    channels: tuple[Count, ...] = (32, 64, 96, 128)
    latent_channels: Count = 16
    layers: Count = 1
    groups: Count = 16

    @property
    def factor(self) -> int:
        """How many times smaller latents are than images."""
        return 2 ** (len(self.channels) - 1)

    @model_validator(mode="after")
    def _fits(self) -> "AutoencoderNetwork":
        if self.size % self.factor:
            raise ValueError(f"size must be a multiple of {self.factor} (2^(levels - 1)); got {self.size}")
        if odd := [c for c in self.channels if c % self.groups]:
            raise ValueError(f"channels must be multiples of groups = {self.groups}; got {odd}")
        return self


class AutoencoderTraining(Optimization):
    """How the network is trained; see `Optimization` for the keys that all trainings share.

    A step sees random crops of `crop` pixels, mirrored at random; in the last `whole` of the run it sees fewer, whole
    images, as the network will, for group norms depend on what is beside. The loss is L1, plus `gradient_weight` times
    L1 of horizontal and vertical differences, plus `kl_weight` times the mean over the latent's entries of the KL
    divergence to a standard normal. decoder_only: the encoder stays as it is, so that flows in its latents still fit;
    held_out: share of the images that is kept from training.
    """

    batch: Annotated[int, Field(ge=2)] = 24
    crop: Count = 64
    whole: Share = 0.15
    gradient_weight: Annotated[float, Field(ge=0)] = 0.5
    kl_weight: Annotated[float, Field(ge=0)] = 1e-3
    muon_rate: Positive = 0.01
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.998
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.025
    flips: bool = True
    decoder_only: bool = False


class AutoencoderConfig(Section):
    """A recipe: the network and its training."""

    network: AutoencoderNetwork = AutoencoderNetwork()
    training: AutoencoderTraining = AutoencoderTraining()

    @model_validator(mode="after")
    def _crop_fits(self) -> "AutoencoderConfig":
        crop, factor = self.training.crop, self.network.factor
        if crop % factor or crop > self.network.size:
            raise ValueError(f"crop must be a multiple of {factor}, {self.network.size} at the most; got {crop}")
        return self

    def change(self, **changes: object) -> "AutoencoderConfig":
        """Return a recipe with some keys of either section changed, validated again. Raises UsageError."""
        parts = self.model_dump()
        for key, value in changes.items():
            parts["network" if key in AutoencoderNetwork.model_fields else "training"][key] = value
        return validated(AutoencoderConfig, parts, "the recipe")


def load_autoencoder_config(name: str | Path) -> AutoencoderConfig:
    """Read the recipe of a shipped name or a YAML file. Raises UsageError naming the first wrong key or value."""
    return validated(AutoencoderConfig, read_config("autoencoders", name), name)
