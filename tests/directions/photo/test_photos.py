"""Reading, preparing and saving photos; faces and identity where dlib and the shared photos are there."""

import io
import math
import os
import signal
import socket
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import pytest
from PIL import Image, ImageFile, features

from directions.photo import faces
from directions.photo.beside import Beside, ahead
from directions.photo.detection import find_faces
from directions.photo.faces import Faces, prepare, prepare_faces
from directions.photo.reading import PIXEL_LIMIT, read_photo, to_images, to_tensor
from directions.photo.sources import find_sources
from flowgrad.errors import FlowgradError, UsageError
from tests.helpers.paths import ROOT, SHARED
from tests.helpers.pictures import bomb

FACES = SHARED / "faces" / "utkface_aligned.zip"


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 0 * x + 99], -1).astype(np.uint8))


def rgb(path: Path) -> Image.Image:
    return read_photo(path).rgb


def apart(a: Image.Image, b: Image.Image) -> float:
    """Mean difference of two images in grey levels."""
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


# --- finding ----------------------------------------------------------------------------------------------------


def find_photos(paths: list[Path]) -> list[Path]:
    return [Path(source.at) for source in find_sources(map(str, paths))]


def test_find_photos_in_folders_and_files(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    expected = [tmp_path / name for name in ("a.JPG", "b.png", "c.webp")]
    assert find_photos([tmp_path]) == expected
    assert find_photos([tmp_path / "b.png", tmp_path]) == [expected[1], expected[0], expected[2]]
    assert find_photos([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]


def test_find_photos_refuses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.png does not exist"):
        find_photos([tmp_path / "none.png"])
    with pytest.raises(UsageError, match="holds no image"):
        find_photos([tmp_path])
    with pytest.raises(UsageError, match="no photo was named"):
        find_photos([])


# --- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "1", "RGBA", "LA"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.tiff"
    source = gradient().convert("RGB").convert(mode)
    source.save(path)
    photo = rgb(path)
    assert photo.mode == "RGB" and photo.size == (40, 30)
    assert apart(photo, source.convert("RGB")) < 1


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    photo = np.asarray(rgb(tmp_path / "deep.png"))
    assert np.abs(photo[..., 0].astype(int) - values // 257).max() <= 1


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "floating-point"), (np.int32, "32-bit")])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, dtype: type, kind: str) -> None:
    Image.fromarray(np.full((4, 4), 70_000, dtype)).save(tmp_path / "x.tiff")
    with pytest.raises(FlowgradError, match=f"{kind} pixels, whose range is unknown"):
        read_photo(tmp_path / "x.tiff")


def test_transparency_becomes_white(tmp_path: Path) -> None:
    image = gradient().convert("RGBA")
    image.putalpha(0)
    image.save(tmp_path / "clear.png")
    assert np.asarray(rgb(tmp_path / "clear.png")).min() == 255
    palette = gradient().quantize(8)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert (np.asarray(rgb(tmp_path / "palette.png"))[np.asarray(palette) == 0] == 255).all()


@pytest.mark.parametrize(("orientation", "turn"), [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270)])
def test_exif_rotation(tmp_path: Path, orientation: int, turn: Image.Transpose) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    gradient().save(tmp_path / "turned.png", exif=exif)
    assert apart(rgb(tmp_path / "turned.png"), gradient().transpose(turn)) == 0


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tiff"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"half.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(FlowgradError, match=rf"half.{suffix} is (a damaged or truncated|not an) image"):
        read_photo(path)


def test_random_damage_never_escapes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for suffix in ("jpg", "png", "webp", "tiff", "gif", "bmp"):
        path = tmp_path / f"x.{suffix}"
        gradient().save(path)
        raw = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(raw)
            for place in random.integers(0, len(raw), 4):
                damaged[place] = random.integers(256)
            path.write_bytes(damaged)
            try:
                read_photo(path)
            except FlowgradError as error:
                assert str(path) in str(error)


