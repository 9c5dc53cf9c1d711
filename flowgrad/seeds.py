"""Random numbers from whole numbers: unrelated for any two different keys, and the same on every machine."""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Key = tuple[int, ...]
Source = Callable[[Sequence[Key]], Tensor]  # keys -> latents (B, *D), each drawn from its own key alone


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose: `key` is a seed and what it is used for, such as an image's or a step's number.

    Keys are hashed as a whole, so that image 1 of seed 0 is not image 0 of seed 1.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal(shape: tuple[int, ...], keys: Sequence[Key]) -> Tensor:
    """(B, *shape) standard normal numbers, on the CPU, each row from the generator of its key."""
    return torch.stack([torch.randn(shape, generator=generator(*key)) for key in keys])
