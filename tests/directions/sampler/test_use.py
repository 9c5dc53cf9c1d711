"""Terms of a sampler's file as energies."""

import os

import pytest
import torch

from directions.apply.identity import descriptors, has_faces
from directions.file.sampler import SamplerInfo
from directions.file.terms import Term
from directions.sampler.use import energy_of, to_energy
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


@pytest.mark.skipif(not has_faces(), reason="needs the extra `faces`")
def test_a_descriptor_of_another_length_is_refused(model):
    with pytest.raises(FlowgradError, match="has 128 numbers, and the sampler gives 2"):
        to_energy((Term("identity", descriptor=(0.1, 0.2)),), None, None, model)


def test_what_a_file_calls_its_classifier_is_never_opened(model, tmp_path):
    os.mkfifo(pipe := tmp_path / "classifier.safetensors")  # whoever opens it waits for ever
    info = SamplerInfo(
        title="hostile",
        model="tiny",
        fingerprint=model.fingerprint,
        steps=6,
        starts=(0,),
        terms=(Term("class", answers=("happy",)),),
        questions={"expression": {"happy": "a smiling face", "neutral": "a serious face"}},
        classifier=str(pipe),
        classifier_fingerprint="0123456789abcdef",
    )
    with pytest.raises(FlowgradError, match=r"asks the classifier .*classifier\.safetensors .* and tiny has none"):
        energy_of(info, None, model)