@pytest.mark.parametrize("kind", [AssertionError, zlib.error, RuntimeError, KeyError])
def test_whatever_a_decoder_raises_is_the_photos_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    class Broken(ImageFile.ImageFile):
        format = "BMP"

        def _open(self) -> None:
            self._size, self._mode = (4, 4), "RGB"

        def load(self) -> NoReturn:
            raise kind("wrong inside")

    gradient().save(tmp_path / "x.bmp")
    monkeypatch.setitem(Image.OPEN, "BMP", (Broken, None))
    with pytest.raises(FlowgradError, match=r"x.bmp is a damaged or truncated image \(.*wrong inside"):
        read_photo(tmp_path / "x.bmp")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_avif_is_refused(tmp_path: Path) -> None:
    """Pillow raises a RuntimeError for some."""
    path, draw, kinds = tmp_path / "x.avif", np.random.default_rng(0), set()
    gradient().save(path)
    raw = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(raw)
        damaged[draw.integers(len(raw))] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            read_photo(path)
        except FlowgradError as error:
            assert str(path) in str(error)
            kinds.add(type(error.__cause__))
    assert RuntimeError in kinds


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x00" * 100])
def test_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "drawing.jpg"
    path.write_bytes(content)
    with pytest.raises(FlowgradError, match=r"drawing.jpg is not an image of a kind.*Convert it to JPEG or PNG"):
        read_photo(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FlowgradError, match=r"cannot read .*none.png: No such file"):
        read_photo(tmp_path / "none.png")
    with pytest.raises(FlowgradError, match="cannot read"):
        read_photo(tmp_path)


@pytest.mark.parametrize("side", [math.isqrt(PIXEL_LIMIT) + 1, 50_000])
def test_decompression_bomb(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(side))
    with pytest.raises(FlowgradError, match=r"bomb.png has too many pixels.*Scale it down"):
        read_photo(tmp_path / "bomb.png")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    for path, kind in (
        (tmp_path / "pipe.jpg", "a pipe"),
        (tmp_path / "socket.png", "a socket"),
        ("/dev/zero", "a dev"),
    ):
        for refuse in (read_photo, lambda path: find_photos([path])):
            with pytest.raises(UsageError, match=rf"is {kind}.*not a file"):
                refuse(Path(path))
    with pytest.raises(UsageError, match="holds no image"):
        find_photos([tmp_path])


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_the_scale_that_is_enough(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, turned = tmp_path / "large.jpg", orientation == 6
    gradient(803, 401).save(path, exif=exif)
    for enough, (long, short) in ((803, (803, 401)), (402, (803, 401)), (401, (402, 201)), (200, (201, 101))):
        pixels = read_photo(path, enough=enough).pixels
        assert pixels.size == ((short, long) if turned else (long, short))
        assert apart(pixels, rgb(path).resize(pixels.size, Image.Resampling.BOX)) < 2
    gradient(803, 401).save(tmp_path / "large.png")
    assert read_photo(tmp_path / "large.png", enough=10).pixels.size == (803, 401)


# --- preparing without faces ------------------------------------------------------------------------------------


def test_never_resizes_squares_and_crops_the_rest() -> None:
    square = prepare(gradient(64, 64), 32, "never")
    assert (square.place.edge, square.image.size, square.warning) == ("none", (32, 32), None)
    assert apart(square.image, gradient(64, 64).resize((32, 32), Image.Resampling.LANCZOS)) == 0
    wide = prepare(gradient(90, 30), 30, "never")
    assert wide.place.edge == "left and right" and apart(wide.image, gradient(90, 30).crop((30, 0, 60, 30))) == 0


def test_a_photo_of_the_right_size_is_left_alone() -> None:
    assert apart(prepare(gradient(64, 64), 64, "never").image, gradient(64, 64)) == 0


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "available", lambda: False)
    assert prepare(gradient(32, 32), 32).unconfirmed and not prepare(gradient(), 32, "never").unconfirmed
    for photo, align in ((gradient(64, 64), "auto"), (gradient(), "auto"), (gradient(32, 32), "always")):
        with pytest.raises(FlowgradError, match=r"dlib, which is not installed. Run: pip install 'flowgrad\[faces\]'"):
            prepare(photo, 32, align)


