"""What a direction file says beside its tensors: the fields and their rules."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from directions.file.calibration import Calibration, to_calibration, to_safe
from directions.file.container import FORMATS, Header
from directions.file.entries import ControlEntry, control_entry
from directions.file.metadata import (
    TEXT_LIMIT,
    check_described,
    check_lengths,
    check_name,
    decode_fields,
    encode_fields,
    keys_of,
    lines_of,
)
from directions.file.rules import RULES, PictureURL, check_types, checks_of, require

_TENSOR_FIELDS = ("shape", "intervals", "dtype", "rank")  # told by the tensors, never by the metadata


@dataclass(frozen=True)
class DirectionInfo:
    """Everything a direction file says beside its tensors. Checked at construction; raises FlowgradError.

    `steps` is N, the Euler steps of the time grid; `time_convention` names which end is noise. `guide` and
    `guide_fingerprint` name the network the text was read by; an unknown text is "". `shape` (D), `intervals` (M)
    and `dtype` ("F16" or "F32") describe u, and `rank` how many patterns in 8 bits the file keeps in its place (0: u
    itself); `Direction.create` and `Direction.compact` fill them in.
    """

    title: str
    model: str
    fingerprint: str
    steps: int
    time_convention: str = "t=0 noise, t=1 data"
    text: str = ""
    source_text: str = ""
    keep: tuple[str, ...] = ()
    description: str = ""
    date: str = ""
    license: str = ""
    tags: tuple[str, ...] = ()
    thumbnail: PictureURL = ""
    guide: str = ""
    guide_fingerprint: str = ""
    inversion: str = "anchored"
    forward: str = "grid"
    xi: float = 0.0
    eta: float = 0.0
    lam: float = 0.0
    optimizer: str = ""
    step_size: float = 0.0
    seed: int = 0
    iterations: int = 0
    losses: tuple[float, ...] = ()
    images: int = 0
    image_hashes: tuple[str, ...] = ()
    calibration: Calibration | None = None
    version: str = ""
    shape: tuple[int, ...] = ()
    intervals: int = 0
    dtype: str = ""
    rank: int = 0

    def __post_init__(self) -> None:
        check_types(self, "", _CHECKS)
        _check_info(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, without the thumbnail, as plain values that `json.dumps` takes."""
        values = dataclasses.asdict(self)
        del values["thumbnail"]
        return values


_KEYS = keys_of(DirectionInfo, without=_TENSOR_FIELDS)


def encode_info(info: DirectionInfo) -> dict[str, str]:
    """Return the `__metadata__` of `info`: texts as they are, tags with commas, the rest as JSON."""
    return encode_fields(info, "direction", FORMATS["compact" if info.rank else "direction"], _KEYS)


def decode_info(metadata: Mapping[str, str], entry: ControlEntry) -> DirectionInfo:
    """Return the info of checked metadata and of what a header says of its tensors. Raises FlowgradError."""
    values = decode_fields(metadata, _KEYS)
    if "calibration" in values:
        values["calibration"] = to_calibration(values["calibration"])
    return DirectionInfo(**values, **entry._asdict())


class Summary(NamedTuple):
    """What a list tells of a file: its model, what it asks for, and the safe strengths, None where there are none."""

    model: str
    text: str
    safe: tuple[float, float] | None


_TOLD = tuple(key for key in _KEYS if key.required or key.name in ("text", "calibration"))


def summarize(header: Header) -> Summary:
    """Return the summary of a direction's header. Raises FlowgradError.

    Its tensors, its required keys and what is told are checked, not the other values: banks hold many files.
    """
    control_entry(header)
    values = decode_fields(header.metadata, _TOLD)
    name = "text" if values.get("text") else "title"
    text, (holds, rule) = values[name], RULES[str]
    require(holds(text), f"{name} must be {rule}", text)
    check_lengths([(name, TEXT_LIMIT, (text,))])
    return Summary(check_name(values["model"], "model"), text, to_safe(values.get("calibration")))


_RULES = {**RULES, Calibration | None: (lambda value: value is None or isinstance(value, Calibration), "a Calibration")}
_CHECKS = checks_of(DirectionInfo, _RULES)


def _check_info(info: DirectionInfo) -> None:
    check_described(info)
    require(0 <= info.intervals <= info.steps, f"intervals must be at most steps = {info.steps}", info.intervals)
    require(0 <= info.rank <= info.intervals, f"rank must be at most intervals = {info.intervals}", info.rank)
    require(info.forward in ("grid", "fine"), "forward must be 'grid' or 'fine'", info.forward)
    for name in ("xi", "lam", "images", "iterations"):
        require(getattr(info, name) >= 0, f"{name} must be at least 0", getattr(info, name))
    check_lengths(_texts(info))


def _texts(info: DirectionInfo) -> Iterator[tuple[str, int, Collection[str]]]:
    """All texts but the thumbnail, with the names of their fields and how long they may be."""
    yield from lines_of(info, _KEYS)
    for name in ("keep", "tags", "image_hashes"):
        yield name, TEXT_LIMIT, getattr(info, name)
    if info.calibration:
        for name in ("judged", "side_effects"):
            yield f"calibration.{name}", TEXT_LIMIT, getattr(info.calibration, name)
        yield "calibration.source", TEXT_LIMIT, (info.calibration.source,)
