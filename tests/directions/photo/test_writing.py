"""Photos written again: what they keep of the files that they were read from."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from directions.photo import reading
from directions.photo.png16 import to_png
from directions.photo.reading import Photo, dots_per_inch, read_photo
from directions.photo.writing import save_image, save_photo
from flowgrad.errors import FlowgradError, UsageError
from tests.helpers.pictures import picture


def again(photo: Photo, path: Path) -> Photo:
    """A photo after it was written and read."""
    return read_photo(save_photo(photo.pixels, photo, path))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "I;16", "P", "1"])
def test_png_keeps_mode_profile_and_pixels(tmp_path: Path, mode: str) -> None:
    source = picture().convert("RGB").convert(mode) if mode in ("P", "1") else picture(mode)
    source.save(tmp_path / "photo.png", icc_profile=b"a profile")
    photo = read_photo(tmp_path / "photo.png")
    written = again(photo, tmp_path / "again.png")
    assert written.pixels.mode == {"P": "RGB", "1": "L"}.get(mode, mode) and written.icc == b"a profile"
    assert written.pixels.tobytes() == photo.pixels.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_png_of_16_bit_colours_keeps_every_bit_that_is_not_edited(tmp_path: Path, mode: str) -> None:
    upper = picture(mode)
    lower = Image.fromarray(np.random.default_rng(5).integers(0, 256, np.shape(upper), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    (tmp_path / "photo.png").write_bytes(to_png(upper, lower, b"a profile", exif.tobytes()))
    photo = read_photo(tmp_path / "photo.png")
    pixels, below = (image.transpose(Image.Transpose.ROTATE_270) for image in (upper, lower))
    assert photo.lower and photo.lower.tobytes() == below.tobytes()
    assert photo.pixels.tobytes() == pixels.tobytes() and photo.icc == b"a profile"
    pixels.paste(pixels.crop((0, 0, 20, 30)), (50, 60))
    written = read_photo(save_photo(pixels, photo, tmp_path / "again.png"))
    assert written.lower and written.lower.tobytes() == below.tobytes()
    assert written.pixels.tobytes() == pixels.tobytes() and written.icc == b"a profile"
    with Image.open(tmp_path / "again.png") as opened:
        assert dict(opened.getexif()) == {0x010F: "Camera"}


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_jpeg_keeps_mode_and_tables(tmp_path: Path, mode: str) -> None:
    picture(mode).save(tmp_path / "photo.jpg", quality=61, subsampling=2, icc_profile=b"inks")
    photo = read_photo(tmp_path / "photo.jpg")
    written = again(photo, tmp_path / "again.jpg")
    assert (written.pixels.mode, written.icc, written.jpeg) == (mode, b"inks", photo.jpeg)
    assert photo.jpeg["qtables"]


def test_exif_is_kept_without_orientation_and_thumbnail(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    exif.get_ifd(0x8825)[1] = "N"
    picture().save(tmp_path / "photo.jpg", exif=exif)
    photo = read_photo(tmp_path / "photo.jpg")
    assert photo.pixels.size == (120, 160)
    with Image.open(save_photo(photo.pixels, photo, tmp_path / "again.jpg")) as written:
        kept = written.getexif()
        assert written.size == (120, 160) and kept[0x010F] == "Camera" and 0x0112 not in kept
        assert kept.get_ifd(0x8825)[1] == "N" and not kept.get_ifd(1)


def raw_exif(*entries: tuple[int, int, bytes], within: int = 0) -> bytes:
    """EXIF of (tag, type, value of 4 bytes), in the directory of the tag `within` if one is named."""

    def directory(*entries: tuple[int, int, bytes]) -> bytes:
        packed = b"".join(struct.pack("<HHI", tag, kind, 1) + value.ljust(4, b"\0") for tag, kind, value in entries)
        return struct.pack("<H", len(entries)) + packed + bytes(4)

    head = b"Exif\0\0II*\0" + struct.pack("<I", 8)
    return head + (directory((within, 4, struct.pack("<I", 26))) if within else b"") + directory(*entries)


RATIONAL, UNDEFINED, SHORT = 5, 7, 3
NOTE, WIDTH, PLACE = 0x010E, 0x0100, 0x8825


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("tag", [(NOTE, RATIONAL, b"\x08"), (WIDTH, UNDEFINED, b"\5"), (NOTE, UNDEFINED, b"\5")])
def test_exif_that_cannot_be_written_is_left_out_alone(
    tmp_path: Path, orientation: int, tag: tuple[int, int, bytes]
) -> None:
    exif = raw_exif(tag, (0x0112, SHORT, bytes([orientation])), (0x011A, SHORT, b"\7"))
    picture().save(tmp_path / "photo.jpg", exif=exif)
    photo = read_photo(tmp_path / "photo.jpg")
    assert photo.pixels.size == ((120, 160) if orientation == 6 else (160, 120))
    with Image.open(save_photo(photo.pixels, photo, tmp_path / "again.jpg")) as written:
        assert written.getexif()[0x011A] == 7 and written.size == photo.pixels.size


def test_exif_within_exif_that_cannot_be_written_is_left_out_too(tmp_path: Path) -> None:
    exif = raw_exif((1, RATIONAL, b"\x08"), (30, SHORT, b"\7"), within=PLACE)  # 1: N or S, which is a text
    picture().save(tmp_path / "photo.jpg", exif=exif)
    photo = read_photo(tmp_path / "photo.jpg")
    with Image.open(save_photo(photo.pixels, photo, tmp_path / "again.jpg")) as written:
        assert written.getexif().get_ifd(PLACE) == {30: 7}


def test_formats_that_cannot_hold_a_mode_get_what_they_can(tmp_path: Path) -> None:
    picture("CMYK").save(tmp_path / "photo.tif", icc_profile=b"inks")
    photo = read_photo(tmp_path / "photo.tif")
    assert again(photo, tmp_path / "same.tiff").pixels.mode == "CMYK"
    png = again(photo, tmp_path / "other.png")
    assert (png.pixels.mode, png.icc) == ("RGB", b"")  # a profile of inks says nothing of RGB
    for mode, suffix, kept in (("RGBA", "jpg", "RGB"), ("LA", "webp", "RGBA")):
        path = save_photo(picture(mode), photo, tmp_path / f"clear.{suffix}")
        assert read_photo(path).pixels.mode == kept


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_dots_per_inch_and_xmp_are_kept(tmp_path: Path, suffix: str) -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" b="c"/></x:xmpmeta>'
    exif = raw_exif((0x0112, SHORT, b"\6"))
    picture().save(tmp_path / "photo.jpg", xmp=packet, dpi=(300, 150), exif=exif)
    photo = read_photo(tmp_path / "photo.jpg")
    with Image.open(save_photo(photo.pixels, photo, tmp_path / f"again{suffix}")) as written:
        assert written.info["xmp"] == packet.replace(b' tiff:Orientation="6"', b"")
        assert suffix == ".webp" or np.allclose(written.info["dpi"], (300, 150), atol=0.1)
        assert written.size == (120, 160) and 0x0112 not in written.getexif()
    same = read_photo(tmp_path / f"again{suffix}")
    assert same.xmp == photo.xmp == again(same, tmp_path / "b.tif").xmp


@pytest.mark.parametrize("dpi", [(float("nan"), 72), (1e9, 72), (0, 0), (1, 1), ("x", 72), (72,), None])
def test_dots_per_inch_that_make_no_sense_are_left_out(dpi: object) -> None:
    image = picture()
    image.info["dpi"] = dpi
    assert dots_per_inch(image) is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("animated", [False, True])
def test_a_webp_without_loss_stays_so(tmp_path: Path, mode: str, animated: bool) -> None:
    more = {"save_all": True, "append_images": [picture(mode).rotate(180)]} if animated else {}
    picture(mode).save(tmp_path / "photo.webp", lossless=True, exact=True, icc_profile=b"a profile", **more)
    photo = read_photo(tmp_path / "photo.webp")
    written = again(photo, tmp_path / "again.webp")
    assert written.lossless and written.pixels.tobytes() == photo.pixels.tobytes()
    picture(mode).save(tmp_path / "lossy.webp", quality=80, icc_profile=b"a profile", **more)
    assert not read_photo(tmp_path / "lossy.webp").lossless


@pytest.mark.parametrize("mode", ["P", "YCbCr", "LAB"])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_tiff_of_any_colours_is_written_as_what_it_looks_like(tmp_path: Path, mode: str, suffix: str) -> None:
    smooth = picture().resize((8, 8)).resize((160, 120), Image.Resampling.BICUBIC)
    source = Image.frombytes("LAB", smooth.size, smooth.tobytes()) if mode == "LAB" else smooth.convert(mode)
    source.save(tmp_path / "photo.tif", tiffinfo={271: "Camera"})
    photo = read_photo(tmp_path / "photo.tif")
    with Image.open(save_photo(photo.pixels, photo, tmp_path / f"again{suffix}")) as written:
        assert np.array_equal(np.asarray(written.convert("RGB")), np.asarray(photo.rgb))
        assert written.getexif()[271] == "Camera"


def plainly(image: Image.Image, path: Path, overwrite: bool = False) -> Path:
    return save_image(image, path, overwrite)


def like_a_photo(image: Image.Image, path: Path, overwrite: bool = False) -> Path:
    return save_photo(image, Photo(image), path, overwrite)


@pytest.mark.parametrize("save", [plainly, like_a_photo])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_saving(tmp_path: Path, save: Callable[..., Path], suffix: str) -> None:
    smooth = picture().resize((4, 3)).resize((40, 30), Image.Resampling.BICUBIC)
    path = save(smooth, tmp_path / f"out{suffix}")
    before = path.read_bytes()
    assert np.abs(np.asarray(read_photo(path).rgb, int) - np.asarray(smooth)).mean() < 3
    with pytest.raises(UsageError, match=r"exists already.*--overwrite"):
        save(smooth, path)
    assert path.read_bytes() == before
    save(smooth.resize((10, 10)), path, overwrite=True)
    assert read_photo(path).pixels.size == (10, 10) and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UsageError, match=r"does not say which kind of image.*\.png"):
        save(smooth, tmp_path / "out.xyz")


def test_heic_needs_its_extra_and_is_read_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(200))
    monkeypatch.setattr(reading, "_formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(FlowgradError, match=r"pip install 'flowgrad\[heic\]'"):
        read_photo(path)
    monkeypatch.undo()
    heif = pytest.importorskip("pillow_heif", reason="needs the extra `heic`")
    heif.register_heif_opener()
    picture().save(path, format="HEIF", quality=90)
    assert read_photo(path).pixels.size == (160, 120)
