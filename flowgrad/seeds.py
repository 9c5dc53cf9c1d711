"""Random numbers from whole numbers: unrelated for any two different keys, and the same on every machine."""

import hashlib

import torch


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose: `key` is a seed and what it is used for, such as an image's or a step's number.

    Keys are hashed as a whole, so that image 1 of seed 0 is not image 0 of seed 1.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
