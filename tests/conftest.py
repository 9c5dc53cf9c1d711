"""Fields with known answers, and the folders that tests may read."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.paths import SHARED


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (reference vectors, photos), which is not there")
    return SHARED


class SmoothField(nn.Module):
    """A small nonlinear field in float64: v(x, t) = W2 tanh(W1 x + t b), for x (B, 3, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.inner, self.outer, self.bias = draw(48, 48) / 7, draw(48, 48) / 7, draw(48)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = x.flatten(1) @ self.inner + t.reshape(-1, 1) * self.bias
        return (torch.tanh(phase) @ self.outer).view_as(x)


@pytest.fixture
def field() -> SmoothField:
    return SmoothField()


@pytest.fixture
def x0() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
