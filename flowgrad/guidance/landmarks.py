"""Where a face's landmarks lie, and how far it is turned: a small network, on any device, in batches, differentiable.

The network places the 68 points of iBUG's scheme. It is face-api.js's (Mühler, 2018): four blocks of depthwise
separable convolutions whose outputs are added up. Its weights ship as the npm package @vladmandic/face-api (MIT) has
them, uint8 with a scale and a minimum for each tensor; see the card in `weights/faces-landmarks`.
"""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad, relu

from flowgrad.errors import FlowgradError, reason
from flowgrad.guidance.guide_files import read_state
from flowgrad.guidance.names import shipped_file

MEAN = (122.782, 117.001, 104.298)  # of the channels in [0, 255], as the network's input layer has it
WIDTHS = (32, 64, 128, 256)
INPUT, POOL = 112, 7  # side of its input, and of the features that are averaged

LEFT_EYE, RIGHT_EYE, NOSE = slice(36, 42), slice(42, 48), 30  # in the picture, not the person's
TURN = 1.75  # w / p in `yaw`; the card says how it was measured
NETWORK_TURN = 2.19  # the same for landmarks of this network, which places turned faces' too near to frontal ones


class Separable(nn.Module):
    """A depthwise 3x3 convolution, then a pointwise one with a bias; padded as TensorFlow's "same" is."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(inward, inward, 3, stride, groups=inward, bias=False)
        self.mix = nn.Conv2d(inward, outward, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.spread(_same(x, self.spread.stride[0])))


class Entry(nn.Conv2d):
    """The very first convolution, which is a full one and halves."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_same(x, 2))


def _same(x: Tensor, stride: int) -> Tensor:
    """x with the zeros around it that TensorFlow gives 3x3 filters on an even side: fewer before than after, if any."""
    return pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))


class Block(nn.Module):
    """Four convolutions, the first of which halves; each of the others takes the sum of all that came before."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        first = Entry(inward, outward, 3, 2) if inward == 3 else Separable(inward, outward, 2)
        self.layers = nn.ModuleList([first, *(Separable(outward, outward, 1) for _ in range(3))])

    def forward(self, x: Tensor) -> Tensor:
        """(B, inward, S, S) to (B, outward, S / 2, S / 2)."""
        total = relu(self.layers[0](x))
        for layer in list(self.layers)[1:]:
            total = total + layer(relu(total))
        return relu(total)


class Landmarks(nn.Module):
    """Frozen: faces (B, 3, S, S) in [-1, 1] to (B, 68, 2), the points' x and y in fractions of the side."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)))
        self.last = nn.Linear(WIDTHS[-1], 136)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, faces: Tensor) -> Tensor:
        """(B, 68, 2) float32, differentiably. Raises FlowgradError for faces that are not square."""
        if faces.shape[2] != faces.shape[3]:
            raise FlowgradError(
                f"an aligned face is square, not {faces.shape[3]} x {faces.shape[2]}. Prepare it first."
            )
        size = (INPUT, INPUT)
        inner = interpolate(faces.float(), size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
        return self.of_inputs(inner)

    def of_inputs(self, faces: Tensor) -> Tensor:
        """(B, 68, 2), from faces of the input's size (B, 3, 112, 112) in [-1, 1]."""
        features = self.blocks(((faces + 1) * 127.5 - self.mean) / 255)
        placed: Tensor = self.last(avg_pool2d(features, POOL).flatten(1))
        return placed.view(-1, 68, 2)

    def yaw(self, faces: Tensor) -> Tensor:
        """How far faces are turned, (B,) degrees, on the scale of dlib's landmarks; see `yaw`."""
        return yaw(self(faces), NETWORK_TURN)


def load_landmarks(name: str = "faces-landmarks", device: str = "cpu") -> Landmarks:
    """The network that ships. Raises FlowgradError if its file is missing or damaged."""
    return _loaded(shipped_file(name, "landmarks"), device)


@lru_cache(maxsize=2)
def _loaded(path: Path, device: str) -> Landmarks:
    network = Landmarks()
    try:
        network.load_state_dict(read_state(path)[0])
    except RuntimeError as error:
        raise FlowgradError(f"{path} is not a landmark network's weights ({reason(error)}): install again.") from error
    return network.to(device)


def yaw(landmarks: Tensor, turn: float = TURN) -> Tensor:
    """How far faces are turned, (B,) degrees, from landmarks (B, 68, 2): above 0 towards the right of the picture.

    Seen from afar, a head turned by an angle a shows the distance w between its eyes as w cos a, and the tip of the
    nose, p in front of their middle, beside it by p sin a: tan a = turn offset / distance, turn = w / p.
    """
    left, right = landmarks[:, LEFT_EYE].mean(1), landmarks[:, RIGHT_EYE].mean(1)
    across = right - left
    offset = ((landmarks[:, NOSE] - (left + right) / 2) * across).sum(1) / across.square().sum(1)
    return (turn * offset).atan().rad2deg()
