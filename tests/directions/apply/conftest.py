"""A model too small to mean anything, its photos, and a control."""

import pytest
import torch

from directions.photo.reading import read_photo, to_tensor
from flowgrad.models import Model, load_model
from flowgrad.ode import Control, Grid
from tests.helpers.tiny import Tiny, make_tiny


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="package")
def model(tiny: Tiny) -> Model:
    return load_model(str(tiny.model), "cpu", "fp32")


@pytest.fixture(scope="package")
def images(tiny: Tiny) -> torch.Tensor:
    return to_tensor([read_photo(path).rgb for path in tiny.files])


@pytest.fixture
def control() -> Control:
    values = 0.3 * torch.randn(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Control(values, Grid((0, 3), 6))
