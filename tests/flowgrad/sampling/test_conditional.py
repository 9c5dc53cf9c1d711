"""E[y | z]: a known function is found again under noise, and how much it explains is told."""

import pytest
import torch

from flowgrad.sampling.conditional import explained, fit_mean

DRAW = torch.Generator().manual_seed(0)
Z = torch.randn(2000, 2, generator=DRAW)


def known(z: torch.Tensor) -> torch.Tensor:
    return torch.stack([z[:, 0] + z[:, 1], 50 + 10 * (z[:, 0] * z[:, 1]).tanh()], 1)


def test_a_known_mean_is_found_under_noise_in_any_units() -> None:
    noise = torch.randn(len(Z), 2, generator=DRAW) * torch.tensor([1.0, 10.0])
    mean = fit_mean(Z, known(Z) + noise)
    inside = Z[Z.norm(dim=1) < 2]
    errors = (mean(inside) - known(inside)) / torch.tensor([1.0, 10.0])
    assert errors.square().mean().sqrt() < 0.25


def test_means_of_probabilities_are_probabilities_also_far_away() -> None:
    chances = torch.stack([Z[:, 0], Z[:, 1], torch.zeros(len(Z))], 1).softmax(1)
    y = torch.cat([torch.nn.functional.one_hot(chances.multinomial(1, generator=DRAW)[:, 0], 3), chances[:, :2]], 1)
    y[:, 3:] /= y[:, 3:].sum(1, keepdim=True)
    mean = fit_mean(Z, y, (3, 2))
    assert (mean(Z)[:, :3] - chances).square().mean().sqrt() < 0.06
    far = mean(1e3 * Z)
    assert (far >= 0).all()
    torch.testing.assert_close(far[:, :3].sum(1), torch.ones(len(Z)))
    torch.testing.assert_close(far[:, 3:].sum(1), torch.ones(len(Z)))


def test_far_from_the_latents_it_is_bounded() -> None:
    mean = fit_mean(Z, known(Z))
    assert ((mean(1e6 * Z) - mean.means) / mean.spreads).abs().max() < 20


def test_what_does_not_vary_is_its_own_mean() -> None:
    mean = fit_mean(Z, torch.full((len(Z), 1), 0.2))
    torch.testing.assert_close(mean(Z), torch.full((len(Z), 1), 0.2))
    assert explained(Z, torch.zeros(len(Z))) == 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_explained_share_is_that_of_a_known_mixture(share: float) -> None:
    y = share**0.5 * Z[:, 0] + (1 - share) ** 0.5 * torch.randn(len(Z), generator=DRAW)
    assert explained(Z, y) == pytest.approx(share, abs=0.08)


def test_noise_explains_nothing() -> None:
    assert explained(Z[:64], torch.randn(64, generator=DRAW)) < 0.2


def test_the_same_seed_gives_the_same_mean() -> None:
    one, other = fit_mean(Z[:100], known(Z[:100]), seed=3), fit_mean(Z[:100], known(Z[:100]), seed=3)
    assert torch.equal(one(Z), other(Z))
