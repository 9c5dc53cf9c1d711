"""Pictures of a folder, an archive or a data set, brought to one size and kept on disk as an array.

A source is a folder (searched through), a zip or tar archive, or a Hugging Face data set: `hf://owner/name` on its hub,
or a folder with Parquet files or one made by `save_to_disk`. Pictures are turned upright, laid on white where they are
transparent, cropped to their central square and resized with Lanczos. What cannot be used is left out and counted.
"""

import csv
import hashlib
import io
import json
import lzma
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from flowgrad.containers import MISSING_PYARROW, require_pictures, tar_members
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path, file_fingerprint, remove_leftovers
from flowgrad.images import to_rgb

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
TABLES = frozenset({".parquet", ".arrow"})
FEWEST = 16  # pictures to train on
PIXELS, LISTING = "images.npy", "images.json"
HUB = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)/?")
KINDS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's names; others may start programs (EPS)
LARGEST = 1 << 28  # bytes of a file, unpacked; archives can hold files that fill any memory
ENCODING = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)
DECODING = (*ENCODING, SyntaxError, ValueError, struct.error, IndexError, KeyError, TypeError, ArithmeticError)

Read = Callable[[], bytes]


class UnusableImageError(Exception):
    """Why a picture is left out, in a few words."""


@dataclass(frozen=True)
class ImageStep:
    """One picture looked at: how many of `total` are done, and why this one was left out, if it was."""

    done: int
    total: int
    name: str
    skipped: str | None


@dataclass(frozen=True)
class ImageSet:
    """Pictures of one size, of which `held_out` are kept from training.

    pixels: (N, size, size, 3) uint8, mapped from disk; names: N; skipped: how many were left out for each reason;
    key: of the names and pixels.
    """

    pixels: np.ndarray
    names: tuple[str, ...]
    skipped: dict[str, int]
    key: str

    @property
    def left_out(self) -> str:
        """How many pictures were left out for which reasons; "none" for none."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())) or "none"

    def split(self, held_out: float, table: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows held out: by a table of splits, else a share chosen by the names' hashes.

        By hashes, nearly all pictures stay on their side when others come or go. Raises UsageError for a table that
        cannot be read, FlowgradError if a side is too small.
        """
        splits = None if table is None else read_splits(table)
        if splits is None:
            order = sorted(range(len(self.names)), key=lambda i: hashlib.sha256(self.names[i].encode()).digest())
            count = max(1, round(held_out * len(order)))
            train, kept = sorted(order[count:]), sorted(order[:count])
        else:
            sides = [side_of(name, splits) for name in self.names]
            train, kept = ([i for i, side in enumerate(sides) if side == wanted] for wanted in ("train", "test"))
        if len(train) < FEWEST or not kept:
            raise FlowgradError(
                f"training needs {FEWEST} pictures and one held out; got {len(train)} and {len(kept)}. "
                f"Give more pictures (left out: {self.left_out}){'' if splits is None else ', or names in the table'}."
            )
        return np.asarray(train), np.asarray(kept)


def split_key(images: ImageSet, *sides: np.ndarray) -> str:
    """A text that changes with the pictures and with how they are split."""
    return f"{images.key} {hashlib.sha256(np.concatenate(sides).tobytes()).hexdigest()[:16]}"


def side_of(name: str, splits: dict[str, str]) -> str | None:
    """What a table of splits says of a picture, by its path in the source or by its file name; None if nothing."""
    return splits.get(name, splits.get(name.rsplit("/", 1)[-1]))


def read_splits(table: Path) -> dict[str, str]:
    """Read a CSV file with the columns `file` and `split` (train or test; others are left out) into file -> split.

    A byte order mark, as spreadsheets write it, is passed over.

    Raises UsageError if it cannot be read or lacks a column.
    """
    try:
        with Path(table).open(newline="", encoding="utf-8-sig") as file:
            return {row["file"]: row["split"] for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{table} is not a readable CSV file ({error}): give one with columns file and split."
        ) from error
    except KeyError as error:
        raise UsageError(
            f"{table} has no column {error}: a table of splits needs the columns file and split."
        ) from error


def prepare_images(source: str | Path, size: int, folder: Path, wanted: str = "") -> Iterator[ImageStep]:
    """Write `images.npy` and `images.json` of a source's pictures into `folder`, yielding each picture looked at.

    Yields nothing if they are there already. With the key `wanted` of what must come out, other pictures raise
    UsageError, and those in the folder stay. Raises UsageError for a source that is not there or of no known kind,
    FlowgradError if too few of its pictures can be used (with the reasons), the hub does not answer or the disk is
    full.
    """
    source = find_source(source)
    entries = list_images(source)
    told = _key(source, size, [name for name, _ in entries])
    if _listing(folder).get("source") == told:
        return
    if not entries:
        raise FlowgradError(f"{source} holds no pictures: give some ending in {', '.join(sorted(SUFFIXES))}.")
    yield from _write(entries, size, folder, told, source, wanted)


