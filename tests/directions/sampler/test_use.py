"""Terms of a sampler's file as energies."""

import pytest
import torch

from directions.apply.identity import descriptors, has_faces
from directions.file.terms import Term
from directions.sampler.use import to_energy
from flowgrad.errors import FlowgradError
from flowgrad.models import load_model


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(str(tiny.model), "cpu", "fp32")


@pytest.mark.skipif(not has_faces(), reason="needs the extra `faces`")
def test_identity_is_lowest_for_the_photo_that_it_was_taken_from(model):
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    term = Term("identity", 2.0, descriptor=tuple(descriptors(images)[1].tolist()))
    energies = to_energy((term,), None, None, model)(images)
    assert energies.argmin() == 1 and float(energies[1]) < 1e-4


@pytest.mark.parametrize("term", [Term("text", text="a", source="b"), Term("class", answers=("happy",))])
def test_an_energy_without_its_guide_is_an_error(model, term):
    with pytest.raises(FlowgradError, match="needs a guide"):
        to_energy((term,), None, None, model)