# --- tensors --------------------------------------------------------------------------------------------------


def test_tensors_round_trip_exactly() -> None:
    images = [gradient(16, 16), gradient(16, 16).transpose(Image.Transpose.ROTATE_90)]
    tensor = to_tensor(images)
    assert tensor.shape == (2, 3, 16, 16) and str(tensor.dtype) == "torch.float32"
    assert tensor.min() >= -1 and tensor.max() <= 1
    assert tensor[0, 0, 0, 0] == -1 and tensor[0, 2, 5, 5] == pytest.approx(99 / 127.5 - 1)
    assert all(apart(a, b) == 0 for a, b in zip(images, to_images(tensor), strict=True))
    assert np.asarray(to_images(tensor * 10)[0]).max() == 255


# --- faces ------------------------------------------------------------------------------------------------------


def test_a_photo_without_a_face_is_nothing_to_edit() -> None:
    pytest.importorskip("dlib", reason="needs the extra `faces`")
    for align in ("auto", "always"):
        with pytest.raises(FlowgradError, match=r"no face was found.*--align never"):
            prepare(gradient(64, 48), 32, align)
    assert prepare_faces(gradient(64, 64), 32) == Faces()
    assert prepare(gradient(32, 32), 32).unconfirmed
    assert prepare_faces(gradient(64, 48), 32, "never").searched is False


@pytest.fixture(scope="module")
def crops() -> list[Image.Image]:
    """Four aligned crops, 200 x 200, in which the detector sees a face."""
    if not (faces.available() and FACES.exists()):
        pytest.skip("needs the extra `faces`, and the shared photos of faces")
    with zipfile.ZipFile(FACES) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][100:104]
        return [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]


