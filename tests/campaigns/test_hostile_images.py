"""Two hundred hostile images through the reader and through `apply-direction`: each is read, or refused clearly."""

import hashlib
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from directions.bank.bank import Bank
from directions.photo.reading import read_photo
from flowgrad.errors import FlowgradError
from flowgrad.models import load_model
from tests.helpers.page import fill
from tests.helpers.paths import ROOT
from tests.helpers.pictures import bomb
from tests.helpers.processes import most_memory
from tests.helpers.tiny import Tiny

pytestmark = pytest.mark.slow
SEED, COUNT = 0, 200
MEMORY = 3 << 30  # bytes that a process may take: some copies of the largest photo that is read, and torch
PATIENCE = 900  # seconds for a command
MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "I;16", "1"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "L", "P"),
    "TIFF": ("RGB", "RGBA", "L", "LA", "CMYK", "I;16", "P", "YCbCr", "F"),
    "GIF": ("P", "L"),
    "PPM": ("RGB", "L", "I;16"),
}
SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "HEIF": ".heic"}
Made = tuple[bytes, str]  # a file's bytes, and the format that they have or had


def formats() -> dict[str, tuple[str, ...]]:
    """What can be written here, and in which modes."""
    more: dict[str, tuple[str, ...]] = {"AVIF": ("RGB", "RGBA")} if features.check("avif") else {}
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return MODES | more
    register_heif_opener()
    return MODES | more | {"HEIF": ("RGB", "RGBA")}


