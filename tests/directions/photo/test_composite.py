"""Edits put back into photos: what changes, what never does, and what a written photo keeps."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import directions.photo.composite as composite_module
import directions.photo.stored as picture_module
from directions.photo.composite import Patch, composite, mask, warp
from directions.photo.crop import Place
from directions.photo.png16 import to_png
from directions.photo.stored import read_picture, save_picture
from flowgrad.errors import FlowgradError, UsageError

SIZE = 16
TURNED = Place(((60.0, 20.0), (110.0, 40.0), (90.0, 90.0), (40.0, 70.0)), "face")


def photo(mode: str = "RGB", width: int = 160, height: int = 120) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode == "CMYK":
        return Image.frombytes("CMYK", (width, height), values.tobytes())
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.fromarray(np.ascontiguousarray(values[..., :channels].squeeze()))


def patch(place: Place = TURNED, value: float = 0.2) -> Patch:
    return Patch(np.full((SIZE, SIZE, 3), value, np.float32), place)


def whole(place: Place, image: Image.Image) -> np.ndarray:
    return mask(place, (0, 0, *image.size))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "CMYK", "I;16"])
def test_outside_the_mask_and_at_no_difference_every_byte_stays(mode: str) -> None:
    before = photo(mode)
    after = composite(before, [patch()])
    assert after.mode == before.mode and after.size == before.size
    outside = whole(TURNED, before) == 0
    assert 0.5 < outside.mean() < 0.95
    old, new = np.asarray(before), np.asarray(after)
    assert np.array_equal(old[outside], new[outside]) and not np.array_equal(old, new)
    assert composite(before, [patch(value=0.0)]).tobytes() == before.tobytes()
    assert composite(before, [patch(value=1e-6)]).tobytes() == before.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "CMYK", "I;16"])
def test_every_mode_gets_lighter_by_the_same_amount(mode: str) -> None:
    grey = {"RGB": (90,) * 3, "RGBA": (90, 90, 90, 7), "L": 90, "LA": (90, 7), "CMYK": (100, 100, 100, 60)}
    flat = Image.new(mode, (160, 120), grey.get(mode, 90 * 257))
    after = composite(flat, [patch(value=0.2)])
    before, changed = (each.convert("RGB") if mode != "I;16" else each for each in (flat, after))
    centre = (75, 55)
    step = np.subtract(changed.getpixel(centre), before.getpixel(centre)) / (257 if mode == "I;16" else 1)
    assert np.allclose(step, 0.2 * 127.5, atol=1.5)
    if mode in ("RGBA", "LA"):
        assert after.getchannel("A").getextrema() == (7, 7)
    if mode == "CMYK":
        assert after.getchannel("K").getextrema() == (60, 60)


def test_a_crop_of_the_photos_own_size_is_added_exactly() -> None:
    difference = np.random.default_rng(1).normal(0, 0.1, (SIZE, SIZE, 3)).astype(np.float32)
    place = Place.whole(SIZE, SIZE)
    assert np.array_equal(warp(Patch(difference, place), (0, 0, SIZE, SIZE)), difference)
    assert (mask(place, (0, 0, SIZE, SIZE)) == 1).all()


def test_a_spot_goes_where_the_alignment_took_it_from() -> None:
    difference = np.zeros((SIZE, SIZE, 3), np.float32)
    difference[4, 11] = 1.0  # row, column
    found = warp(Patch(difference, TURNED), (0, 0, 160, 120))[..., 0]
    y, x = np.unravel_index(found.argmax(), found.shape)
    origin, right, down = (np.array(TURNED.corners[i]) for i in (0, 1, 3))
    wanted = origin + (right - origin) * 11.5 / SIZE + (down - origin) * 4.5 / SIZE
    assert np.hypot(x + 0.5 - wanted[0], y + 0.5 - wanted[1]) < 1


def test_masks_fade_where_the_photo_goes_on() -> None:
    face = whole(TURNED, photo())
    assert face[55, 75] == 1 and face[25, 62] == 0 and 0 < np.abs(np.diff(face, axis=1)).max() < 0.2
    wide = whole(Place.centre(160, 120), photo())
    assert (wide[:, :20] == 0).all() and (wide[:, 80] == 1).all() and wide[0, 22] < 0.5
    tall = mask(Place.centre(120, 160), (0, 0, 120, 160))
    assert (tall[:20] == 0).all() and (tall[80] == 1).all()


def test_a_face_at_the_edge_of_the_photo_is_cut_off_there() -> None:
    place = Place(((-30.0, -20.0), (40.0, -20.0), (40.0, 50.0), (-30.0, 50.0)), "face")
    after = np.asarray(composite(photo(), [patch(place)]))
    assert not np.array_equal(after[:20, :20], np.asarray(photo())[:20, :20])
    outside = Place(((-90.0, 0.0), (-40.0, 0.0), (-40.0, 50.0), (-90.0, 50.0)), "face")
    assert composite(photo(), [patch(outside)]).tobytes() == photo().tobytes()


def test_faces_whose_masks_overlap_share_what_is_changed() -> None:
    flat = Image.new("RGB", (160, 120), (90, 90, 90))
    near = Place(tuple((x + 12, y + 4) for x, y in TURNED.corners), "face")
    both = np.asarray(composite(flat, [patch(), patch(near)])).astype(float)[..., 0] - 90
    one = np.asarray(composite(flat, [patch()])).astype(float)[..., 0] - 90
    assert both.max() <= one.max() + 1 and (whole(TURNED, flat) * whole(near, flat)).max() == 1
    alone = (whole(near, flat) == 0) & (whole(TURNED, flat) > 0)
    assert alone.any() and np.array_equal(both[alone], one[alone])
    empty = composite(flat, [patch(), patch(near, 0.0)])
    assert empty.tobytes() == composite(flat, [patch()]).tobytes()


def test_a_large_face_is_changed_in_bands_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    difference = np.random.default_rng(1).normal(0, 0.2, (SIZE, SIZE, 3)).astype(np.float32)
    at_once = np.asarray(composite(photo(), [Patch(difference, TURNED)])).astype(int)
    monkeypatch.setattr(composite_module, "_BAND_PIXELS", 500)
    banded = np.asarray(composite(photo(), [Patch(difference, TURNED)])).astype(int)
    assert np.abs(at_once - banded).max() <= 1 and (at_once != banded).mean() < 0.001


def test_a_small_face_gets_the_mean_of_what_changed() -> None:
    """Stripes of one pixel of the model's are nothing in a face a quarter of its size."""
    difference = np.zeros((SIZE, SIZE, 3), np.float32)
    difference[:, ::2], difference[:, 1::2] = 0.5, -0.5
    place = Place(((10.0, 10.0), (14.0, 10.0), (14.0, 14.0), (10.0, 14.0)), "none")
    assert np.abs(warp(Patch(difference, place), (10, 10, 14, 14))).max() < 0.1


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "I;16", "P", "1"])
def test_png_keeps_mode_profile_and_pixels(tmp_path: Path, mode: str) -> None:
    source = photo().convert("RGB").convert(mode) if mode in ("P", "1") else photo(mode)
    source.save(tmp_path / "photo.png", icc_profile=b"a profile")
    picture = read_picture(tmp_path / "photo.png")
    again = read_picture(save_picture(picture.pixels, picture, tmp_path / "again.png"))
    assert again.pixels.mode == {"P": "RGB", "1": "L"}.get(mode, mode) and again.icc == b"a profile"
    assert again.pixels.tobytes() == picture.pixels.tobytes()


