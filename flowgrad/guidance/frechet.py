"""How far one set of images is from another: Frechet's distance of the features that a judge has of them."""

import torch
from torch import Tensor

from flowgrad.guidance.judge import JUDGED, Judge


@torch.no_grad()
def features(judge: Judge, images: Tensor) -> Tensor:
    """A judge's features (N, C), float64 on the CPU, of images (N, 3, H, W) in [-1, 1]."""
    return torch.cat([judge.features(part) for part in images.split(JUDGED)]).cpu().double()


def frechet(a: Tensor, b: Tensor) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), A and B covariances of features (N, C) (Heusel et al., 2017)."""
    A, B = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(A @ B).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * root)