def load_images(folder: Path) -> ImageSet:
    """Map the pictures that `prepare_images` wrote. Raises FlowgradError if they are missing or damaged."""
    listing = _listing(folder)
    try:
        pixels = np.load(Path(folder) / PIXELS, mmap_mode="r", allow_pickle=False)
        names = tuple(listing["names"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise FlowgradError(
            f"the prepared pictures in {folder} are damaged: delete {PIXELS} and start again."
        ) from error
    if len(names) != len(pixels):
        raise FlowgradError(
            f"{folder}: {LISTING} names {len(names)} pictures, {PIXELS} has {len(pixels)}: delete both."
        )
    return ImageSet(pixels, names, listing["skipped"], listing["key"])


def find_source(source: str | Path) -> Path:
    """The path of a source; a data set of the Hugging Face hub, `hf://owner/name`, is downloaded or found in its cache.

    Raises UsageError for an address of another form, FlowgradError if the hub does not answer or has no such data set.
    """
    if not str(source).startswith("hf:"):
        return Path(source)
    address = HUB.fullmatch(str(source))
    if address is None:
        raise UsageError(f"a data set of the Hugging Face hub is written hf://owner/name; got {source}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [f"*{suffix}" for suffix in (*TABLES, *SUFFIXES)]
    try:
        return Path(snapshot_download(address[1], repo_type="dataset", allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise FlowgradError(f"{source} cannot be downloaded ({reason}): check the name and the connection.") from error


def list_images(source: Path) -> list[tuple[str, Read]]:
    """Names in a source, in order, and a function for each that reads the file.

    Raises UsageError if `source` is not there or of no known kind, FlowgradError if it is damaged.
    """
    if source.is_dir():
        tables = sorted(p for p in source.rglob("*") if p.suffix.lower() in TABLES and _visible(p.relative_to(source)))
        return _list_tables(source, tables) if tables else _list_folder(source)
    if not source.exists():
        raise UsageError(f"{source} does not exist: give a folder, a zip or tar archive, or a data set's folder.")
    try:
        if zipfile.is_zipfile(source):
            return _list_zip(source)
        if tarfile.is_tarfile(source):
            return _list_tar(source)
    except ENCODING as error:
        raise FlowgradError(f"{source} is a damaged archive ({error}): make it again.") from error
    raise UsageError(f"{source} is neither a folder nor a zip or tar archive of pictures: give one of these.")


def _visible(path: Path) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _is_image(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in SUFFIXES and _visible(path)


def _list_folder(source: Path) -> list[tuple[str, Read]]:
    names = sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file())
    return [(name, _reader(source / name)) for name in names if _is_image(name)]


def _reader(path: Path) -> Read:
    return lambda: _read_whole(path.open("rb"))


def _read_whole(opened: IO[bytes]) -> bytes:
    """What an open file holds; closes it. Raises UnusableImageError if that is more than `LARGEST` bytes."""
    with opened as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UnusableImageError("too large")
    return data


def _list_zip(source: Path) -> list[tuple[str, Read]]:
    archive = zipfile.ZipFile(source)
    names = sorted(info.filename for info in archive.infolist() if not info.is_dir())

    def reader(name: str) -> Read:
        return lambda: _read_whole(archive.open(name))

    return [(name, reader(name)) for name in names if _is_image(name)]


def _list_tar(source: Path) -> list[tuple[str, Read]]:
    archive = tarfile.open(source)  # noqa: SIM115 (its members are read later)
    members = [member for member in tar_members(archive) if _is_image(member.name)]

    def reader(member: tarfile.TarInfo) -> Read:
        def read() -> bytes:
            file = archive.extractfile(member)
            return b"" if file is None else _read_whole(file)

        return read

    # in the archive's order: a compressed one can only be read forwards without starting again for each file
    return [(member.name, reader(member)) for member in members]


def _list_tables(source: Path, tables: list[Path]) -> list[tuple[str, Read]]:
    entries: list[tuple[str, Read]] = []
    for table in tables:
        stem = table.relative_to(source).with_suffix("").as_posix()
        rows = len(_image_column(table))
        entries += [(f"{stem}/{row:06d}", _row_reader(table, row, source)) for row in range(rows)]
    return entries


def _row_reader(table: Path, row: int, source: Path) -> Read:
    def read() -> bytes:
        cell = _image_column(table)[row].as_py() or {}
        if isinstance(cell, bytes):
            return cell
        if cell.get("bytes"):
            return bytes(cell["bytes"])
        if not cell.get("path"):
            raise UnusableImageError("empty row")
        path = Path(cell["path"])
        if path.is_absolute() or ".." in path.parts:
            raise UnusableImageError("outside the data set")
        return _read_whole((source / path).open("rb"))

    return read


@lru_cache(maxsize=1)  # tables are large: one at a time
def _image_column(table: Path) -> Any:
    """The column of a Parquet or Arrow file that holds pictures; see `picture_column`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise FlowgradError(f"{table.name} {MISSING_PYARROW}") from error
    try:
        data = pyarrow.parquet.read_table(table) if table.suffix.lower() == ".parquet" else _read_arrow(table)
    except (OSError, pyarrow.ArrowException) as error:
        raise FlowgradError(f"{table} is damaged ({str(error).splitlines()[0]}): download it again.") from error
    return data.column(require_pictures(str(table), data.schema))


def _read_arrow(table: Path) -> Any:
    import pyarrow

    with pyarrow.memory_map(str(table)) as file:
        return pyarrow.ipc.open_stream(file).read_all()


def _key(source: Path, size: int, names: list[str]) -> str:
    """A hash of the size, the names, and the sizes and dates of the files in which the pictures are."""
    files = [source] if source.is_file() else [path for path in sorted(source.rglob("*")) if path.is_file()]
    told = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([size, names, told]).encode()).hexdigest()[:16]


def _listing(folder: Path) -> dict[str, Any]:
    try:
        listing = json.loads((Path(folder) / LISTING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return listing if isinstance(listing, dict) else {}


def _write(
    entries: list[tuple[str, Read]], size: int, folder: Path, told: str, source: Path, wanted: str
) -> Iterator[ImageStep]:
    names: list[str] = []
    skipped: Counter[str] = Counter()
    remove_leftovers(Path(folder) / PIXELS)
    with atomic_path(Path(folder) / PIXELS) as temporary:
        with temporary.open("wb") as file:  # written row by row: a full disk is an error here, and a crash in a mapping
            _write_header(file, len(entries), size)
            for done, (name, read) in enumerate(entries, 1):
                reason = None
                try:
                    square = read_square(read, size)
                except UnusableImageError as error:
                    reason = str(error)
                else:
                    file.write(square.tobytes())
                    names.append(name)
                skipped.update([reason] if reason else [])
                yield ImageStep(done, len(entries), name, reason)
            if len(names) < FEWEST:
                raise FlowgradError(_too_few(source, len(names), skipped))
            _write_header(file, len(names), size)
        key = hashlib.sha256(f"{file_fingerprint(temporary)} {names}".encode()).hexdigest()[:16]
        if wanted not in ("", key):
            raise UsageError(
                f"{folder} is of a run with other pictures than {source} has: resume with those, or choose another one."
            )
        (Path(folder) / LISTING).unlink(missing_ok=True)  # names the pictures that are replaced now
    listing = {"source": told, "key": key, "names": names, "skipped": dict(skipped)}
    with atomic_path(Path(folder) / LISTING) as temporary:
        temporary.write_text(json.dumps(listing), encoding="utf-8")


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    """Write, or write again, the head of an .npy file; NumPy makes it as long for any count of rows."""
    file.seek(0)
    shape = (count, size, size, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _too_few(source: Path, usable: int, skipped: Counter[str]) -> str:
    return f"training needs {FEWEST} pictures at least; {source} has {usable} that can be used{_explain(skipped)}."


def _explain(skipped: dict[str, int] | Counter[str]) -> str:
    if not skipped:
        return ""
    return " (left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) + ")"


def read_square(read: Read, size: int) -> np.ndarray:
    """Read a picture of `list_images` and bring it to a square, see `to_square`.

    Raises UnusableImageError if it cannot be read either.
    """
    return to_square(read_bytes(read), size)


def read_bytes(read: Read) -> bytes:
    """Read the file of a picture of `list_images`. Raises UnusableImageError if that fails."""
    try:
        return read()
    except ENCODING as error:  # RuntimeError: zip files that need a password
        raise UnusableImageError("unreadable") from error


def to_square(data: bytes, size: int, enlarge: bool = False) -> np.ndarray:
    """Bring an encoded picture to (size, size, 3) uint8: upright, on white, its central square, Lanczos.

    Raises UnusableImageError if it is not a picture, is truncated, too large, or smaller than `size`, unless `enlarge`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=KINDS) as picture:
                if min(picture.size) < size and not enlarge:
                    raise UnusableImageError(f"smaller than {size} pixels")
                image = to_rgb(ImageOps.exif_transpose(picture))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UnusableImageError("too large") from error
        except DECODING as error:  # what Pillow's decoders raise
            raise UnusableImageError("unreadable") from error
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))
