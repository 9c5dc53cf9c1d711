"""E(G(x0)), and gradients of features, against autograd through the unrolled solver."""

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


def features(images):
    return torch.stack([images.flatten(1).mean(1), images[:, 0].square().flatten(1).mean(1)], 1)


def test_gradients_are_autograds(generator):
    x0 = generator.model.noise(3, seed=0)
    leaf = x0.clone().requires_grad_()
    zero = torch.zeros(3, 1, *x0.shape[1:])
    images = generator.model.decode(unrolled(generator.model.velocity, leaf, generator.grid, zero))
    torch.testing.assert_close(generator.energy(brightness, x0), brightness(images).detach())
    found = generator.gradients(features, x0)
    for k, values in enumerate(features(images).unbind(1)):
        (wanted,) = torch.autograd.grad(values.sum(), leaf, retain_graph=True)
        assert (found[:, k] - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_images_are_those_of_the_model(generator):
    from directions.apply.inversion import join, sample_images

    drawn = join(sample_images(generator.model, 3, 5, generator.grid))
    torch.testing.assert_close(generator.images(generator.model.noise(3, 5)), drawn.images)


def test_numbers_that_are_not_finite_are_an_error(generator):
    x0, infinite = generator.model.noise(2, 0), torch.tensor([0.0, torch.inf])
    with pytest.raises(FlowgradError, match="1 of 2 images"):
        generator.energy(lambda x: brightness(x) + infinite, x0)
    with pytest.raises(FlowgradError, match="1 of 2 images"):
        generator.gradients(lambda x: features(x) + infinite[:, None], x0)
