"""The safetensors container of direction and sampler files; FORMAT.md has the rules.

A header is read and checked with the standard library alone, so that a bank is listed in milliseconds; the safetensors
library reads and writes the tensors.
"""

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn

from flowgrad.errors import FlowgradError
from flowgrad.files import atomic_path

if TYPE_CHECKING:
    import numpy as np

FORMATS = {"direction": "1", "sampler": "2"}  # the kinds of files, and the number of each one's format
FORMAT_KEY = "flowgrad.format"
HEADER_LIMIT = 1 << 20  # bytes; a thumbnail and a long text fit many times over
TENSOR_LIMIT = 1 << 32  # bytes
RANK_LIMIT = 6
HASH_KEY = "modelspec.hash_sha256"

_ITEM_BYTES = {"F16": 2, "F32": 4, "I32": 4}
_TENSORS = {"u": ("F16", "F32"), "starts": ("I32",)}
_OTHER = {  # what a file is that is not of this kind, and what to do with it
    "direction": ("sampler", "Draw from it: flowgrad sample --sampler"),
    "sampler": ("direction", "Apply it: flowgrad apply-direction"),
}
_NAME = re.compile(r"[A-Za-z0-9_.]{1,128}")


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


def control_entry(header: Header) -> dict[str, Any]:
    """Return the entry of `u` of a direction's header, which must obey the format. Raises FlowgradError."""
    _check_kind(header, "direction")
    _check_tensors(header.entries, header.room)
    entry: dict[str, Any] = header.entries["u"]
    return entry


def sampler_shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a sampler's header, which must obey the format. Raises FlowgradError."""
    _check_kind(header, "sampler")
    return _check_any_tensors(header.entries, header.room)


def _check_kind(header: Header, kind: str) -> None:
    number = header.metadata.get(FORMAT_KEY)
    if number is None:
        corrupt(f"the key {FORMAT_KEY} is missing")
    if number != FORMATS[kind] and number in FORMATS.values():
        other, remedy = _OTHER[kind]
        raise FlowgradError(f"a {other} (format {number}), not a {kind}. {remedy}")
    if number != FORMATS[kind]:  # before the tensors, of which a later format may have others
        raise FlowgradError(f"{kind} format {shorten(number)}, this flowgrad reads {FORMATS[kind]}. Upgrade flowgrad.")


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
        return _JSON.decode(raw.decode("utf-8") if isinstance(raw, bytes) else raw)
    except (ValueError, RecursionError) as error:
        corrupt(f"{what} is not JSON ({shorten(str(error))})")


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


def _check_tensors(entries: Mapping[str, Any], room: int) -> None:
    """Refuse entries of tensors that break the format, or do not fill the `room` bytes after the header."""
    if set(entries) != set(_TENSORS):
        corrupt(f"its tensors are {shorten(sorted(entries))}, not u and starts")
    if room > TENSOR_LIMIT:
        corrupt(f"tensors of {room} bytes, at most {TENSOR_LIMIT} are allowed")
    u, starts = (_check_entry(name, entries[name], _TENSORS[name]) for name in _TENSORS)
    if u + starts != room:
        corrupt(f"truncated or too long, tensors of {u + starts} bytes, the file has {room} for them")
    offsets = [entries[name]["data_offsets"] for name in _TENSORS]
    if offsets not in ([[0, u], [u, room]], [[starts, room], [0, starts]]):
        corrupt(f"tensors of {u} and {starts} bytes must lie side by side, not at {shorten(offsets)}")
    m, n = (entries[name]["shape"][0] for name in _TENSORS)
    if m != n:
        corrupt(f"u has {m} intervals and starts {n}")


def _check_any_tensors(entries: Mapping[str, Any], room: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a sampler's tensors, which must be F32 and fill the `room` bytes after the header."""
    if room > TENSOR_LIMIT:
        corrupt(f"tensors of {room} bytes, at most {TENSOR_LIMIT} are allowed")
    if wrong := [name for name in entries if not _NAME.fullmatch(name)]:
        corrupt(f"a tensor is called {shorten(wrong[0])}")
    sizes = {name: _check_entry(name, entry, ("F32",), range(1, RANK_LIMIT + 1)) for name, entry in entries.items()}
    end = 0
    for name in sorted(entries, key=lambda name: _offset(entries[name])):
        if entries[name]["data_offsets"] != [end, end + sizes[name]]:
            corrupt(f"tensors must lie side by side, and {name} is at {shorten(entries[name]['data_offsets'])}")
        end += sizes[name]
    if end != room:
        corrupt(f"truncated or too long, tensors of {end} bytes, the file has {room} for them")
    return {name: tuple(entry["shape"]) for name, entry in entries.items()}


def _offset(entry: Mapping[str, Any]) -> int:
    """Where a tensor says that it begins; -1 where it says nothing of the kind."""
    offsets = entry["data_offsets"]
    return offsets[0] if isinstance(offsets, list) and offsets and type(offsets[0]) is int else -1


def _check_entry(name: str, entry: Any, dtypes: tuple[str, ...], ranks: Sequence[int] | None = None) -> int:
    """Return the bytes of a tensor after checking its dtype and shape."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        corrupt(f"tensor {name} must give dtype, shape and data_offsets")
    dtype, shape = entry["dtype"], entry["shape"]
    if dtype not in dtypes:
        corrupt(f"tensor {name} is {shorten(dtype)}, not {' or '.join(dtypes)}")
    are_counts = isinstance(shape, list) and all(type(n) is int and 0 < n < 1 << 48 for n in shape)
    ranks = ranks or ((1,) if name == "starts" else range(2, RANK_LIMIT + 1))
    if not are_counts or len(shape) not in ranks:
        corrupt(f"tensor {name} has the shape {shorten(shape)}")
    return math.prod(shape) * _ITEM_BYTES[dtype]


def _body(raw: bytes) -> bytes:
    """Return all bytes after the header of a whole file."""
    (length,) = struct.unpack("<Q", raw[:8])
    return raw[8 + length :]


def _hash(body: bytes) -> str:
    return f"0x{hashlib.sha256(body).hexdigest()}"
