"""A studio without a page, and the page on a server of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from direction_bank import screenshots
from directions.bank.bank import Bank
from directions.page import session
from directions.page.session import Studio
from flowgrad.models import Model, load_model
from tests.helpers.page import fill, text_alone
from tests.helpers.tiny import Tiny, make_model


@pytest.fixture(scope="package")
def model(tiny: Tiny) -> Model:
    return load_model(str(tiny.model), "cpu", "fp32")


@pytest.fixture(scope="package")
def faces(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of aligned faces."""
    folder = tmp_path_factory.mktemp("faces") / "model"
    return load_model(str(make_model(folder, tiny.guide, aligned=True)), "cpu", "fp32")


@pytest.fixture
def studio(model: Model, tmp_path: Path) -> Studio:
    bank = Bank(tmp_path / "bank")
    fill(bank, model)
    return Studio(model, bank)


@pytest.fixture(scope="package")
def served(faces: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Studio, Path]]:
    """The page's address over HTTP, its studio, and the folder that Gradio would write to."""
    pytest.importorskip("gradio", reason="needs the extra `ui`")
    bank, folder = Bank(tmp_path_factory.mktemp("bank")), tmp_path_factory.mktemp("gradio")
    fill(bank, faces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setattr(session, "load_recipe", text_alone)
        studio = Studio(faces, bank)
        with screenshots.served(studio) as url:
            yield url, studio, folder
