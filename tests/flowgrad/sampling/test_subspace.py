"""Subspaces of latents: orthonormal, and of the directions that matter."""

import pytest
import torch

from flowgrad.errors import UsageError
from flowgrad.sampling.subspace import leading

DRAW = torch.Generator().manual_seed(0)
SHAPE = (3, 2, 2)


def draw(*shape):
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


def noisy(means, count=4000, noise=1.0):
    """Gradients (count, K, *SHAPE) of means (K, *SHAPE), and noise of as many features."""
    return means + noise * draw(count, *means.shape)


def test_the_mean_gradients_are_spanned_whatever_the_units_and_the_noise():
    means = 3 * draw(2, *SHAPE)
    basis = leading(noisy(means) * torch.tensor([1.0, 1e6]).view(1, 2, 1, 1, 1)).basis.flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))
    assert (means.flatten(1) @ basis.T @ basis - means.flatten(1)).abs().max() < 0.1


def test_of_a_linear_feature_the_direction_is_its_own():
    """f(x) = a . x: the one gradient is a, and z = B^T x tells f."""
    a, x = draw(1, *SHAPE), draw(5, *SHAPE)
    subspace = leading(a.expand(3, 1, *SHAPE), 1)
    assert len(subspace) == 1
    expected = (x * a).flatten(1).sum(1, keepdim=True) / a.norm()
    torch.testing.assert_close(subspace.inside(x).abs(), expected.abs())


def test_features_that_say_the_same_share_a_direction_and_the_strongest_gradients_follow():
    """log p / (1 - p) of two answers are a number and its negative."""
    mean, other = draw(1, *SHAPE), draw(1, *SHAPE)
    gradients = torch.cat([mean, -mean]) + draw(500, 2, 1, 1, 1) * other + noisy(torch.zeros(2, *SHAPE), 500, 0.01)
    basis = leading(gradients, 2).basis.flatten(1)
    assert basis.shape[0] == 2
    for held in (mean, other):
        assert (held.flatten(1) @ basis.T @ basis - held.flatten(1)).abs().max() < 0.1
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))


def test_moving_changes_the_coordinates_and_nothing_else():
    subspace, x0, z = leading(draw(9, 4, *SHAPE), 4), draw(5, *SHAPE), draw(5, 4)
    moved = subspace.moved(x0, z)
    torch.testing.assert_close(subspace.inside(moved), z)
    torch.testing.assert_close(subspace.moved(moved, subspace.inside(x0)), x0)


def test_fewer_gradients_than_dimensions_are_refused():
    with pytest.raises(UsageError, match="1 gradients do not span 2 dimensions"):
        leading(draw(1, 1, *SHAPE), 2)
