"""Writing files so that an interruption or a full disk never leaves half of one behind."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from flowgrad.errors import FlowgradError, UsageError

TORCH_WRITER = "inline_container"  # where torch's errors say that they come from when a write fails
FINGERPRINT = 16  # hexadecimal digits of a SHA-256 that tell weights apart
# Control characters, lone surrogates (bytes that are no UTF-8), and what turns the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
STEM_LIMIT = 100  # bytes of a file's name that its temporary name has too, so that it never becomes too long
TRASH = ".trash"  # folder of what was removed, beside what is there


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success rename it to `path`, on failure remove it.

    The temporary name keeps the suffix, since libraries choose the format by it, and is short whatever `path` is.
    Raises FlowgradError where the file system refuses (full disk, read-only folder).
    """
    path = Path(path)
    temporary = path.with_name(f"{_mark(path)}{token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except Exception as error:
        if (refusal := _refusal(error)) is None:
            raise
        remedy = "Free some space or choose another folder; nothing was changed."
        raise FlowgradError(f"cannot write {path}: {refusal}. {remedy}") from error
    finally:
        with suppress(OSError):  # it is not there after a success, nor where there is no such folder
            temporary.unlink()


def _mark(path: Path) -> str:
    """How the names begin of what is written to become `path`."""
    return f".{os.fsencode(path.stem)[:STEM_LIMIT].decode('utf-8', 'ignore')}-"


def _refusal(error: Exception) -> str | None:
    """Why the file system refused a write, as Python, safetensors or torch tell it; None for any other error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if type(error).__name__ == "SafetensorError":  # by its name: importing it would slow the start of every command
        return str(error)
    return "the disk may be full" if TORCH_WRITER in str(error) else None


def remove_leftovers(path: Path) -> None:
    """Remove what `atomic_path` left beside `path` when its process was killed; call it while nobody writes there."""
    path = Path(path)
    for leftover in path.parent.glob(f"{glob.escape(_mark(path))}*{glob.escape(path.suffix)}"):
        leftover.unlink(missing_ok=True)


def file_fingerprint(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a file."""
    return file_sha256(path)[:FINGERPRINT]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, read a block at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise UsageError if `path` exists and may not be overwritten; and as `check_folder` for the folder it is in."""
    check_folder(path.parent)
    if path.exists() and not overwrite:
        raise occupied(path)


def check_folder(folder: Path) -> None:
    """Raise unless files can be written to a folder, or to one that is made there.

    Raises UsageError for one that is a file, lies in one, or has no possible name, FlowgradError for a read-only one.
    """
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:  # such as a name that is too long
        raise UsageError(f"cannot write to {str(folder)[:100]}: {error.strerror}. Choose another folder.") from error
    if not there.is_dir():
        raise UsageError(f"cannot write to {folder}: {there} is a file. Choose another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FlowgradError(f"cannot write to {folder}: {there} is read-only. Choose another folder.")


def occupied(place: Path | str) -> UsageError:
    """The error that something is at a place where a file would be written."""
    return UsageError(f"{place} exists already. Choose another name, or replace it with --overwrite.")


def next_numbered(folder: Path) -> Path:
    """The place for the next of the numbered versions 1, 2, ... in a folder of the trash; nothing is made."""
    versions = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    return folder / str(1 + max(versions, default=0))


def printable(text: str) -> str:
    """A file's name, or a text with one, as it can be shown: escaped where it would steer a terminal or is no UTF-8."""
    return _UNPRINTABLE.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
