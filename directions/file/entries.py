"""What a header says of tensors: which ones each kind of file has, of what types and shapes, and where they lie."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from directions.file.container import FORMAT_KEY, FORMATS, Header, corrupt, shorten
from flowgrad.errors import FlowgradError

TENSOR_LIMIT = 1 << 32  # bytes
EXPANDED_LIMIT = 1 << 28  # bytes in F32 of the control that a compact file stands for, whose own bytes may be few
RANK_LIMIT = 6

_ITEM_BYTES = {"I8": 1, "F16": 2, "F32": 4, "I32": 4}
_NAME = re.compile(r"[A-Za-z0-9_.]{1,128}")
_OTHER = {  # what a file is that is not of this kind, and what to do with it
    "direction": ("sampler", "Draw from it: flowgrad sample --sampler"),
    "sampler": ("direction", "Apply it: flowgrad apply-direction"),
}


class _Rule(NamedTuple):
    """The types and the numbers of dimensions that a tensor may have."""

    dtypes: tuple[str, ...]
    ranks: Collection[int]


_STARTS = _Rule(("I32",), (1,))
_IMAGES = range(2, RANK_LIMIT + 1)
_WHOLE = {"u": _Rule(("F16", "F32"), _IMAGES), "starts": _STARTS}
_COMPACT = {"basis": _Rule(("I8",), _IMAGES), "weights": _Rule(("F32",), (2,)), "starts": _STARTS}
_OF_SAMPLER = _Rule(("F32",), range(1, RANK_LIMIT + 1))


class ControlEntry(NamedTuple):
    """What a direction's tensors are: D, M, the type of u, and how many patterns a compact file has (0: u is whole)."""

    shape: tuple[int, ...]
    intervals: int
    dtype: str
    rank: int


def control_entry(header: Header) -> ControlEntry:
    """Return what a direction's header says of its tensors, which must obey the format. Raises FlowgradError."""
    if _checked_format(header, "direction") == FORMATS["compact"]:
        return _compact_entry(header)
    u, starts = _shapes(header, _WHOLE)
    if starts != u[:1]:
        corrupt(f"u has {u[0]} intervals and starts {starts[0]}")
    return ControlEntry(u[1:], u[0], header.entries["u"]["dtype"], 0)


def _compact_entry(header: Header) -> ControlEntry:
    basis, weights, starts = _shapes(header, _COMPACT)
    intervals, rank = weights
    if starts != (intervals,) or basis[0] != rank or rank > intervals:
        corrupt(f"a basis of {basis[0]}, weights of {intervals} x {rank} and {starts[0]} starts do not fit together")
    if (size := math.prod(basis[1:]) * intervals * _ITEM_BYTES["F32"]) > EXPANDED_LIMIT:
        corrupt(f"it stands for a control of {size} bytes, at most {EXPANDED_LIMIT} are allowed")
    return ControlEntry(basis[1:], intervals, "F32", rank)


def sampler_shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a sampler's header, which must obey the format. Raises FlowgradError."""
    _checked_format(header, "sampler")
    if wrong := [name for name in header.entries if not _NAME.fullmatch(name)]:
        corrupt(f"a tensor is called {shorten(wrong[0])}")
    rules = dict.fromkeys(header.entries, _OF_SAMPLER)
    return dict(zip(rules, _shapes(header, rules), strict=True))


def _checked_format(header: Header, kind: str) -> str:
    """Return the number of a header's format, which must be one of a kind of files."""
    number = header.metadata.get(FORMAT_KEY)
    if number is None:
        corrupt(f"the key {FORMAT_KEY} is missing")
    own = [FORMATS["sampler"]] if kind == "sampler" else [FORMATS["direction"], FORMATS["compact"]]
    if number in own:
        return number
    if number in FORMATS.values():
        other, remedy = _OTHER[kind]
        raise FlowgradError(f"a {other} (format {number}), not a {kind}. {remedy}")
    read = " and ".join(own)  # before the tensors, of which a later format may have others
    raise FlowgradError(f"{kind} format {shorten(number)}, this flowgrad reads {read}. Upgrade flowgrad.")


def _shapes(header: Header, rules: Mapping[str, _Rule]) -> list[tuple[int, ...]]:
    """Return the shapes of tensors in the order of their rules; they must fill the bytes after the header."""
    entries, room = header.entries, header.room
    if set(entries) != set(rules):
        corrupt(f"its tensors are {shorten(sorted(entries))}, not {' and '.join(rules)}")
    if room > TENSOR_LIMIT:
        corrupt(f"tensors of {room} bytes, at most {TENSOR_LIMIT} are allowed")
    sizes = {name: _bytes_of(name, entries[name], rule) for name, rule in rules.items()}
    if sum(sizes.values()) != room:
        corrupt(f"truncated or too long, tensors of {sum(sizes.values())} bytes, the file has {room} for them")
    end = 0
    for name in sorted(entries, key=lambda name: _offset(entries[name])):
        begin, end = end, end + sizes[name]
        if entries[name]["data_offsets"] != [begin, end]:
            corrupt(f"tensors must lie side by side, and {name} is at {shorten(entries[name]['data_offsets'])}")
    return [tuple(entries[name]["shape"]) for name in rules]


def _offset(entry: Mapping[str, Any]) -> int:
    """Where a tensor says that it begins; -1 where it says nothing of the kind."""
    offsets = entry["data_offsets"]
    return offsets[0] if isinstance(offsets, list) and offsets and type(offsets[0]) is int else -1


def _bytes_of(name: str, entry: Any, rule: _Rule) -> int:
    """Return the bytes of a tensor after checking its type and shape."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        corrupt(f"tensor {name} must give dtype, shape and data_offsets")
    dtype, shape = entry["dtype"], entry["shape"]
    if dtype not in rule.dtypes:
        corrupt(f"tensor {name} is {shorten(dtype)}, not {' or '.join(rule.dtypes)}")
    are_counts = isinstance(shape, list) and all(type(n) is int and 0 < n < 1 << 48 for n in shape)
    if not are_counts or len(shape) not in rule.ranks:
        corrupt(f"tensor {name} has the shape {shorten(shape)}")
    return math.prod(shape) * _ITEM_BYTES[dtype]
