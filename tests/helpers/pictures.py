"""Pictures to test with."""

import struct
import zlib

import numpy as np
from PIL import Image


def picture(mode: str = "RGB", width: int = 160, height: int = 120) -> Image.Image:
    """Random pixels of a mode."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode == "CMYK":
        return Image.frombytes("CMYK", (width, height), values.tobytes())
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.fromarray(np.ascontiguousarray(values[..., :channels].squeeze()))


def bomb(side: int = 50_000) -> bytes:
    """A PNG that claims side x side pixels and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
