"""E(G(x0)) and its gradient, against autograd through the unrolled solver."""

import pytest
import torch

from flowgrad.errors import FlowgradError
from flowgrad.ode import Grid
from flowgrad.sampling.latent import Generator
from tests.flowgrad.test_adjoint import unrolled


def brightness(images):
    return (images.flatten(1).mean(1) - 0.3).square()


@pytest.fixture
def generator(tiny):
    from flowgrad.models import load_model

    model = load_model(str(tiny.model), "cpu", "fp32")
    return Generator(model, Grid.uniform(model.config.steps, 3))


def test_the_gradient_is_autograds(generator):
    x0 = generator.model.noise(3, seed=0)
    values, gradient = generator.gradient(brightness, x0)
    leaf = x0.clone().requires_grad_()
    zero = torch.zeros(3, 1, *x0.shape[1:])
    expected = brightness(generator.model.decode(unrolled(generator.model.velocity, leaf, generator.grid, zero)))
    torch.testing.assert_close(values, expected.detach())
    torch.testing.assert_close(values, generator.energy(brightness, x0))
    (wanted,) = torch.autograd.grad(expected.sum(), leaf)
    assert (gradient - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_images_are_those_of_the_model(generator):
    from directions.apply.inversion import join, sample_images

    drawn = join(sample_images(generator.model, 3, 5, generator.grid))
    torch.testing.assert_close(generator.images(generator.model.noise(3, 5)), drawn.images)


@pytest.mark.parametrize("method", ["energy", "gradient"])
def test_an_energy_that_is_not_finite_is_an_error(generator, method):
    with pytest.raises(FlowgradError, match="1 of 2 images"):
        getattr(generator, method)(
            lambda x: brightness(x) + torch.tensor([0.0, torch.inf]), generator.model.noise(2, 0)
        )
