"""How far an edit has moved from the original, as a distance for each image."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError, UsageError

DISTANCES = ("l1", "lpips")
ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's weights, which LPIPS looks with
Distance = Callable[[Tensor, Tensor], Tensor]  # images and originals (B, 3, H, W) in [-1, 1] -> distances (B,)


def load_distance(name: str, device: torch.device | str) -> Distance:
    """The distance called `name`: "l1", or "lpips", LPIPS with AlexNet (Zhang et al., CVPR 2018) by the package lpips.

    Raises UsageError for another name; FlowgradError when AlexNet's weights are neither cached nor can be downloaded.
    """
    if name not in DISTANCES:
        raise UsageError(f"preserve must be one of {', '.join(DISTANCES)}; got {name!r}")
    if name == "l1":
        return l1
    import lpips

    try:
        network = lpips.LPIPS(net="alex", verbose=False)
    except OSError as error:
        raise FlowgradError(
            f"LPIPS needs AlexNet's weights from torchvision, and they could not be downloaded ({error}). "
            f"Use preserve = l1, or put {ALEXNET} into ~/.cache/torch/hub/checkpoints."
        ) from error
    network = network.to(device).eval().requires_grad_(False)
    return lambda images, originals: network(images, originals).flatten()


def has_lpips() -> bool:
    """Whether LPIPS can be measured without a download."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET).is_file()


def l1(images: Tensor, originals: Tensor) -> Tensor:
    """Mean absolute difference of pixels, in [0, 2]."""
    return (images - originals).abs().flatten(1).mean(1)
