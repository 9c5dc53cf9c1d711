"""The safetensors container of a direction file, read with the standard library alone and trusting nothing.

Eight bytes of length, a JSON header, then the tensors side by side without holes; FORMAT.md has the rules.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from flowgrad.errors import FlowgradError
from flowgrad.files import atomic_path

HEADER_LIMIT = 1 << 20  # bytes; a thumbnail and a long text fit many times over
TENSOR_LIMIT = 1 << 32  # bytes
RANK_LIMIT = 6

_ITEM_BYTES = {"F16": 2, "F32": 4, "I32": 4}
_TENSORS = {"u": ("F16", "F32"), "starts": ("I32",)}


@contextmanager
def open_named(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for reading; any FlowgradError raised inside gets the file's name before its message."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for for ever
            raise FlowgradError("not a file. Name a direction file (.safetensors).")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        remedy = "Check the name and its permissions."
        raise FlowgradError(f"{path}: cannot be read: {error.strerror or error}. {remedy}") from error
    except FlowgradError as error:
        raise FlowgradError(f"{path}: {error}") from error


def read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the JSON header and how many bytes of tensors follow; leaves `file` at the first of them."""
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


def read_metadata(header: Mapping[str, Any]) -> dict[str, str]:
    """Return the header's `__metadata__`, a mapping of texts to texts."""
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        corrupt("__metadata__ must map texts to texts")
    return metadata


def read_places(header: Mapping[str, Any], room: int) -> dict[str, dict[str, Any]]:
    """Return dtype, shape and data_offsets of `u` and `starts`, checked against each other and the file's size."""
    places = {key: value for key, value in header.items() if key != "__metadata__"}
    if set(places) != set(_TENSORS):
        corrupt(f"its tensors are {shorten(sorted(places))}, not u and starts")
    if room > TENSOR_LIMIT:
        corrupt(f"tensors of {room} bytes, at most {TENSOR_LIMIT} are allowed")
    end = 0
    for begin, stop in sorted(_span(name, place) for name, place in places.items()):
        if begin != end:
            corrupt(f"tensors must lie side by side, byte {begin} follows {end}")
        end = stop
    if end != room:
        corrupt(f"{'truncated' if end > room else 'too long'}, tensors of {end} bytes, the file has {room} for them")
    if places["u"]["shape"][0] != places["starts"]["shape"][0]:
        corrupt(f"u has {places['u']['shape'][0]} intervals and starts {places['starts']['shape'][0]}")
    return places


def write_container(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, Any, bytes]]) -> None:
    """Write tensors, given as (dtype, shape, bytes) by name, in their order. Raises FlowgradError."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + len(raw)]}
        begin += len(raw)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start aligned
    if len(text) > HEADER_LIMIT:
        raise FlowgradError(f"metadata of {len(text)} bytes, at most {HEADER_LIMIT} are allowed. Shorten its texts.")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(raw for _, _, raw in tensors.values())


def parse_json(raw: bytes | str, what: str) -> Any:
    """Return strict JSON: UTF-8, no key twice, no NaN or infinity. Raises FlowgradError naming `what`."""
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        corrupt(f"{what} is not JSON ({shorten(str(error))})")


def corrupt(what: str) -> NoReturn:
    """Raise the error of a file that breaks the format."""
    raise FlowgradError(f"not a direction file, or damaged: {what}. Get the file again, or train the direction anew.")


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


def _span(name: str, place: Any) -> tuple[int, int]:
    """Return the (begin, end) of a tensor after checking type, shape and offsets against each other."""
    if not isinstance(place, dict) or set(place) != {"dtype", "shape", "data_offsets"}:
        corrupt(f"tensor {name} must give dtype, shape and data_offsets")
    dtype, shape, offsets = place["dtype"], place["shape"], place["data_offsets"]
    if dtype not in _TENSORS[name]:
        corrupt(f"tensor {name} is {shorten(dtype)}, not {' or '.join(_TENSORS[name])}")
    rank = len(shape) if _are_counts(shape) else 0
    if not (rank == 1 if name == "starts" else 2 <= rank <= RANK_LIMIT) or min(shape) < 1:
        corrupt(f"tensor {name} has the shape {shorten(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2:
        corrupt(f"tensor {name} has the offsets {shorten(offsets)}")
    if offsets[1] - offsets[0] != math.prod(shape) * _ITEM_BYTES[dtype]:
        corrupt(f"tensor {name} of shape {shorten(shape)} in {dtype} does not fill bytes {shorten(offsets)}")
    return offsets[0], offsets[1]


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in values)