def deep(mode: str) -> tuple[Image.Image, Image.Image]:
    """The upper and the lower 8 bits of a photo of 16."""
    lower = Image.fromarray(np.random.default_rng(5).integers(0, 256, np.shape(photo(mode)), dtype=np.uint8))
    return photo(mode), lower


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_png_of_16_bit_colours_keeps_every_bit_that_is_not_edited(tmp_path: Path, mode: str) -> None:
    upper, lower = deep(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photo.png").write_bytes(to_png(upper, lower, b"a profile", exif.tobytes()))
    picture = read_picture(tmp_path / "photo.png")
    assert picture.lower and picture.icc == b"a profile" and picture.pixels.size == (120, 160)
    turned = upper.transpose(Image.Transpose.ROTATE_270)
    assert picture.pixels.tobytes() == turned.tobytes()
    assert picture.lower.tobytes() == lower.transpose(Image.Transpose.ROTATE_270).tobytes()
    place = Place(TURNED.corners, "face")
    again = read_picture(save_picture(composite(turned, [patch(place)]), picture, tmp_path / "again.png"))
    outside = whole(place, turned) == 0
    assert again.lower and again.lower.tobytes() == picture.lower.tobytes()
    old, new = np.asarray(turned), np.asarray(again.pixels)
    assert np.array_equal(old[outside], new[outside]) and not np.array_equal(old, new)


def test_png_of_16_bits_is_what_other_readers_understand(tmp_path: Path) -> None:
    skimage = pytest.importorskip("skimage.io", reason="needs scikit-image")
    upper, lower = deep("RGB")
    (tmp_path / "photo.png").write_bytes(to_png(upper, lower))
    read = skimage.imread(tmp_path / "photo.png")
    if read.dtype == np.uint16:
        assert np.array_equal(read, np.asarray(upper).astype(np.uint16) * 256 + np.asarray(lower))
    else:
        assert np.array_equal(read, np.asarray(upper))


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_jpeg_keeps_mode_and_tables(tmp_path: Path, mode: str) -> None:
    photo(mode).save(tmp_path / "photo.jpg", quality=61, subsampling=2, icc_profile=b"inks")
    picture = read_picture(tmp_path / "photo.jpg")
    again = read_picture(save_picture(picture.pixels, picture, tmp_path / "again.jpg"))
    assert (again.pixels.mode, again.icc) == (mode, b"inks")
    assert again.jpeg["qtables"] == picture.jpeg["qtables"]
    assert again.jpeg.get("subsampling") == picture.jpeg.get("subsampling")


def test_exif_is_kept_without_orientation_and_thumbnail(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    exif.get_ifd(0x8825)[1] = "N"
    photo().save(tmp_path / "photo.jpg", exif=exif)
    picture = read_picture(tmp_path / "photo.jpg")
    assert picture.pixels.size == (120, 160)
    with Image.open(save_picture(picture.pixels, picture, tmp_path / "again.jpg")) as again:
        told = again.getexif()
        assert again.size == (120, 160) and told[0x010F] == "Camera" and 0x0112 not in told
        assert told.get_ifd(0x8825)[1] == "N" and not told.get_ifd(1)


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
    photo().save(tmp_path / "photo.jpg", exif=exif)
    picture = read_picture(tmp_path / "photo.jpg")
    assert picture.pixels.size == ((120, 160) if orientation == 6 else (160, 120))
    with Image.open(save_picture(picture.pixels, picture, tmp_path / "again.jpg")) as again:
        assert again.getexif()[0x011A] == 7 and again.size == picture.pixels.size


def test_exif_within_exif_that_cannot_be_written_is_left_out_too(tmp_path: Path) -> None:
    exif = raw_exif((1, RATIONAL, b"\x08"), (30, SHORT, b"\7"), within=PLACE)  # 1: N or S, which is a text
    photo().save(tmp_path / "photo.jpg", exif=exif)
    picture = read_picture(tmp_path / "photo.jpg")
    with Image.open(save_picture(picture.pixels, picture, tmp_path / "again.jpg")) as again:
        assert again.getexif().get_ifd(PLACE) == {30: 7}


def test_formats_that_cannot_hold_a_mode_get_what_they_can(tmp_path: Path) -> None:
    photo("CMYK").save(tmp_path / "photo.tif", icc_profile=b"inks")
    picture = read_picture(tmp_path / "photo.tif")
    assert read_picture(save_picture(picture.pixels, picture, tmp_path / "same.tiff")).pixels.mode == "CMYK"
    png = read_picture(save_picture(picture.pixels, picture, tmp_path / "other.png"))
    assert (png.pixels.mode, png.icc) == ("RGB", b"")  # a profile of inks says nothing of RGB
    clear = read_picture(save_picture(photo("RGBA"), picture, tmp_path / "clear.jpg"))
    assert clear.pixels.mode == "RGB"
    assert read_picture(save_picture(photo("LA"), picture, tmp_path / "x.webp")).pixels.mode == "RGBA"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_dots_per_inch_and_xmp_are_kept(tmp_path: Path, suffix: str) -> None:
    told = {"dpi": (300, 150), "exif": raw_exif((0x0112, SHORT, b"\6"))}
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" b="c"/></x:xmpmeta>'
    photo().save(tmp_path / "photo.jpg", xmp=packet, **told)
    picture = read_picture(tmp_path / "photo.jpg")
    with Image.open(save_picture(picture.pixels, picture, tmp_path / f"again{suffix}")) as again:
        assert again.info["xmp"] == packet.replace(b' tiff:Orientation="6"', b"")
        assert suffix == ".webp" or np.allclose(again.info["dpi"], (300, 150), atol=0.1)
        assert again.size == (120, 160) and 0x0112 not in again.getexif()
    same = read_picture(tmp_path / f"again{suffix}")
    assert same.xmp == picture.xmp and read_picture(save_picture(same.pixels, same, tmp_path / "b.tif")).xmp == same.xmp


@pytest.mark.parametrize("dpi", [(float("nan"), 72), (1e9, 72), (0, 0), (1, 1), ("x", 72), (72,), None])
def test_dots_per_inch_that_make_no_sense_are_left_out(tmp_path: Path, dpi: object) -> None:
    image = photo()
    image.info["dpi"] = dpi
    assert picture_module._dpi(image) is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("animated", [False, True])
def test_a_webp_without_loss_stays_so(tmp_path: Path, mode: str, animated: bool) -> None:
    more = {"save_all": True, "append_images": [photo(mode).rotate(180)]} if animated else {}
    photo(mode).save(tmp_path / "photo.webp", lossless=True, exact=True, icc_profile=b"a profile", **more)
    picture = read_picture(tmp_path / "photo.webp")
    again = read_picture(save_picture(picture.pixels, picture, tmp_path / "again.webp"))
    assert again.lossless and again.pixels.tobytes() == picture.pixels.tobytes()
    photo(mode).save(tmp_path / "lossy.webp", quality=80, icc_profile=b"a profile", **more)
    assert not read_picture(tmp_path / "lossy.webp").lossless


@pytest.mark.parametrize("mode", ["P", "YCbCr", "LAB"])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_tiff_of_any_colours_is_written_as_what_it_looks_like(tmp_path: Path, mode: str, suffix: str) -> None:
    smooth = photo().resize((8, 8)).resize((160, 120), Image.Resampling.BICUBIC)
    source = Image.frombytes("LAB", smooth.size, smooth.tobytes()) if mode == "LAB" else smooth.convert(mode)
    source.save(tmp_path / "photo.tif", tiffinfo={271: "Camera"})
    picture = read_picture(tmp_path / "photo.tif")
    with Image.open(save_picture(picture.pixels, picture, tmp_path / f"again{suffix}")) as again:
        difference = np.asarray(again.convert("RGB")).astype(int) - np.asarray(picture.rgb)
        assert not difference.any()
        assert again.getexif()[271] == "Camera"


def test_saving_refuses(tmp_path: Path) -> None:
    picture = read_picture_of(tmp_path)
    with pytest.raises(UsageError, match="which kind of image"):
        save_picture(photo(), picture, tmp_path / "photo.gif")
    with pytest.raises(UsageError, match="exists already"):
        save_picture(photo(), picture, tmp_path / "photo.png")
    with pytest.raises(FlowgradError, match="floating-point"):
        Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "deep.tiff")
        read_picture(tmp_path / "deep.tiff")
    with pytest.raises(FlowgradError, match="32-bit pixels, whose range is unknown"):
        Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "deeper.tiff")
        read_picture(tmp_path / "deeper.tiff")


