"""Where conversions of checkpoints go."""

import pytest


@pytest.fixture(scope="package", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
