"""Who a face is: dlib's network in torch against dlib itself, and against finite differences."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from directions.apply.identity import SAME_PERSON, descriptors, distances
from directions.photo import faces
from directions.photo.reading import to_tensor
from flowgrad.errors import FlowgradError
from flowgrad.guidance.recognizer import INPUT, load_recognizer, read_recognizer
from flowgrad.training.data.images import read_images, to_model_range

pytestmark = pytest.mark.skipif(not faces.available(), reason="the extra `faces` is not installed")


def people(shared: Path, size: int = 200) -> torch.Tensor:
    """Two people's photos, (2, 3, size, size) in [-1, 1]."""
    names = ["00101.jpg", "00102.jpg"]
    return to_model_range(torch.stack(list(read_images(shared / "faces" / "utkface_aligned.zip", names, size))))


def test_descriptors_are_those_of_dlib() -> None:
    import dlib
    import face_recognition_models

    own = dlib.face_recognition_model_v1(face_recognition_models.face_recognition_model_location())
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(3)]
    chips = [np.asarray(image.resize((INPUT, INPUT), Image.Resampling.BICUBIC)) for image in small]
    expected = np.array(own.compute_face_descriptor(chips))
    mine = load_recognizer(0.2).of_chips(torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2).float())
    assert np.abs(mine.numpy() - expected).max() < 1e-5


def test_identity_tells_people_apart(shared: Path) -> None:
    large, small = descriptors(people(shared)), descriptors(people(shared, 64))
    assert large.shape == (2, 128) and (distances(large, small) < SAME_PERSON).all()
    assert distances(large[0], large[1]) > distances(large[0], small[0])
    assert float(distances(small, small).max()) == 0


def test_many_faces_are_described_as_one_by_one() -> None:
    noise = torch.rand(40, 3, 8, 8) * 2 - 1
    alone = torch.cat([descriptors(face[None]) for face in noise])
    assert torch.allclose(descriptors(noise), alone, atol=1e-5)


def test_gradients_agree_with_finite_differences() -> None:
    network = copy.deepcopy(load_recognizer(0.2)).double()
    draws = torch.Generator().manual_seed(0)
    chip = (255 * torch.rand(1, 3, INPUT, INPUT, generator=draws, dtype=torch.float64)).requires_grad_()
    way = torch.randn(chip.shape, generator=draws, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(network.of_chips(chip).square().sum(), chip)
    step = 1e-4
    after, before = (network.of_chips((chip + s * way).detach()).square().sum() for s in (step, -step))
    assert float((gradient * way).sum()) == pytest.approx(float(after - before) / (2 * step), rel=1e-2)


def test_an_aligned_face_is_square() -> None:
    with pytest.raises(FlowgradError, match="square, not 40 x 30"):
        descriptors(to_tensor([Image.new("RGB", (40, 30))]))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dlib.dat").write_bytes(b"\x01\x02" * 1000)
    with pytest.raises(FlowgradError, match=r"dlib\.dat is not dlib's recognition network"):
        read_recognizer(tmp_path / "dlib.dat", 0.2)