def read_picture_of(folder: Path):
    photo().save(folder / "photo.png")
    return read_picture(folder / "photo.png")


def test_heic_needs_its_extra_and_is_read_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from directions.photo import reading as photos

    path = tmp_path / "photo.heic"
    path.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(200))
    monkeypatch.setattr(photos, "_formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(FlowgradError, match=r"pip install 'flowgrad\[heic\]'"):
        read_picture(path)
    monkeypatch.undo()
    heif = pytest.importorskip("pillow_heif", reason="needs the extra `heic`")
    heif.register_heif_opener()
    photo().save(path, format="HEIF", quality=90)
    assert read_picture(path).pixels.size == (160, 120)


# --- real faces -------------------------------------------------------------------------------------------------


def edited(path: Path, spec: str, folder: Path, *more: str) -> Image.Image:
    from typer.testing import CliRunner

    from cli import app

    arguments = ["apply-direction", spec, str(path), "--output", str(folder), "--bank", str(folder / "bank"), *more]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return Image.open(folder / path.name)


@pytest.mark.slow
def test_the_public_portrait_smiles_more_and_less(tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="needs the extra `faces`")
    data = pytest.importorskip("skimage.data", reason="needs scikit-image")
    from directions.photo.faces import cut_out, find_faces

    path, portrait = tmp_path / "astronaut.png", Image.fromarray(data.astronaut())
    portrait.save(path)
    _, place = cut_out(portrait, find_faces(portrait)[0])
    outside = whole(place, portrait) == 0
    old = np.asarray(portrait)
    for spec in ("smiling:1", "smiling:-0.7", "old:1", "old:-1"):
        new = np.asarray(edited(path, spec, tmp_path / spec.replace(":", "")))
        assert np.array_equal(old[outside], new[outside]), spec
        assert np.abs(old[~outside].astype(int) - new[~outside]).mean() > 2, spec
    edited(path, "smiling:0", tmp_path / "zero")
    assert (tmp_path / "zero" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_each_face_of_a_group_is_found_and_edited_alone(tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="needs the extra `faces`")
    from directions.apply.inversion import join, sample_images
    from directions.photo.faces import cut_out, find_faces
    from directions.photo.reading import to_images
    from flowgrad.models import load_model

    group = Image.new("RGB", (900, 400), (120, 130, 140))
    for i, sample in enumerate(to_images(join(sample_images(load_model(), 3, seed=41)).images)):
        group.paste(sample.resize((220, 220), Image.Resampling.LANCZOS), (40 + 290 * i, 60 + 40 * i))
    group.save(tmp_path / "group.png")
    faces = sorted(find_faces(group), key=lambda face: face.box[0])
    assert len(faces) == 3
    masks = [whole(cut_out(group, face)[1], group) > 0 for face in faces]
    old = np.asarray(group)
    for number in (None, 1, 2, 3):
        more = () if number is None else ("--face", str(number))
        new = np.asarray(edited(tmp_path / "group.png", "smiling:1", tmp_path / f"out-{number}", *more))
        changed = (old != new).any(-1)
        for i, inside in enumerate(masks, 1):
            assert changed[inside].any() == (number in (None, i)), (number, i)
        assert not changed[~np.any(masks, axis=0)].any()
