"""Latent models: the way between images and the latents that the flow lives in."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class FirstStage(nn.Module):
    """Encode images (B, 3, H, W) in [-1, 1] to states, and decode states, by a diffusers autoencoder (VQ or KL).

    A state is (latent - shift) * scale, where the latent is the mode of the posterior (KL) or what comes before
    quantisation (VQ). Decoding a VQ latent quantises it first; gradients pass that unchanged (straight through).
    Images are decoded one at a time, and again when gradients are taken: memory for one, whatever the batch.
    """

    def __init__(self, network: nn.Module, scale: float, shift: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.network: Any = network
        self.scale, self.shift, self.dtype = scale, shift, dtype

    @property
    def told(self) -> str:
        """How its latents become states, for the fingerprint of the flow in them."""
        return f"{self.scale:g} {self.shift:g}"

    def encode(self, images: Tensor) -> Tensor:
        """Images -> states (B, *D) in float32, differentiably."""
        with self._precision(images):
            found = self.network.encode(images)
        latent = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
        return (latent.float() - self.shift) * self.scale

    def decode(self, states: Tensor) -> Tensor:
        """States -> images in float32, differentiably."""
        if not (torch.is_grad_enabled() and states.requires_grad):
            return torch.cat([self._decode(state) for state in states.split(1)])
        return torch.cat([checkpoint(self._decode, state, use_reentrant=False) for state in states.split(1)])

    def _decode(self, states: Tensor) -> Tensor:
        with self._precision(states):
            return self.network.decode(states / self.scale + self.shift).sample.float()

    def _precision(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)
