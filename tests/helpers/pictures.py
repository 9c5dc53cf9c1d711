"""Pictures to test with."""

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
