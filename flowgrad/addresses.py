"""Files by one set of functions, at a path of this machine or at an address ("s3://bucket/a.jpg") that fsspec reaches.

Stores of objects (s3, gs, az, hf) show a file when all of it is there; on this machine it is written aside and renamed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from flowgrad.errors import FlowgradError, UsageError, reason
from flowgrad.files import atomic_path

Place = Path | str  # a path, or an address, which has a scheme
_SCHEME, _LOCAL = "://", "file://"
_PATTERN = frozenset("*?[")


class StorageError(FlowgradError):
    """A store that refuses or does not answer: the other files would fare no better."""


def to_place(written: str) -> Place:
    """A path as written or after file://; any other address stays a text.

    Raises UsageError for a zero byte, which no name has, as where a file was piped in place of a list of names.
    """
    if "\0" in written:
        raise UsageError(f"{written[:40]!r} is not the name of a file: give names, in a list one on each line")
    if written.startswith(_LOCAL):
        return Path(written.removeprefix(_LOCAL))
    return written if _SCHEME in written else Path(written)


def below(folder: Place, name: str) -> Place:
    """The place of a name in a folder."""
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


def exists(place: Place) -> bool:
    """Whether there is a file or a folder. Raises StorageError where that cannot be known."""
    if isinstance(place, Path):
        return place.exists()
    with _explained(place, "looked at") as (files, path):
        return bool(files.exists(path))


def is_folder(place: Place) -> bool:
    """Whether there is a folder. Raises as `exists`."""
    if isinstance(place, Path):
        return place.is_dir()
    with _explained(place, "looked at") as (files, path):
        return bool(files.isdir(path))


def files_in(folder: Place) -> list[Place]:
    """The files of a folder, by name; none of folders within it. Raises StorageError if it cannot be read."""
    if isinstance(folder, Path):
        try:
            return [path for path in sorted(folder.iterdir()) if path.is_file()]
        except OSError as error:
            raise StorageError(f"cannot read {folder}: {error.strerror}. Check its permissions.") from error
    with _explained(folder, "listed") as (files, path):
        entries = sorted(files.ls(path, detail=True), key=lambda entry: str(entry["name"]))
        return [str(files.unstrip_protocol(entry["name"])) for entry in entries if entry["type"] == "file"]


def is_pattern(place: Place) -> bool:
    """Whether a place has a character that stands for others, and is itself nowhere."""
    return not _PATTERN.isdisjoint(str(place)) and not exists(place)


def matching(pattern: Place) -> list[Place]:
    """The places that a pattern stands for, by name: * and ? within a name, ** for any folders."""
    if isinstance(pattern, Path):
        import glob

        return [Path(path) for path in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 (may be absolute)
    with _explained(pattern, "searched") as (files, path):
        return [str(files.unstrip_protocol(name)) for name in sorted(files.glob(path))]


def open_bytes(place: Place) -> BinaryIO:
    """A file opened to be read at any position. Raises FlowgradError."""
    if isinstance(place, Path):
        with _readable(place):
            return place.open("rb")
    with _explained(place, "read") as (files, path):
        return cast(BinaryIO, files.open(path, "rb"))


def read_bytes(place: Place) -> bytes:
    """What a file holds. Raises FlowgradError."""
    if isinstance(place, Path):
        with _readable(place):
            return place.read_bytes()
    with _explained(place, "read") as (files, path):
        return bytes(files.cat_file(path))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say what is wrong with a path of this machine that cannot be read."""
    try:
        yield
    except OSError as error:
        raise FlowgradError(f"cannot read {path}: {error.strerror}. Check the name and its permissions.") from error


def write_bytes(place: Place, content: bytes) -> None:
    """Write a file, replacing what is there. Raises FlowgradError on this machine, StorageError elsewhere."""
    if isinstance(place, Path):
        with atomic_path(place) as temporary:
            temporary.write_bytes(content)
        return
    with _explained(place, "written") as (files, path):
        files.pipe_file(path, content)


@contextmanager
def _explained(address: str, done: str) -> Iterator[tuple[Any, str]]:
    """fsspec's file system for an address and the path on it; what it raises becomes a StorageError.

    There are many stores, and what they raise is told nowhere.
    """
    scheme = address.split(_SCHEME, 1)[0]
    try:
        from fsspec.core import url_to_fs

        yield url_to_fs(address)
    except FlowgradError:
        raise
    except FileNotFoundError as error:
        raise FlowgradError(f"{address} cannot be {done}: it is not there. Check the address.") from error
    except ImportError as error:
        raise StorageError(f"{address} needs a package of fsspec's for {scheme} ({reason(error)}).") from error
    except PermissionError as error:
        remedy = "Check the rights and the credentials"
        raise StorageError(f"{address} cannot be {done}: {reason(error)}. {remedy}, then run it again.") from error
    except Exception as error:
        remedy = "Check the address and the connection"
        raise StorageError(f"{address} cannot be {done} ({reason(error)}). {remedy}, then run it again.") from error
