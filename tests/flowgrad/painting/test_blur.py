"""f, and how far an image is from a painting."""

import torch

from flowgrad.painting.blur import blur, rmse, unfaithfulness


def test_the_blur_is_a_gaussian_of_7_pixels_at_512():
    impulse = torch.zeros(1, 1, 128, 128, dtype=torch.float64)
    impulse[..., 64, 64] = 1
    seen = blur(impulse)[0, 0]
    at = torch.arange(128, dtype=torch.float64) - 64
    assert torch.allclose(seen.sum(), torch.tensor(1.0, dtype=torch.float64))
    variance = (seen.sum(0) * at.square()).sum()
    assert abs(float(variance.sqrt()) - 7 * 128 / 512) < 0.05


def test_a_blur_is_linear_and_keeps_a_flat_image():
    a, b = torch.randn(2, 1, 3, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(blur(2 * a + b), 2 * blur(a) + blur(b))
    assert torch.allclose(blur(torch.full_like(a, 0.3)), torch.full_like(a, 0.3))


def test_unfaithfulness_is_of_blurs_and_rmse_is_in_shares_of_the_range():
    white, black = torch.ones(2, 3, 32, 32), -torch.ones(1, 3, 32, 32)
    assert torch.allclose(unfaithfulness(white, black), torch.full((2,), 4.0))
    assert torch.allclose(rmse(white, black), torch.ones(2))


def test_the_smallest_images_can_be_blurred():
    assert blur(torch.ones(1, 3, 2, 2)).shape == (1, 3, 2, 2)
