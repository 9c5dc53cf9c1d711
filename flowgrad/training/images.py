"""Images for training, from a folder or a zip archive, as small uint8 tensors."""

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from flowgrad.errors import FlowgradError

_THREADS = 2
_CHUNK = 256  # images decoded ahead of the caller


def read_images(source: Path, names: Sequence[str], resolution: int) -> Iterator[Tensor]:
    """Yield the named images in order, each (3, resolution, resolution) uint8, cropped to the central square.

    Raises FlowgradError if the source is missing or an image is missing or damaged.
    """
    read = _reader(Path(source))

    def decoded(name: str) -> Tensor:
        return _decode(read(name), name, resolution)

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(names), _CHUNK):
            yield from pool.map(decoded, names[start : start + _CHUNK])


def to_model_range(images: Tensor) -> Tensor:
    """Turn uint8 images into float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def _reader(source: Path) -> Callable[[str], bytes]:
    if source.is_dir():
        return lambda name: _read_file(source / name)
    try:
        archive = zipfile.ZipFile(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise FlowgradError(f"{source} is neither a folder nor a readable zip ({error}): give one of them.") from error
    return lambda name: _read_member(archive, name)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FlowgradError(
            f"the table names {path}, which cannot be read ({error.strerror}): correct either."
        ) from error


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise FlowgradError(f"the table names {name!r}, which {archive.filename} does not hold intact.") from error


def _decode(data: bytes, name: str, resolution: int) -> Tensor:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise FlowgradError(f"{name} is not a readable image ({error}): remove its row or replace the file.") from error
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    small = image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)
