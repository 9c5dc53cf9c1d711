"""Recipes for training a flow: network and optimiser as validated configuration."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from flowgrad.resources import read_config
from flowgrad.training.loop.optimization import Optimization, Share
from flowgrad.validation import Section, validated

Count = Annotated[int, Field(gt=0)]


class UNetConfig(Section):
    """Sizes of the UNet2DModel: `channels` and `attention` have one entry for each resolution, finest first.

    It sees `patch` x `patch` pixel-unshuffled patches of images, or of their latents, and the time `time_scale` t.
    `size` is the side of the images in pixels.
    """

    size: Count = 64
    patch: Count = 2
    time_scale: Annotated[float, Field(gt=0)] = 1000.0
    channels: tuple[Annotated[int, Field(gt=0, multiple_of=4)], ...] = (64, 128, 256)
    attention: tuple[bool, ...] = (False, False, True)
    layers: Count = 1
    head_dim: Count = 64
    groups: Count = 32

    @model_validator(mode="after")
    def _fits(self) -> "UNetConfig":
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention needs one entry for each of {len(self.channels)} channels; got {self.attention}"
            )
        finest = self.patch * 2 ** (len(self.channels) - 1)
        if self.size % finest:
            raise ValueError(f"size must be a multiple of {finest} (patch 2^(levels - 1)); got {self.size}")
        if odd := [c for c in self.channels if c % self.groups]:
            raise ValueError(f"channels must be multiples of groups = {self.groups}; got {odd}")
        if odd := [c for c, on in zip(self.channels, self.attention, strict=True) if on and c % self.head_dim]:
            raise ValueError(f"channels with attention must be multiples of head_dim = {self.head_dim}; got {odd}")
        return self


class FlowTraining(Optimization):
    """How the network is trained; see `Optimization` for the keys that all trainings share.

    t is uniform for `uniform` of each batch and logit-normal for the rest. flips: half of the images are mirrored;
    augment: small shifts, brightness and contrast; held_out: share of the images that is kept from training.
    """

    uniform: Share = 0.2
    flips: bool = False
    augment: bool = False
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.025


class FlowConfig(Section):
    """A recipe: the network and its training."""

    network: UNetConfig = UNetConfig()
    training: FlowTraining = FlowTraining()

    def change(self, **changes: object) -> "FlowConfig":
        """Return a recipe with some keys of either section changed (None changes nothing), validated again.

        Raises UsageError naming what is wrong.
        """
        parts = self.model_dump()
        for key, value in changes.items():
            section = "network" if key in UNetConfig.model_fields else "training"
            parts[section] |= {} if value is None else {key: value}
        return validated(FlowConfig, parts, "the recipe")


def load_flow_config(name: str | Path) -> FlowConfig:
    """Read the recipe of a shipped name or a YAML file.

    Raises UsageError naming the first wrong key or value and, for an unknown key or name, the nearest.
    """
    return validated(FlowConfig, read_config("flows", name), name)
