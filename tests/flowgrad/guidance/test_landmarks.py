"""Landmarks and the yaw that they tell: against a head of known shape, autograd, and dlib's landmarks."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from directions.photo.faces import available
from directions.photo.landmarks import aligned_landmarks
from directions.photo.reading import to_images
from flowgrad.errors import FlowgradError
from flowgrad.guidance.guide_files import SCALES_KEY, read_state
from flowgrad.guidance.landmarks import LEFT_EYE, NOSE, RIGHT_EYE, TURN, load_landmarks, yaw
from flowgrad.training.data.images import read_images, to_model_range
from flowgrad.training.guide.labels import read_table


def head(degrees, roll=0.0):
    """Landmarks (68, 2) of a head, seen from afar: eyes a distance of TURN apart, and the nose 1 in front of them."""
    a, b = math.radians(degrees), math.radians(roll)
    points = torch.zeros(68, 3, dtype=torch.float64)
    points[LEFT_EYE, 0], points[RIGHT_EYE, 0] = -TURN / 2, TURN / 2
    points[NOSE] = torch.tensor([0.0, 0.7, 1.0], dtype=torch.float64)
    x = points[:, 0] * math.cos(a) + points[:, 2] * math.sin(a)
    y = points[:, 1]
    return torch.stack([x * math.cos(b) - y * math.sin(b), x * math.sin(b) + y * math.cos(b)], 1)


@pytest.mark.parametrize("degrees", [-60.0, -5.0, 0.0, 20.0])
def test_the_yaw_of_a_head_of_known_shape_is_found(degrees):
    assert float(yaw(head(degrees)[None])) == pytest.approx(degrees, abs=1e-9)
    scaled = 0.1 * head(degrees) + 0.4
    assert float(yaw(scaled[None])) == pytest.approx(degrees, abs=1e-9)


def test_the_yaw_of_a_frontal_face_does_not_depend_on_its_roll_along_the_nose():
    points = head(0.0, roll=10.0)
    assert float(yaw(points[None])) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.skipif(not available(), reason="needs the extra `faces`")
def test_landmarks_are_near_dlibs_and_yaws_too(shared):
    table = read_table(shared / "faces" / "labels.csv")
    names = [row["file"] for row in table if row["split"] == "test"][:48]
    pixels = torch.stack(list(read_images(shared / "faces" / "utkface_aligned.zip", names, 200)))
    theirs = torch.tensor(np.array([aligned_landmarks(image) for image in to_images(to_model_range(pixels))]))
    faces, eyes = to_model_range(pixels), theirs[:, RIGHT_EYE].mean(1) - theirs[:, LEFT_EYE].mean(1)
    errors = (load_landmarks()(faces) - theirs).norm(dim=2).mean(1) / eyes.norm(dim=1)
    assert errors.median() < 0.09  # of the distance between the eyes: 0.069 on all 593 test photos
    off = load_landmarks().yaw(faces) - yaw(theirs)
    assert off.abs().median() < 3  # degrees: 1.9 on all test photos


def test_landmarks_are_differentiable():
    network = copy.deepcopy(load_landmarks()).double()
    image = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tanh()
    image.requires_grad_()
    (gradient,) = torch.autograd.grad(yaw(network.of_inputs(image)).sum(), image)
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        h = 1e-6
        ends = [yaw(network.of_inputs(image + s * h * direction)) for s in (1, -1)]
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-4)


def test_batches_are_as_one_by_one():
    network = load_landmarks()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(network(images), torch.cat([network(image[None]) for image in images]))


def test_faces_that_are_not_square_are_refused():
    with pytest.raises(FlowgradError, match="100 x 80"):
        load_landmarks()(torch.zeros(1, 3, 80, 100))


def test_whole_numbers_with_scales_come_back_as_what_they_stand_for(tmp_path):
    whole, plain = torch.arange(256, dtype=torch.uint8), torch.ones(2)
    scales = json.dumps({"whole": [0.5, -3.0]})
    save_file({"whole": whole, "plain": plain}, tmp_path / "some.safetensors", {SCALES_KEY: scales})
    state, _ = read_state(tmp_path / "some.safetensors")
    assert torch.equal(state["whole"], whole * 0.5 - 3.0) and torch.equal(state["plain"], plain)


@pytest.mark.parametrize("scales", ["[", "[1]", '{"other": [1, 2]}', '{"whole": [1]}', '{"whole": ["a", "b"]}'])
def test_scales_that_are_none_are_an_error(tmp_path, scales):
    save_file({"whole": torch.zeros(2, dtype=torch.uint8)}, tmp_path / "some.safetensors", {SCALES_KEY: scales})
    with pytest.raises(FlowgradError, match=r"some\.safetensors is damaged"):
        read_state(tmp_path / "some.safetensors")
