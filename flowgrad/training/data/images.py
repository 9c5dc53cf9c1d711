"""Images that a table names, as small uint8 tensors: read as all pictures are, but none may be missing."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError
from flowgrad.training.data.pictures import UnusableImageError, find_source, list_images, read_bytes, to_square

_THREADS = 2
_CHUNK = 256  # images read ahead of the caller


def read_images(source: str | Path, names: Sequence[str], resolution: int) -> Iterator[Tensor]:
    """Yield the named images of a source in order, each (3, resolution, resolution) uint8; see `to_square`.

    Smaller ones are enlarged. Raises UsageError for a source that is not there or of no known kind, FlowgradError if it
    lacks an image or that is damaged.
    """
    entries = {PurePosixPath(name): read for name, read in list_images(find_source(source))}  # without a leading "./"

    def data_of(name: str) -> bytes:
        read = entries.get(PurePosixPath(name))
        if read is None:
            raise FlowgradError(f"the table names {name!r}, which {source} does not hold: correct either.")
        try:
            return read_bytes(read)
        except UnusableImageError as error:
            raise _unusable(name, error) from error

    def decode(name: str, data: bytes) -> Tensor:
        try:
            return torch.from_numpy(to_square(data, resolution, enlarge=True).copy()).permute(2, 0, 1)
        except UnusableImageError as error:
            raise _unusable(name, error) from error

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            yield from pool.map(decode, chunk, map(data_of, chunk))  # read here: archives have one position in a file


def to_model_range(images: Tensor) -> Tensor:
    """Turn uint8 images into float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def _unusable(name: str, error: UnusableImageError) -> FlowgradError:
    return FlowgradError(f"{name} is no usable image ({error}): remove its row or replace the file.")
