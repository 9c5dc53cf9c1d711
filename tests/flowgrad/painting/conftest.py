"""A painting on a flow that is known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowgrad.ode import Grid
from flowgrad.painting.objective import PaintingObjective
from flowgrad.painting.path import Canvas
from flowgrad.seeds import normal
from tests.helpers.mixture import Mixture

SHAPE = (1, 4, 64)  # wide, since the blur is scaled with the width: 0.9 pixels here
SPREAD = 0.5


def identity(x: Tensor) -> Tensor:
    return x


@pytest.fixture
def mixture() -> Mixture:
    """Three smooth images, and white noise on each: what a blur leaves of a sample says which of them it is."""
    across = torch.linspace(0, 3.14159, 64, dtype=torch.float64)
    waves = torch.stack([torch.cos(across), torch.sin(2 * across), -torch.cos(across)])
    return Mixture(0.8 * waves.view(3, 1, 1, 64).expand(3, *SHAPE), SPREAD)


@pytest.fixture
def canvas(mixture: Mixture) -> Callable[..., Canvas]:
    """The canvas of candidates `first` to `first + count` for the first smooth image as a painting."""

    def make(strength: float = 0.5, first: int = 0, count: int = 16, steps: int = 40) -> Canvas:
        strokes = mixture.means[:1]
        return Canvas(
            mixture,
            identity,
            identity,
            lambda draw: normal(SHAPE, [(3, i, draw) for i in range(first, first + count)]).double(),
            strokes,
            Grid.full(steps),
            PaintingObjective(strokes),
            strength,
        )

    return make
