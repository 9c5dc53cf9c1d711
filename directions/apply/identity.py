"""Whether two faces are the same person: dlib's 128-d descriptor of aligned photos. Needs the extra `faces`."""

import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import suppress
from functools import lru_cache
from multiprocessing import current_process, get_context
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from directions.photo.faces import CHIP_PADDING, available, require
from directions.photo.reading import ignore_interrupts, to_images
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


def identity_descriptors(images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
    """Return the descriptors (n, 128) of aligned faces: RGB images, or uint8 arrays (S, S, 3), square, of any size.

    Raises FlowgradError without the extra `faces`, or for an image that is not square.
    """
    require()
    chips = [_to_chip(image) for image in images]
    batches = [chips[i : i + _BATCH] for i in range(0, len(chips), _BATCH)]
    described = [row for rows in _each(batches) for row in rows]
    return np.array(described, dtype=np.float64).reshape(len(chips), 128)


def _each(batches: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Describe batches of chips, on all cores where that is safe: dlib's network uses one, and holds Python's lock."""
    workers = min(len(batches), _cores())
    if workers > 1 and _can_fork():
        _network()  # which the processes share
        # A process that is killed, for its memory most likely, leaves the work to this one, which takes less.
        with (
            suppress(BrokenExecutor),
            ProcessPoolExecutor(workers, get_context("fork"), initializer=ignore_interrupts) as pool,
        ):
            return list(pool.map(_describe, batches))
    return [_describe(batch) for batch in batches]


def _can_fork() -> bool:
    """Whether to describe faces in processes of their own."""
    import dlib

    # A thread of the page's is one of many, and a lock that another holds would stay locked in the child. Only that
    # this is the main thread is checked, not that it is the only one.
    main = threading.current_thread() is threading.main_thread()
    may_start = not current_process().daemon  # a worker of multiprocessing.Pool may start none
    return sys.platform == "linux" and main and may_start and not dlib.DLIB_USE_CUDA


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe(chips: Sequence[np.ndarray]) -> np.ndarray:
    return np.array(_network().compute_face_descriptor(list(chips)))


def identity_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the distances (n,) between descriptors (n, 128), pair by pair."""
    return np.linalg.norm(a - b, axis=-1)


@lru_cache(maxsize=1)
def _network() -> Any:
    import dlib
    import face_recognition_models

    return dlib.face_recognition_model_v1(face_recognition_models.face_recognition_model_location())


def _to_chip(image: Image.Image | np.ndarray) -> np.ndarray:
    """Return an aligned photo as the network wants it: (150, 150, 3) uint8, its edge repeated outwards."""
    picture = image.convert("RGB") if isinstance(image, Image.Image) else Image.fromarray(image)
    if picture.width != picture.height:
        raise FlowgradError(f"an aligned face is square, not {picture.width} x {picture.height}. Prepare it first.")
    inner = np.asarray(picture.resize((_INNER_SIDE, _INNER_SIDE), Image.Resampling.BICUBIC))
    before = (_INPUT_SIDE - _INNER_SIDE) // 2
    after = _INPUT_SIDE - _INNER_SIDE - before
    return np.pad(inner, ((before, after), (before, after), (0, 0)), mode="edge")