def on_canvas(crop: Image.Image, side: int, angle: float = 0.0) -> Image.Image:
    """Put a crop, turned, somewhere on a grey picture of 4:3: a photo of a person."""
    canvas = Image.new("RGB", (side * 4, side * 3), (128, 128, 128))
    turned = crop.resize((side, side), Image.Resampling.LANCZOS).rotate(angle, Image.Resampling.BICUBIC, expand=True)
    mask = Image.new("L", (side, side), 255).rotate(angle, expand=True)
    canvas.paste(turned, (side // 2, side), mask)
    return canvas


@pytest.mark.parametrize("size", [200, 64])
def test_aligned_crops_are_only_resized(crops: list[Image.Image], size: int) -> None:
    for crop in crops:
        small = crop.resize((size, size), Image.Resampling.LANCZOS)
        prepared = prepare(small, 64)
        assert prepared.place.edge == "none" and prepared.warning is None
        assert apart(prepared.image, small.resize((64, 64), Image.Resampling.LANCZOS)) == 0


@pytest.mark.parametrize(("side", "angle"), [(200, 0), (300, 15), (120, -10)])
def test_a_face_in_a_photo_is_cut_out_as_the_crops_were(crops: list[Image.Image], side: int, angle: float) -> None:
    crop = crops[0]
    prepared = prepare(on_canvas(crop, side, angle), 64)
    assert prepared.place.edge == "face"
    wanted = crop.resize((64, 64), Image.Resampling.LANCZOS)
    assert apart(prepared.image, wanted) < 12


def test_alignment_is_dlibs_chip(crops: list[Image.Image]) -> None:
    import dlib

    photo = on_canvas(crops[0], 250)
    box = find_faces(photo)[0]
    face = faces.look(photo, box)
    points = [(np.array([point.x, point.y]) / face.scale + face.origin).round() for point in face.shape.parts()]
    around = dlib.rectangle(*(round(edge) for edge in box))
    shape = dlib.full_object_detection(around, [dlib.point(int(x), int(y)) for x, y in points])
    chip = Image.fromarray(dlib.get_face_chip(np.asarray(photo), shape, size=200, padding=0.2))
    assert apart(faces.cut_out(face)[0], chip) < 0.5


def test_several_faces_take_the_largest(crops: list[Image.Image]) -> None:
    photo = Image.new("RGB", (640, 480), (128, 128, 128))
    photo.paste(crops[0].resize((180, 180)), (30, 100))
    photo.paste(crops[1].resize((260, 260)), (330, 100))
    prepared = prepare(photo, 64)
    assert prepared.place.edge == "face" and "2 faces found, the largest" in str(prepared.warning)
    assert prepared.place.outline[0] > 300


def test_a_shifted_square_is_aligned(crops: list[Image.Image]) -> None:
    shifted = Image.new("RGB", (260, 260), (128, 128, 128))
    shifted.paste(crops[0], (10, 50))
    assert prepare(shifted, 64).place.edge == "face"
    assert prepare(shifted, 64, "never").place.edge == "none"


# --- processes beside -------------------------------------------------------------------------------------------


def in_a_fresh_interpreter(script: str) -> "subprocess.Popen[str]":
    """Processes are forked only while torch is not imported."""
    command = [sys.executable, "-c", "import os, sys, time; from directions.photo import beside\n" + script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_process_beside_prepares_photos_before_torch_is_there(tmp_path: Path) -> None:
    Image.new("RGB", (70, 50), "teal").save(tmp_path / "photo.png")
    script = f"""
from functools import partial
from pathlib import Path
from typing import NoReturn
from directions.photo.faces import read_faces
from directions.photo.sources import Source
os.sched_getaffinity = lambda process: {{0, 1}}
beside.faces.available, beside.faces.warm_up = (lambda: True), (lambda: None)
with beside.process_beside("never") as none, beside.process_beside("auto") as executor:
    assert none is None and executor is not None
    sources = [Source(Path({str(tmp_path)!r}, "photo.png"))]
    (awaited,) = beside.ahead(executor, partial(read_faces, size=16, align="never"), sources)
    read = awaited()
    print("torch" in sys.modules, read.photo.pixels.size, read.faces.crops[0].image.size)
import torch
with beside.process_beside("auto") as none:
    print(none)
"""
    output, _ = in_a_fresh_interpreter(script).communicate(timeout=120)
    assert output == "False (70, 50) (16, 16)\nNone\n"


class Killed(Executor):
    """Does its first work, is killed with the second, and takes no third."""

    def __init__(self) -> None:
        self.begun = 0

    def submit(self, work: Callable[..., object], *arguments: object, **more: object) -> Future:
        self.begun += 1
        if self.begun > 2:
            raise BrokenExecutor("killed")
        future: Future = Future()
        if self.begun == 1:
            future.set_result(work(*arguments, **more))
        else:
            future.set_exception(BrokenExecutor("killed"))
        return future


@pytest.mark.parametrize("executor", [None, Killed()])
def test_work_that_no_process_does_is_done_here(executor: Executor | None) -> None:
    assert [awaited() for awaited in ahead(executor and Beside(executor), abs, (-1, -2, -3, -4, -5))] == [1, 2, 3, 4, 5]


def test_no_more_is_begun_than_a_few_photos_ahead() -> None:
    with ThreadPoolExecutor(1) as executor:
        numbers = iter(range(1000))
        next(ahead(Beside(executor), abs, numbers))
        assert next(numbers) < 10


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_beside_ends_when_its_parent_does(sent: signal.Signals) -> None:
    """Whatever it is doing: like dlib, this sum lets no other thread run, and it would take minutes."""
    script = """
os.sched_getaffinity = lambda process: {0, 1}
beside.faces.available, beside.faces.warm_up = (lambda: True), (lambda: None)
with beside.process_beside("auto") as (executor, _):
    executor.submit(sum, range(10**11))
    time.sleep(0.5)
    print(*executor._processes, flush=True)
    time.sleep(100)
"""
    with in_a_fresh_interpreter(script) as parent:
        assert parent.stdout is not None
        (child,) = [psutil.Process(int(number)) for number in parent.stdout.readline().split()]
        parent.send_signal(sent)
    _, alive = psutil.wait_procs([child], timeout=20)
    for process in alive:
        process.kill()
    assert not alive, "a process outlives the one that it works for"
