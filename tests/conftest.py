"""Fields with known answers, a tiny model, and the folders that tests may read and write."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import directions.bank.bank
from tests.helpers.paths import SHARED
from tests.helpers.tiny import Tiny, make_tiny


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first, so that workers that share the tests out end together."""
    items.sort(key=lambda item: "test_every_command_works" not in item.nodeid)


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (reference vectors, photos), which is not there")
    return SHARED


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a test runs in; it sees no bank and no models but its own, and writes to none of others."""
    for name in ("bank", "models"):
        monkeypatch.setenv(f"FLOWGRAD_{name.upper()}", str(tmp_path / f"own-{name}"))
    monkeypatch.setattr(directions.bank.bank, "_shipped_folder", lambda: None)
    monkeypatch.delenv("FLOWGRAD_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
