"""Pools are drawn as samples are, and an interrupted one goes on where it was."""

import pytest
import torch

from directions.apply.inversion import join, sample_images
from directions.progress import Silent
from directions.sampler.pool import Parts, draw
from flowgrad.models import load_model
from flowgrad.ode import Grid
from flowgrad.sampling.latent import Generator

GRID = Grid((0, 3), 6)


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(str(tiny.model), "cpu", "fp32")


class Killed(Silent):
    """A reporter that ends the work after one part."""

    def track(self, items, label, total=None):
        yield next(iter(items))
        raise KeyboardInterrupt


def test_a_pool_is_what_sampling_draws(model):
    expected = join(sample_images(model, 20, 3, GRID)).images
    torch.testing.assert_close(draw(model, GRID, 20, 3, Silent()), expected)


def test_what_was_drawn_before_an_interruption_is_not_drawn_again(model, tmp_path):
    parts, whole = Parts(tmp_path / "pool", ("fp32",)), draw(model, GRID, 20, 3, Silent())
    with pytest.raises(KeyboardInterrupt):
        draw(model, GRID, 20, 3, Killed(), parts)
    (kept,) = parts.folder.iterdir()
    written = kept.stat().st_mtime_ns
    torch.testing.assert_close(draw(model, GRID, 20, 3, Silent(), parts), whole)
    assert kept.stat().st_mtime_ns == written and len(list(parts.folder.iterdir())) == 2
    kept.write_bytes(b"damaged")
    torch.testing.assert_close(draw(model, GRID, 20, 3, Silent(), parts), whole)
    parts.remove()
    assert not parts.folder.exists()


@pytest.mark.parametrize("other", [{"seed": 4}, {"grid": Grid((0, 2), 6)}, {"identity": ("bf16",)}])
def test_parts_of_another_pool_are_left_alone(model, tmp_path, other):
    def path(seed=3, grid=GRID, identity=("fp32",)):
        return Parts(tmp_path).of(*identity).path(Generator(model, grid), [(seed, 0)])

    assert path(**other) != path()
