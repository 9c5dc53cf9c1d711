"""Subspaces of latents: orthonormal, of the directions that matter, and explaining what they explain."""

import pytest
import torch

from flowgrad.errors import UsageError
from flowgrad.sampling.subspace import explained, leading

DRAW = torch.Generator().manual_seed(0)
SHAPE = (3, 2, 2)


def draw(*shape):
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


def test_the_span_of_the_gradients_is_found():
    """Gradients in a plane: two dimensions hold them all."""
    plane = draw(2, *SHAPE)
    found = leading((draw(30, 2) @ plane.flatten(1)).view(30, *SHAPE), 2)
    basis = found.basis.flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(plane.flatten(1) @ basis.T @ basis, plane.flatten(1))


def test_moving_changes_the_coordinates_and_nothing_else():
    subspace, x0, z = leading(draw(9, *SHAPE), 4), draw(5, *SHAPE), draw(5, 4)
    moved = subspace.moved(x0, z)
    torch.testing.assert_close(subspace.inside(moved), z)
    torch.testing.assert_close(subspace.moved(moved, subspace.inside(x0)), x0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_explained_share_is_that_of_a_known_mixture(share):
    values = share**0.5 * draw(4000, 1) + (1 - share) ** 0.5 * draw(4000, 4)
    assert float(explained(values)) == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("dimensions", [0, 4])
def test_more_dimensions_than_gradients_are_refused(dimensions):
    with pytest.raises(UsageError, match=f"got {dimensions}"):
        leading(draw(3, *SHAPE), dimensions)
