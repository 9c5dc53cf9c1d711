"""The distance of two sets of features, against its closed form."""

import pytest
import torch

from flowgrad.guidance.frechet import frechet


def test_frechet_distance_of_known_normals() -> None:
    a = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, 2 * a + 1) == pytest.approx(3 + 3, rel=0.05)  # |1|^2 + sum of (2 - 1)^2
