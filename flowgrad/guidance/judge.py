"""The judge: a small classifier, of another kind than the guides, that says whether an edit did what it claims."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn
from torch.nn.functional import interpolate

from flowgrad.errors import FlowgradError
from flowgrad.files import file_fingerprint
from flowgrad.guidance.guide_files import read_state
from flowgrad.guidance.names import HEADS_KEY, shipped_file

JUDGED = 256  # images that a judge looks at together
SIZES_KEY = "flowgrad.sizes"
Size = Annotated[int, Field(gt=0, le=4096)]


@dataclass(frozen=True)
class JudgeSizes:
    """Resolution in pixels, and channels and blocks of the stages, each at half the resolution of the one before."""

    resolution: Size = 64
    widths: tuple[Size, ...] = (32, 64, 112, 160)
    depths: tuple[Size, ...] = (1, 2, 3, 1)


class Block(nn.Module):
    """A depthwise 5x5 convolution and two pointwise ones, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.widen = nn.Conv2d(width, 3 * width, 1)
        self.narrow = nn.Conv2d(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, width, H, W) to features of the same shape."""
        return x + self.narrow(torch.relu(self.widen(self.norm(self.spread(x)))))


class JudgeNetwork(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to one row of logits (B, outputs) for all heads, side by side."""

    def __init__(self, sizes: JudgeSizes, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width, depth in zip(sizes.widths, sizes.depths, strict=True):
            layers += [nn.Conv2d(before, width, 4 if before == 3 else 2, stride=2, padding=1 if before == 3 else 0)]
            layers += [nn.BatchNorm2d(width), *(Block(width) for _ in range(depth))]
            before = width
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(before), nn.ReLU())
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(before, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, outputs)."""
        return self.head(self.dropout(self.features(images).mean((2, 3))))


class Judge(nn.Module):
    """A frozen judge with named answers: each head is a question whose answers exclude one another."""

    def __init__(
        self, network: JudgeNetwork, sizes: JudgeSizes, heads: Mapping[str, Sequence[str]], fingerprint: str
    ) -> None:
        """`heads` gives each question's answers in the order of the network's outputs."""
        super().__init__()
        self.network = network.float().eval().requires_grad_(False)
        self.sizes, self.fingerprint = sizes, fingerprint
        self.heads = {name: tuple(answers) for name, answers in heads.items()}
        self.eval()

    def probabilities(self, images: Tensor) -> dict[str, Tensor]:
        """Return the probability (B,) of every answer for images (B, 3, H, W) in [-1, 1] of any size.

        The answers of a head sum to 1; names such as "happy", "female" and "old" are unique over the heads.
        """
        return {answer: log_p.exp() for answer, log_p in self.log_probabilities(images).items()}

    def log_probabilities(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logarithm of `probabilities`."""
        logits = self.network(self._resized(images)).split([len(answers) for answers in self.heads.values()], 1)
        found: dict[str, Tensor] = {}
        for answers, scores in zip(self.heads.values(), logits, strict=True):
            found |= dict(zip(answers, scores.log_softmax(1).unbind(1), strict=True))
        return found

    def knows(self, answers: Collection[str]) -> bool:
        """Whether these are all the answers of one of its heads."""
        return any(set(answers) == set(known) for known in self.heads.values())

    def features(self, images: Tensor) -> Tensor:
        """Return what the answers are read from, (B, C), for images (B, 3, H, W) in [-1, 1] of any size."""
        return self.network.features(self._resized(images)).mean((2, 3))

    def _resized(self, images: Tensor) -> Tensor:
        size = (self.sizes.resolution, self.sizes.resolution)
        if images.shape[-2:] == size:
            return images
        return interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True)


def load_judge(name: str = "faces64-judge", device: torch.device | str = "cpu") -> Judge:
    """Load a shipped judge by name or one from a `.safetensors` path.

    Raises FlowgradError if the file is missing, is damaged, or is not a judge's.
    """
    path = Path(name).expanduser() if name.endswith(".safetensors") else shipped_file(name, "judge")
    state, metadata = read_state(path)
    try:
        heads = json.loads(metadata[HEADS_KEY])
        sizes = TypeAdapter(JudgeSizes).validate_json(metadata[SIZES_KEY])
        network = JudgeNetwork(sizes, sum(map(len, heads.values())))
        network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FlowgradError(f"{path} is not a judge's weights ({str(error)[:80]}): export the judge again.") from error
    return Judge(network, sizes, heads, file_fingerprint(path)).to(device)


def judge_metadata(sizes: JudgeSizes, heads: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Metadata from which `load_judge` rebuilds a network."""
    return {SIZES_KEY: json.dumps(asdict(sizes)), HEADS_KEY: json.dumps({key: list(heads[key]) for key in heads})}
