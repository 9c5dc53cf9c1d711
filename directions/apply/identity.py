"""Whether two faces are the same person: dlib's 128-d descriptor of aligned photos. Needs the extra `faces`."""

import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from functools import lru_cache
from multiprocessing import current_process
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from directions.photo.beside import forked
from directions.photo.faces import CHIP_PADDING, available, require
from directions.photo.reading import to_images
from flowgrad.errors import FlowgradError

if TYPE_CHECKING:
    import torch

SAME_PERSON = 0.6  # dlib's own threshold on the distance of two descriptors

# The network wants chips of 150 pixels with a padding of 0.25; ours have 0.2. The same face is then 100 pixels wide
# in both, and the photo is the inner 140: no detector or landmark can fail, or move, when a face was edited.
# Measured on 24 UTKFace test photos: 200 against 64 pixels 0.05 (median; at most 0.12), against a chip by detected
# landmarks 0.12 (0.18), against the mirrored photo 0.18 (0.28); two people 0.85, one pair in a hundred below 0.6.
_INPUT_SIDE, _INPUT_PADDING = 150, 0.25
_INNER_SIDE = round(_INPUT_SIDE * (1 + 2 * CHIP_PADDING) / (1 + 2 * _INPUT_PADDING))
_BATCH = 8


def has_faces() -> bool:
    """Return whether the extra `faces` is installed, so that identity can be measured."""
    return available()


def distances(before: "torch.Tensor", after: "torch.Tensor") -> np.ndarray:
    """Return the descriptor distances (B,) of two batches (B, 3, S, S) in [-1, 1], pair by pair."""
    both = identity_descriptors(to_images(before) + to_images(after))
    return identity_distance(both[: len(before)], both[len(before) :])


def identity_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the distances (n,) between descriptors (n, 128), pair by pair."""
    return np.linalg.norm(a - b, axis=-1)


def identity_descriptors(images: Sequence[Image.Image]) -> np.ndarray:
    """Return the descriptors (n, 128) of aligned faces: RGB images, square, of any size.

    Raises FlowgradError without the extra `faces`, or for an image that is not square.
    """
    require()
    chips = [_to_chip(image) for image in images]
    batches = [chips[i : i + _BATCH] for i in range(0, len(chips), _BATCH)]
    return np.array(_described(batches), dtype=np.float64).reshape(len(chips), 128)


def _described(batches: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Describe batches of chips, on all cores where that is safe."""
    workers = min(len(batches), _most_workers())
    if workers > 1:
        _network()  # which the processes share
        with suppress(BrokenExecutor), forked(workers) as pool:  # one that is killed leaves the work to this process
            return [row for rows in pool.map(_describe, batches) for row in rows]
    return [row for batch in batches for row in _describe(batch)]


def _most_workers() -> int:
    """How many processes may describe faces: as many as there are cores, or this one alone where it must not fork.

    Another thread than the main one is one of many, as those of the page are: a lock that another thread holds would
    stay locked in the child. A worker of multiprocessing.Pool may start no process, and CUDA does not survive a fork.
    """
    import dlib

    main = threading.current_thread() is threading.main_thread()
    safe = sys.platform == "linux" and main and not current_process().daemon and not dlib.DLIB_USE_CUDA
    return len(os.sched_getaffinity(0)) if safe else 1


def _describe(chips: Sequence[np.ndarray]) -> np.ndarray:
    return np.array(_network().compute_face_descriptor(list(chips)))


@lru_cache(maxsize=1)
def _network() -> Any:
    import dlib
    import face_recognition_models

    return dlib.face_recognition_model_v1(face_recognition_models.face_recognition_model_location())


def _to_chip(image: Image.Image) -> np.ndarray:
    """Return an aligned photo as the network wants it: (150, 150, 3) uint8, its edge repeated outwards."""
    if image.width != image.height:
        raise FlowgradError(f"an aligned face is square, not {image.width} x {image.height}. Prepare it first.")
    inner = np.asarray(image.resize((_INNER_SIDE, _INNER_SIDE), Image.Resampling.BICUBIC))
    before = (_INPUT_SIDE - _INNER_SIDE) // 2
    after = _INPUT_SIDE - _INNER_SIDE - before
    return np.pad(inner, ((before, after), (before, after), (0, 0)), mode="edge")
