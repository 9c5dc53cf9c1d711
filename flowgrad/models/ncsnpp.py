"""NCSN++ (Song et al., ICLR 2021) as Rectified Flow uses it, and its official checkpoints.

Modules carry the names of the official code, so that its state dicts load as they are. diffusers' `UNet2DModel` has
the same blocks, but fixes the number of groups of its attention's and up blocks' norms, so it cannot hold other
sizes than the published one.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowgrad.checkpoints import converted, fill, read_checkpoint, require_tensors, verified_fingerprint
from flowgrad.errors import FlowgradError
from flowgrad.model_config import ModelConfig, NCSNppSizes
from flowgrad.models.parts import Parts, identity

FOURIER_SCALE = 16.0
FIR = (1.0, 3.0, 3.0, 1.0)
FIRST_TIME, LAST_TIME = 1e-3, 999.0  # the clock of the official code: 999 (eps + (1 - eps) t)
_FROZEN = "all_modules.0.W"  # the Fourier frequencies, which are not trained and so not among the averages


def _groups(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class Fourier(nn.Module):
    """Random Fourier features (B, 2C) of the logarithm of times (B,)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(channels) * FOURIER_SCALE, requires_grad=False)

    def forward(self, times: Tensor) -> Tensor:
        phases = times.log()[:, None] * self.W[None] * 2 * math.pi
        return torch.cat([phases.sin(), phases.cos()], 1)


