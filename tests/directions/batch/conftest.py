"""A command that applies a direction of a bank to photos."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from directions.bank.bank import Bank
from flowgrad.models import load_model
from tests.helpers.command_line import call
from tests.helpers.page import fill
from tests.helpers.tiny import Tiny, make_photos


@pytest.fixture
def applied(tiny: Tiny, home: Path) -> Callable[..., Result]:
    """`apply-direction old` in a folder with 24 photos in `photos`, with a batch of the model's between them."""
    fill(Bank(home / "bank"), load_model(str(tiny.model), "cpu", "fp32"))
    make_photos(home / "photos", 24, size=20)

    def run(*arguments: object) -> Result:
        return call("apply-direction", "old", *arguments, "--model", tiny.model, "--bank", home / "bank")

    return run