class Hostile:
    """A seeded maker of hostile files."""

    def __init__(self, seed: int) -> None:
        self.draw, self.formats = random.Random(seed), formats()

    def picture(self, mode: str, size: tuple[int, int] | None = None) -> Image.Image:
        """Random pixels of a mode."""
        width, height = size or (self.draw.randint(2, 90), self.draw.randint(2, 90))
        pixels = np.random.default_rng(self.draw.randrange(1 << 30)).integers(0, 256, (height, width, 3), np.uint8)
        if mode == "I;16":
            return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        return Image.fromarray(pixels).convert(mode)

    def file(self, kinds: tuple[str, ...] = (), size: tuple[int, int] | None = None, **options: object) -> Made:
        """A sound file."""
        kind = self.draw.choice(kinds or tuple(self.formats))
        buffer = io.BytesIO()
        self.picture(self.draw.choice(self.formats[kind]), size).save(buffer, kind, **options)  # type: ignore[arg-type]
        return buffer.getvalue(), kind

    def bytes(self, count: int) -> bytes:
        """Random ones."""
        return self.draw.randbytes(count)

    # --- what can be wrong with it ---

    def truncated(self) -> Made:
        content, kind = self.file()
        return content[: self.draw.randrange(len(content))], kind

    def flipped(self) -> Made:
        content, kind = self.file()
        raw = bytearray(content)
        for _ in range(self.draw.choice((1, 4, 64))):
            raw[self.draw.randrange(len(raw))] ^= 1 << self.draw.randrange(8)
        return bytes(raw), kind

    def flipped_head(self) -> Made:
        content, kind = self.file()
        raw = bytearray(content)
        for _ in range(3):
            raw[self.draw.randrange(min(64, len(raw)))] = self.draw.randrange(256)
        return bytes(raw), kind

    def zeroed(self) -> Made:
        content, kind = self.file()
        start = self.draw.randrange(len(content))
        return content[:start] + bytes(len(content[start : start + 99])) + content[start + 99 :], kind

    def doubled(self) -> Made:
        content, kind = self.file()
        return content + self.draw.choice((content, self.bytes(5000))), kind

    def spliced(self) -> Made:
        (first, kind), (second, _) = self.file(), self.file()
        return first[: len(first) // 2] + second[len(second) // 2 :], kind

    def huge(self) -> Made:
        """A decompression bomb: a size that no camera has, or just below the limit, and next to no data."""
        side = self.draw.choice((10_900, 20_000, 65_535))
        if self.draw.random() < 0.4:
            return bomb(side), "PNG"
        return self.other_size(side, side)

    def wrong_size(self) -> Made:
        """A head that claims another size than the data have."""
        sizes = (0, 1, 7, 300, 5000, 65_535)
        return self.other_size(self.draw.choice(sizes), self.draw.choice(sizes))

    def other_size(self, width: int, height: int) -> Made:
        content, kind = self.file(("PNG", "GIF", "BMP", "PPM", "JPEG"), (40, 30))
        if kind == "PNG":
            return content[:16] + struct.pack(">II", width, height) + content[24:], kind
        if kind == "GIF":
            return content[:6] + struct.pack("<HH", width, height) + content[10:], kind
        if kind == "BMP":
            return content[:18] + struct.pack("<ii", width, -height) + content[26:], kind
        if kind == "PPM":
            return content.replace(b"40 30", b"%d %d" % (width, height), 1), kind
        return content.replace(struct.pack(">HH", 30, 40), struct.pack(">HH", height, width), 1), kind

    def orientation(self) -> Made:
        exif = Image.Exif()
        exif[0x0112] = self.draw.choice((0, 6, 8, 9, 255, 65_535))
        exif[0x010F] = "x" * self.draw.randrange(9)
        return self.file(("JPEG", "PNG", "WEBP", "TIFF"), exif=exif.tobytes())

    def odd_exif(self) -> Made:
        head = self.draw.choice((b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0II*\0\x08\0\0\0"))
        return self.file(("JPEG", "PNG", "WEBP"), exif=head + self.bytes(self.draw.randrange(2000)))

    def odd_profile(self) -> Made:
        profile = self.bytes(self.draw.choice((1, 127, 4000, 200_000)))
        return self.file(("JPEG", "PNG", "WEBP", "TIFF"), icc_profile=profile)

    def huge_metadata(self) -> Made:
        if self.draw.random() < 0.5:
            said = PngImagePlugin.PngInfo()
            said.add_text("comment", "x" * self.draw.choice((900_000, 30_000_000)), zip=True)
            return self.file(("PNG",), pnginfo=said)
        return self.file(("JPEG", "WEBP"), exif=b"Exif\0\0" + self.bytes(60_000))

    def one_pixel(self) -> Made:
        return self.file(size=self.draw.choice(((1, 1), (1, 4000), (4000, 1), (2, 1))))

    def odd_mode(self) -> Made:
        kind = self.draw.choice(("PNG", "TIFF", "PPM", "JPEG"))
        buffer = io.BytesIO()
        mode = "CMYK" if kind == "JPEG" else self.draw.choice(("I;16", "1" if kind == "PNG" else "L"))
        self.picture(mode).save(buffer, kind)
        return buffer.getvalue(), kind

    def transparent_palette(self) -> Made:
        kind, buffer = self.draw.choice(("PNG", "GIF")), io.BytesIO()
        transparency = self.draw.choice((0, 255)) if kind == "GIF" else self.bytes(self.draw.randint(1, 256))
        self.picture("P").save(buffer, kind, transparency=transparency)
        return buffer.getvalue(), kind

    def animated(self) -> Made:
        kind, buffer = self.draw.choice(("GIF", "WEBP", "PNG", "TIFF")), io.BytesIO()
        first, *others = (self.picture("RGB", (30, 20)) for _ in range(4))
        first.save(buffer, kind, save_all=True, append_images=others)
        content = buffer.getvalue()
        return content[: self.draw.choice((len(content), len(content) * 2 // 3))], kind

    def nothing(self) -> Made:
        content, kind = self.file()
        return self.draw.choice((b"", b"\0" * 999, content[:4], content[:12], self.bytes(999), b"<svg/>")), kind

    def sound(self) -> Made:
        return self.file()

    def write(self, folder: Path) -> Iterator[Path]:
        """COUNT files, of every kind as many; some under another suffix, some under names that are not UTF-8."""
        makers: list[Callable[[], Made]] = [
            *(self.truncated, self.flipped, self.flipped_head, self.zeroed, self.doubled, self.spliced, self.huge),
            *(self.wrong_size, self.orientation, self.odd_exif, self.odd_profile, self.huge_metadata, self.one_pixel),
            *(self.odd_mode, self.transparent_palette, self.animated, self.nothing, self.sound),
        ]
        for i in range(COUNT):
            make = makers[i % len(makers)]
            content, kind = make()
            suffix = SUFFIXES.get(kind, f".{kind.lower()}")
            if self.draw.random() < 0.15:
                suffix = self.draw.choice((".jpg", ".PNG", ".txt", "", ".tiff", ".heic"))
            odd = self.draw.choice((b"\xff\xfe", b"\xe9", b"a b", b"--x", b"\n")) if self.draw.random() < 0.15 else b""
            path = Path(os.fsdecode(os.fsencode(folder) + b"/%03d-%s" % (i, make.__name__.encode()) + odd) + suffix)
            path.write_bytes(content)
            yield path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return list(Hostile(SEED).write(tmp_path_factory.mktemp("hostile")))


def digests(paths: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def said(counts: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{', '.join(f'{count} {what}' for what, count in sorted(counts.items()))}\n")


def test_each_is_read_or_refused(images: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    before, counts, failures = digests(images), Counter[str](), []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in images:
        try:
            photo = read_photo(path)
        except FlowgradError as error:
            counts["refused"] += 1
            if not str(error).startswith(("cannot read ", str(path))):
                failures.append(f"{path.name}: {error}")
        except Exception as error:  # noqa: BLE001  the campaign counts whatever escapes
            failures.append(f"{path.name}: {type(error).__name__}: {error}")
        else:
            counts["read"] += 1
            assert photo.rgb.size == photo.pixels.size
    counts["MiB at the peak"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) >> 10
    counts["escaped"] = len(failures)
    said(counts, capsys)
    assert not failures and digests(images) == before
    assert counts["read"] > COUNT // 4 and counts["refused"] > COUNT // 4
    assert counts["MiB at the peak"] << 20 < MEMORY


def test_each_is_edited_or_reported(
    images: list[Path], tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = Bank(tmp_path / "bank")
    fill(bank, load_model(str(tiny.model), "cpu", "fp32"))
    before, arguments = digests(images), ["old", *map(str, images), "--model", str(tiny.model)]
    options = ["--bank", str(bank.folder), "--output", str(tmp_path / "edited"), "--json"]
    command = [sys.executable, "-m", "cli", "apply-direction", *arguments, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8:strict"}  # as most locales have it
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with ThreadPoolExecutor(1) as watcher:
        peak = watcher.submit(most_memory, run, PATIENCE)
        try:
            output, errors = (text.decode() for text in run.communicate(timeout=PATIENCE))
        finally:
            run.kill()
    assert run.returncode == 1, errors[-3000:]
    assert "Traceback" not in errors and "This is a bug" not in errors, errors[-3000:]
    outcomes = json.loads(output)["files"]
    counts = Counter("edited" if outcome["output"] else "refused" for outcome in outcomes)
    counts["MiB at the peak"] = peak.result() >> 20
    said(counts, capsys)
    assert {outcome["photo"] for outcome in outcomes} == set(map(str, images)) and len(outcomes) == COUNT
    assert all(bool(outcome["output"]) != bool(outcome["error"]) for outcome in outcomes)
    assert counts["edited"] > COUNT // 4 and counts["refused"] > COUNT // 4
    for outcome in outcomes:
        if outcome["output"]:
            read_photo(Path(outcome["output"]))
    assert digests(images) == before and counts["MiB at the peak"] << 20 < MEMORY
    assert not [path for path in (tmp_path / "edited").iterdir() if path.name.startswith(".")]
