"""The safetensors container of direction and sampler files; FORMAT.md has the rules, `entries` those of tensors.

A header is read and checked with the standard library alone, so that a bank is listed in milliseconds; the safetensors
library reads and writes the tensors.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn

from flowgrad.errors import FlowgradError
from flowgrad.files import atomic_path

if TYPE_CHECKING:
    import numpy as np

FORMATS = {"direction": "1", "sampler": "2", "compact": "3"}  # the kinds of files, and the number of each one's format
FORMAT_KEY = "flowgrad.format"
HEADER_LIMIT = 1 << 20  # bytes; a thumbnail and a long text fit many times over
HASH_KEY = "modelspec.hash_sha256"


@contextmanager
def open_named(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for reading; any FlowgradError raised inside gets the file's name before its message."""
    try:
        if not path.is_file() and path.exists():  # a pipe would be waited for for ever
            raise FlowgradError("not a file. Name a direction file (.safetensors).")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        remedy = "Check the name and its permissions."
        raise FlowgradError(f"{path}: cannot be read: {error.strerror or error}. {remedy}") from error
    except FlowgradError as error:
        raise FlowgradError(f"{path}: {error}") from error


class Header(NamedTuple):
    """metadata, entries of tensors by name, and how many bytes follow the header: what no rule has been held to yet."""

    metadata: dict[str, str]
    entries: dict[str, Any]
    room: int

    @property
    def is_sampler(self) -> bool:
        """Whether it says that it is a sampler's."""
        return self.metadata.get(FORMAT_KEY) == FORMATS["sampler"]


def read_header(file: BinaryIO) -> Header:
    """Return the header of a file of either kind. Raises FlowgradError."""
    entries, room = _read_json(file)
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        corrupt("__metadata__ must map texts to texts")
    return Header(metadata, entries, room)


def read_tensors(file: BinaryIO) -> tuple[dict[str, "np.ndarray"], str]:
    """Return the tensors by name, and the hash of all bytes after the header. Raises FlowgradError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    file.seek(0)
    raw = file.read()
    try:
        return load(raw), _hash(_body(raw))
    except SafetensorError as error:
        corrupt(str(error))


def write_container(path: Path, metadata: Mapping[str, str], tensors: dict[str, "np.ndarray"]) -> None:
    """Write tensors by name, with their hash among the metadata: the same always give the same bytes.

    Raises FlowgradError for metadata that are too long, and where the disk refuses.
    """
    from safetensors.numpy import save

    raw = save(tensors)
    body = _body(raw)
    entries = json.loads(raw[8 : len(raw) - len(body)])
    header = {"__metadata__": {**metadata, HASH_KEY: _hash(body)}, **entries}  # the library's order would be random
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start aligned
    if len(text) > HEADER_LIMIT:
        raise FlowgradError(f"metadata of {len(text)} bytes, at most {HEADER_LIMIT} are allowed. Shorten its texts.")
    with atomic_path(path) as temporary:
        temporary.write_bytes(struct.pack("<Q", len(text)) + text + body)


def parse_json(raw: bytes | str, what: str) -> Any:
    """Return strict JSON: UTF-8, no key twice, no NaN or infinity. Raises FlowgradError naming `what`."""
    try:
        text = (raw.decode("utf-8") if isinstance(raw, bytes) else raw).strip(_SPACE)
        value, end = _JSON.raw_decode(text)  # decode() looks for spaces by expressions, which takes as long again
        if end < len(text):
            raise ValueError(f"more follows after {end} characters")
    except (ValueError, RecursionError) as error:
        corrupt(f"{what} is not JSON ({shorten(str(error))})")
    return value


def corrupt(what: str) -> NoReturn:
    """Raise the error of a file that breaks the format."""
    raise FlowgradError(f"not a direction or sampler file, or damaged: {what}. Get the file again, or train it anew.")


def shorten(value: object) -> str:
    """Return a value as an error message may show it."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_SPACE = " \t\n\r"
_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _read_json(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the JSON header, and how many bytes of tensors follow it."""
    size = file.seek(0, 2)
    file.seek(0)
    if size < 8:
        corrupt(f"{size} bytes are too short for a safetensors file")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > HEADER_LIMIT:
        corrupt(f"a header of {length} bytes, at most {HEADER_LIMIT} are allowed")
    if 8 + length > size:
        corrupt(f"truncated, a header of {length} bytes does not fit into a file of {size}")
    header = parse_json(file.read(length), "the header")
    if not isinstance(header, dict):
        corrupt("the header is not a JSON object")
    return header, size - 8 - length


def _body(raw: bytes) -> bytes:
    """Return all bytes after the header of a whole file."""
    (length,) = struct.unpack("<Q", raw[:8])
    return raw[8 + length :]


def _hash(body: bytes) -> str:
    return f"0x{hashlib.sha256(body).hexdigest()}"
