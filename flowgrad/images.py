"""Images of any mode of Pillow's as the 8-bit RGB that networks are shown."""

import numpy as np
from PIL import Image

TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB: transparency becomes white, 16 bits are scaled to 8.

    Raises ValueError for floating-point pixels, whose range is unknown.
    """
    if image.mode.startswith("I"):  # 16 bits, which convert() would clip rather than scale
        levels = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown: save it with 8 bits")
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
