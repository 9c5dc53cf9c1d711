"""Identity by dlib: here and in processes of their own."""

import io
import multiprocessing
import os
import signal
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from directions.apply import identity
from directions.apply.identity import SAME_PERSON, distances, identity_descriptors, identity_distance
from directions.photo import faces
from directions.photo.reading import to_tensor
from flowgrad.errors import FlowgradError
from tests.helpers.paths import SHARED

FACES = SHARED / "faces" / "utkface_aligned.zip"
pytestmark = pytest.mark.skipif(not faces.available(), reason="the extra `faces` is not installed")


def chips(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)


@pytest.mark.skipif(not FACES.exists(), reason="the shared photos of faces are not here")
def test_identity_tells_people_apart() -> None:
    with zipfile.ZipFile(FACES) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][100:102]
        people = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
    small = [person.resize((64, 64), Image.Resampling.LANCZOS) for person in people]
    large, lowered = identity_descriptors(people), identity_descriptors(small)
    assert large.shape == (2, 128) and (identity_distance(large, lowered) < SAME_PERSON).all()
    assert identity_distance(large[0], large[1]) > identity_distance(large[0], lowered[0])
    assert np.allclose(distances(to_tensor(small[:1]), to_tensor(small[:1])), 0, atol=1e-6)


def test_an_aligned_face_is_square() -> None:
    with pytest.raises(FlowgradError, match="square, not 40 x 30"):
        identity_descriptors([Image.new("RGB", (40, 30))])


def test_many_faces_are_described_as_one_by_one(two_cores: None) -> None:
    """By several processes, unless another thread than the main one asks."""
    many = chips(2 * identity._BATCH + 1)
    with ThreadPoolExecutor(1) as thread:
        alone = thread.submit(identity_descriptors, many).result()
    assert np.array_equal(identity_descriptors(many), alone)
    assert np.array_equal(np.concatenate([identity_descriptors([chip]) for chip in many[:3]]), alone[:3])


def _is_here(batch: list[np.ndarray]) -> np.ndarray:
    return np.full((len(batch), 128), float(multiprocessing.parent_process() is None))


def _dies_in_a_child(batch: list[np.ndarray]) -> np.ndarray:
    if multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does to a process that takes too much memory
    return np.ones((len(batch), 128))


def _ignores_interrupts(batch: list[np.ndarray]) -> np.ndarray:
    return np.full((len(batch), 128), float(signal.getsignal(signal.SIGINT) is signal.SIG_IGN))


@pytest.mark.parametrize(
    ("describe", "daemon"),
    [
        (_is_here, True),  # a worker of multiprocessing.Pool may start no process
        (_dies_in_a_child, False),  # a process that is killed leaves the work to this one
        (_ignores_interrupts, False),  # Ctrl-C reaches the processes too: they print nothing of it
    ],
)
def test_processes_that_describe_faces(
    describe: object, daemon: bool, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_describe", describe)
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", daemon)
    assert identity_descriptors(chips(identity._BATCH + 1)).all()