@lru_cache(maxsize=16)
def fir_kernel(channels: int, gain: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(C, 1, 4, 4) separable low-pass filter with sum `gain`, for depthwise convolution.

    It is kept, since a copy to a GPU in every evaluation would make it wait.
    """
    taps = torch.tensor(FIR, dtype=dtype, device=device)
    return (torch.outer(taps, taps) / taps.sum() ** 2 * gain).expand(channels, 1, 4, 4)


def fir_up(x: Tensor) -> Tensor:
    """Twice the resolution, (B, C, H, W) -> (B, C, 2H, 2W), filtered."""
    c = x.shape[1]
    return F.conv_transpose2d(x, fir_kernel(c, 4.0, x.dtype, x.device), stride=2, padding=1, groups=c)


def fir_down(x: Tensor) -> Tensor:
    """Half the resolution, (B, C, H, W) -> (B, C, H/2, W/2), filtered."""
    c = x.shape[1]
    return F.conv2d(x, fir_kernel(c, 1.0, x.dtype, x.device), stride=2, padding=1, groups=c)


class ResBlock(nn.Module):
    """BigGAN's residual block, which may change the resolution; the sum is scaled by 1/sqrt(2)."""

    def __init__(self, channels: int, out: int, embedding: int, resample: str = "") -> None:
        super().__init__()
        self.resample = {"up": fir_up, "down": fir_down, "": identity}[resample]
        self.GroupNorm_0 = _groups(channels)
        self.Conv_0 = nn.Conv2d(channels, out, 3, padding=1)
        self.Dense_0 = nn.Linear(embedding, out)
        self.GroupNorm_1 = _groups(out)
        self.Conv_1 = nn.Conv2d(out, out, 3, padding=1)
        self.Conv_2 = nn.Conv2d(channels, out, 1) if channels != out or resample else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Features (B, channels, H, W) and time embedding (B, E) -> (B, out, H', W')."""
        h = self.Conv_0(self.resample(F.silu(self.GroupNorm_0(x))))
        h = h + self.Dense_0(F.silu(embedding))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        return (self.Conv_2(self.resample(x)) + h) / math.sqrt(2)


class NIN(nn.Module):
    """A pointwise linear map with weights (in, out), on (B, L, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.zeros(channels, channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.W.T, self.b)


class Attention(nn.Module):
    """Self-attention with one head over pixels; the sum is scaled by 1/sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = _groups(channels)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NIN(channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        h = F.scaled_dot_product_attention(self.NIN_0(h), self.NIN_1(h), self.NIN_2(h))
        return (x + self.NIN_3(h).transpose(1, 2).reshape(x.shape)) / math.sqrt(2)


class Combine(nn.Module):
    """Add the image at this resolution to the features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(3, channels, 1)

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        return self.Conv_0(image) + features


class NCSNpp(nn.Module):
    """Images (B, 3, S, S) and labels 999 t (B,) -> the network's output (B, 3, S, S), divided by the label.

    `all_modules` is the list of the official code, in the order of use.
    """

    def __init__(self, size: int, sizes: NCSNppSizes) -> None:
        super().__init__()
        self.sizes, self.checkpointing = sizes, False
        self.resolutions = [size >> level for level in range(len(sizes.multipliers))]
        self.all_modules = nn.ModuleList(self._modules_in_order())

    def _modules_in_order(self) -> Iterator[nn.Module]:
        sizes, base, width = self.sizes, self.sizes.channels, 4 * self.sizes.channels
        levels = [(r, base * multiplier) for r, multiplier in zip(self.resolutions, sizes.multipliers, strict=True)]
        yield from (Fourier(base), nn.Linear(2 * base, width), nn.Linear(width, width))
        yield nn.Conv2d(3, base, 3, padding=1)
        kept = [base]  # channels of the states on the way down
        for resolution, channels in levels:
            for _ in range(sizes.blocks):
                yield ResBlock(kept[-1], channels, width)
                if resolution in sizes.attention:
                    yield Attention(channels)
                kept.append(channels)
            if resolution != self.resolutions[-1]:
                yield from (ResBlock(channels, channels, width, "down"), Combine(channels))
                kept.append(channels)
        before = kept[-1]
        yield from (ResBlock(before, before, width), Attention(before), ResBlock(before, before, width))
        for resolution, channels in reversed(levels):
            for _ in range(sizes.blocks + 1):
                yield ResBlock(before + kept.pop(), channels, width)
                before = channels
            if resolution in sizes.attention:
                yield Attention(channels)
            yield from (_groups(channels), nn.Conv2d(channels, 3, 3, padding=1))
            if resolution != self.resolutions[0]:
                yield ResBlock(channels, channels, width, "up")

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        layers = iter(self.all_modules)
        fourier, first, second = (next(layers) for _ in range(3))
        embedding = second(F.silu(first(fourier(labels))))
        states = self._down(layers, x, embedding)
        h = self._block(next(layers), states[-1], embedding)
        h = next(layers)(h)
        h = self._block(next(layers), h, embedding)
        return self._up(layers, h, states, embedding) / labels.view(-1, 1, 1, 1)

    def _block(self, block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, h, embedding, use_reentrant=False)
        return block(h, embedding)

    def _down(self, layers: Iterator[Any], image: Tensor, embedding: Tensor) -> list[Tensor]:
        """Features after every block, the finest first."""
        states = [next(layers)(image)]
        for resolution in self.resolutions:
            for _ in range(self.sizes.blocks):
                h = self._block(next(layers), states[-1], embedding)
                states.append(next(layers)(h) if resolution in self.sizes.attention else h)
            if resolution != self.resolutions[-1]:
                image = fir_down(image)
                h = self._block(next(layers), states[-1], embedding)
                states.append(next(layers)(image, h))
        return states

    def _up(self, layers: Iterator[Any], h: Tensor, states: list[Tensor], embedding: Tensor) -> Tensor:
        """The sum of the images that every resolution adds."""
        image: Any = None
        for resolution in reversed(self.resolutions):
            for _ in range(self.sizes.blocks + 1):
                h = self._block(next(layers), torch.cat([h, states.pop()], 1), embedding)
            if resolution in self.sizes.attention:
                h = next(layers)(h)
            norm, convolution = next(layers), next(layers)
            added = convolution(F.silu(norm(h)))
            image = added if image is None else fir_up(image) + added
            if resolution != self.resolutions[0]:
                h = self._block(next(layers), h, embedding)
        return image


class RectifiedVelocity(nn.Module):
    """v(x, t) of Rectified Flow's official networks: x (B, 3, S, S), t () or (B,) in [0, 1].

    The network is asked at 999 (eps + (1 - eps) t), eps = 1e-3, and computes in `dtype` by autocast.
    """

    def __init__(self, network: NCSNpp, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        labels = (LAST_TIME * (FIRST_TIME + (1 - FIRST_TIME) * t)).expand(len(x))
        with torch.autocast(x.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            v = self.network(x.contiguous(memory_format=torch.channels_last), labels.to(x))
        return v.to(x).contiguous()


def official_state(path: Path) -> dict[str, Tensor]:
    """The averaged (EMA) weights of an official checkpoint, by the names of `NCSNpp`.

    Its list `shadow_params` holds those of the trained parameters in their order, which is that of `model`.
    Raises FlowgradError if the file is missing, damaged, holds code, or is another kind of checkpoint.
    """
    raw = read_checkpoint(path)
    try:
        model, averages = raw["model"], dict(enumerate(raw["ema"]["shadow_params"]))
    except (KeyError, TypeError) as error:
        raise FlowgradError(
            f"{path} is no checkpoint of Rectified Flow's code, which has `model` and `ema.shadow_params`. "
            "Check the model's `family` and `weights`"
        ) from error
    require_tensors({**model, **{f"shadow_params.{i}": value for i, value in averages.items()}}, path)
    state = {name.removeprefix("module."): value for name, value in model.items()}  # the prefix is DataParallel's
    state.pop("sigmas", None)  # a buffer of the score-based ancestor
    trained = [name for name in state if name != _FROZEN]
    if [state[name].shape for name in trained] != [average.shape for average in averages.values()]:
        raise FlowgradError(
            f"{path}: its {len(averages)} averages do not match its {len(trained)} trained parameters in number and "
            "shape, so that they cannot be told apart. Get the file again"
        )
    return {**state, **dict(zip(trained, averages.values(), strict=True))}


def empty_network(config: ModelConfig) -> NCSNpp:
    """The network of a configuration, on the meta device. Raises FlowgradError for sizes that make none."""
    factor = 2 ** (len(config.network.multipliers) - 1)
    if config.size % factor:
        rule = f"size must be a multiple of {factor}, since each of the `multipliers` but the last halves it"
        raise FlowgradError(f"{config.name}: {rule}; got {config.size}")
    try:
        with torch.device("meta"):
            return NCSNpp(config.size, config.network)
    except ValueError as error:
        raise FlowgradError(f"{config.name}: no NCSN++ has the `network` sizes {config.network} ({error})") from error


def load(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Parts:
    """Load an official Rectified Flow checkpoint; its conversion is cached.

    Raises FlowgradError if it is missing, damaged, or of another architecture than the configuration says.
    """
    path = config.weights_file()
    fingerprint = verified_fingerprint(path, config.sha256)
    state = converted(path.stem, fingerprint, lambda: official_state(path))
    network = empty_network(config)
    fill(network, state, path, "an NCSN++ of the `network` sizes in the configuration")
    network.checkpointing = config.checkpointing
    network.to(device).to(memory_format=torch.channels_last)
    shape = (3, config.size, config.size)
    return Parts(RectifiedVelocity(network, dtype), shape, identity, identity, fingerprint)
