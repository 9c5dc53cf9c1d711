"""Latent models: the way between images and the latents that the flow lives in."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.models.diffusers_classes import network_classes
from flowgrad.models.diffusers_folder import hub_folder, load_component, read_json
from flowgrad.resources import HUB_NAME
from flowgrad.threads import abreast, side_by_side

AUTOENCODER = "vae"  # its folder, in that of a model
CLASSES = ("AutoencoderKL", "VQModel")


class FirstStage:
    """Encode images (B, 3, H, W) in [-1, 1] to states, and decode states, by a diffusers autoencoder (VQ or KL).

    A state is gain * scaling_factor * (latent - mean) / std. The latent (B, C, h, w) is the mean of the posterior (KL)
    or what comes before quantisation (VQ). mean and std are those of the network's configuration, as diffusers'
    pipelines read it: `latents_mean` and `latents_std`, one number per channel, else `shift_factor` (0 without) and 1.
    Without a network, a state is gain * image.

    Decoding a VQ latent quantises it first; gradients pass that unchanged (straight through). Images are decoded one
    by one, on a CPU some side by side (see `flowgrad.threads`), and of several each again when gradients are taken: the
    memory does not grow with the batch.
    Raises FlowgradError if mean and std do not fit the latent.
    """

    def __init__(self, network: Any, dtype: torch.dtype, gain: float = 1.0) -> None:
        self.network, self.dtype, self.gain, self.factor = network, dtype, gain, 1
        self.means, self.scales = [0.0], [1.0]
        self._sent: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        if network is not None:
            self._read(network.config)

    def _read(self, settings: Any) -> None:
        self.factor = 2 ** (len(settings["block_out_channels"]) - 1)
        self.means = settings.get("latents_mean") or [settings.get("shift_factor") or 0.0]
        deviations = settings.get("latents_std") or [1.0]
        if {len(self.means), len(deviations)} - {1, settings["latent_channels"]} or min(deviations) <= 0:
            raise FlowgradError(
                "latents_mean and latents_std of an autoencoder need one number for each of its "
                f"{settings['latent_channels']} channels, the second above 0; got {self.means} and {deviations}"
            )
        self.scales = [(settings.get("scaling_factor") or 1.0) / deviation for deviation in deviations]

    @property
    def conditions(self) -> tuple[str, ...]:
        """How its latents become states, for the fingerprint of the flow in them."""
        if self.network is None:
            return ()
        return (" ".join(f"{number:g}" for number in (*(scale * self.gain for scale in self.scales), *self.means)),)

    def encode(self, images: Tensor) -> Tensor:
        """Images -> states (B, *D) in the images' dtype, differentiably."""
        if self.network is None:
            return images * self.gain
        with self._precision(images):
            output = self.network.encode(images)
        latent = output.latents if hasattr(output, "latents") else output.latent_dist.mode()
        mean, scale = self._normalisation(images)
        return (latent.to(images) - mean) * scale

    def decode(self, states: Tensor) -> Tensor:
        """States -> images in the states' dtype, differentiably."""
        if self.network is None:
            return states / self.gain
        job = self._decode
        if len(states) > 1 and torch.is_grad_enabled() and states.requires_grad:
            job = partial(checkpoint, self._decode, use_reentrant=False)
        most = abreast(states.shape[-1] * self.factor)
        return torch.cat(side_by_side(job, states.split(1), states.device, most))

    def _decode(self, states: Tensor) -> Tensor:
        mean, scale = self._normalisation(states)
        with self._precision(states):
            return self.network.decode(states / scale + mean).sample.to(states)

    def _normalisation(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Means and scales of the channels, (C or 1, 1, 1) each; sent to a device once."""
        key = (like.device, like.dtype)
        if key not in self._sent:
            mean, scale = (like.new_tensor(numbers).view(-1, 1, 1) for numbers in (self.means, self.scales))
            self._sent[key] = mean, scale * self.gain
        return self._sent[key]

    def _precision(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def load_first_stage(folder: Path | None, device: torch.device, dtype: torch.dtype) -> FirstStage:
    """The AutoencoderKL or VQModel in a folder; without a folder, states are images.

    Raises FlowgradError for another kind, or if it is damaged.
    """
    if folder is None:
        return FirstStage(None, dtype)
    kind = str(read_json(folder / "config.json").get("_class_name"))
    if kind not in CLASSES:
        raise FlowgradError(f"{folder} holds {kind}: only {' and '.join(CLASSES)} can be read")
    network = network_classes().autoencoder if kind == "AutoencoderKL" else _vq_class()
    placed = load_component(network, folder).to(device)
    return FirstStage(placed.to(memory_format=torch.channels_last), dtype)  # in which convolutions are faster


def _vq_class() -> Any:
    from diffusers import VQModel

    return VQModel


def find_autoencoder(name: str) -> Path:
    """The folder of an autoencoder: a path, a model's folder that holds one in `vae/`, or a name on the hub.

    Raises UsageError for a name that is none of these, FlowgradError if the hub does not answer.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not HUB_NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no folder of an autoencoder, no model, and no OWNER/NAME on the hub")
        folder = hub_folder(name)
    return next((place for place in (folder, folder / AUTOENCODER) if _is_autoencoder(place)), folder)


def _is_autoencoder(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("_class_name") in CLASSES
