"""What a direction file says beside its tensors: the fields, their rules, and their form as metadata texts."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from itertools import pairwise
from typing import Any

from directions.file.container import FORMAT, corrupt, parse_json, shorten
from flowgrad.errors import FlowgradError, UsageError

THUMBNAIL_LIMIT = 1 << 18  # characters of the data URL
STEPS_LIMIT = 10_000
NAME_LIMIT = 64
TITLE_LIMIT = 200
INTEGER_LIMIT = 1 << 64  # a seed may be any 64-bit number

_MODELSPEC = {"sai_model_spec": "1.0.1", "implementation": "flowgrad"}
_MODELSPEC_FIELDS = ("title", "description", "date", "license", "tags", "thumbnail")
_TENSOR_FIELDS = ("shape", "intervals", "dtype")  # told by the tensors, never by the metadata

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # device names on Windows
_ESCAPES = "\x00-\x08\x0b-\x1f\x7f-\x9f"  # a terminal obeys these
_CONTROLS = re.compile(f"[{_ESCAPES}\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # these turn text round, or are no text
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ][0-9:.]+(Z|[+-]\d\d:?\d\d)?)?")
_THUMBNAIL = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")


def check_name(name: str, what: str = "direction") -> str:
    """Return `name` if it may name a direction, a model or a folder of a bank on any file system; else UsageError."""
    fits = bool(_NAME.fullmatch(name)) and len(name) <= NAME_LIMIT
    if not fits or name.endswith((".", ".safetensors")) or _RESERVED.fullmatch(name):
        rule = f"lower-case letters, digits, '-', '_' and '.', at most {NAME_LIMIT}, a letter or digit first"
        raise UsageError(f"{shorten(name)} cannot name a {what}. Use {rule}, for example 'big-smile'.")
    return name


@dataclass(frozen=True)
class Calibration:
    """What strengths of a direction do, measured on photos it was not trained on. Raises FlowgradError.

    `level` is the effect that strength 1 means, in zero-shot log-odds of the text; `unit` the factor by which the
    trained control was multiplied to make it so. The sequences run along `strengths` (one or more, increasing):
    `effect` is the mean change of the text's log-odds and `error` half its 95 % interval, `identity` the mean dlib
    descriptor distance, `kept` the fraction still the same person (all three empty when not measured), `judged` the
    mean probability of a judge's answers, `side_effects` the change of other texts' scores.
    Within `safe` (lowest, highest strength) photos stay good. `photos` and `source` ("samples", "test") say what was
    measured on.
    """

    level: float
    unit: float
    strengths: tuple[float, ...]
    effect: tuple[float, ...]
    safe: tuple[float, float]
    error: tuple[float, ...] = ()
    identity: tuple[float, ...] = ()
    kept: tuple[float, ...] = ()
    judged: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    side_effects: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    photos: int = 0
    source: str = "samples"

    def __post_init__(self) -> None:
        _check_types(self, "calibration.")
        _check_calibration(self)


@dataclass(frozen=True)
class DirectionInfo:
    """Everything a direction file says beside its tensors. Checked at construction; raises FlowgradError.

    `steps` is N, the Euler steps of the time grid; `time_convention` names which end is noise. `guide` and
    `guide_fingerprint` name the network the text was read by; an unknown text is "". `shape` (D), `intervals` (M)
    and `dtype` ("F16" or "F32") describe the tensors and are filled in by `Direction.create`.
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
    thumbnail: str = ""
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

    def __post_init__(self) -> None:
        _check_types(self, "")
        _check_info(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, without the thumbnail, as plain values that `json.dumps` takes."""
        values = dataclasses.asdict(self)
        del values["thumbnail"]
        return values


def encode_info(info: DirectionInfo) -> dict[str, str]:
    """Return the `__metadata__` of `info`: texts as they are, tags with commas, the rest as JSON."""
    metadata = {f"modelspec.{key}": value for key, value in _MODELSPEC.items()}
    metadata["modelspec.architecture"] = f"{info.model}/flow-direction"
    metadata["flowgrad.format"] = FORMAT
    for field in dataclasses.fields(info):
        if field.name not in _TENSOR_FIELDS:
            metadata[_key(field.name)] = _to_text(field.name, getattr(info, field.name))
    return metadata


def decode_info(metadata: Mapping[str, str], u: Mapping[str, Any]) -> DirectionInfo:
    """Return the info of checked metadata and of the header's entry of `u`. Raises FlowgradError."""
    intervals, *shape = u["shape"]
    values: dict[str, Any] = {"shape": tuple(shape), "intervals": intervals, "dtype": u["dtype"]}
    for field in dataclasses.fields(DirectionInfo):
        key = _key(field.name)
        if field.name not in _TENSOR_FIELDS and key in metadata:
            values[field.name] = _from_text(field, metadata[key])
        elif field.default is MISSING:
            corrupt(f"the key {key} is missing")
    return DirectionInfo(**values)


def _key(name: str) -> str:
    return f"{'modelspec' if name in _MODELSPEC_FIELDS else 'flowgrad'}.{name}"


def _to_text(name: str, value: Any) -> str:
    if name == "tags":
        return ",".join(value)
    if isinstance(value, str):
        return value
    plain = dataclasses.asdict(value) if isinstance(value, Calibration) else value
    return json.dumps(plain, ensure_ascii=False, allow_nan=False)


def _from_text(field: "dataclasses.Field[Any]", text: str) -> Any:
    if field.name == "tags":
        return tuple(tag.strip() for tag in text.split(",") if tag.strip())
    if field.type is str:
        return text
    value = parse_json(text, _key(field.name))
    return _to_calibration(value) if field.name == "calibration" else _freeze(value)


def _to_calibration(value: Any) -> Calibration | None:
    if value is None:
        return None
    required = ("level", "unit", "strengths", "effect", "safe")
    if not isinstance(value, dict) or not set(required) <= set(value):
        corrupt(f"flowgrad.calibration must give {', '.join(required)}")
    known = {field.name for field in dataclasses.fields(Calibration)}
    return Calibration(**{name: _freeze(item) for name, item in value.items() if name in known})


def _freeze(value: Any) -> Any:
    """Return a list, or each list of a mapping, as a tuple."""
    if isinstance(value, dict):
        return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


# --- rules: what is written and what is read obey the same ------------------------------------------------------


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not _CONTROLS.search(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < INTEGER_LIMIT


def _is_number(value: object) -> bool:
    return _is_count(value) or (isinstance(value, float) and math.isfinite(value))


def _all(rule: Any) -> Any:
    return lambda value: isinstance(value, tuple) and all(map(rule, value))


def _are_effects(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value)) and all(map(_all(_is_number), value.values()))


_RULES: dict[Any, tuple[Any, str]] = {
    str: (_is_text, "a text without control characters"),
    int: (_is_count, "an integer of 64 bits"),
    float: (_is_number, "a finite number"),
    tuple[str, ...]: (_all(_is_text), "a list of texts without control characters"),
    tuple[int, ...]: (_all(_is_count), "a list of integers"),
    tuple[float, ...]: (_all(_is_number), "a list of finite numbers"),
    tuple[float, float]: (lambda value: _all(_is_number)(value) and len(value) == 2, "two finite numbers"),
    dict[str, tuple[float, ...]]: (_are_effects, "lists of finite numbers by text"),
    Calibration | None: (lambda value: value is None or isinstance(value, Calibration), "a Calibration"),
}


def _check_types(value: Any, prefix: str) -> None:
    """Refuse a field that is not what its annotation says."""
    for field in dataclasses.fields(value):
        rule, description = _RULES[field.type]
        item = getattr(value, field.name)
        _require(rule(item), f"{prefix}{field.name} must be {description}", item)


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise FlowgradError(f"{rule}, not {shorten(value)}. Correct it, or get the file again.")


def _check_info(info: DirectionInfo) -> None:
    check_name(info.model, "model")
    one_line = bool(info.title.strip()) and "\n" not in info.title and len(info.title) <= TITLE_LIMIT
    _require(one_line, f"title must be one line of 1 to {TITLE_LIMIT} characters", info.title)
    _require(bool(info.fingerprint), "fingerprint must name the model's weights", info.fingerprint)
    _require(1 <= info.steps <= STEPS_LIMIT, f"steps must lie in 1 to {STEPS_LIMIT}", info.steps)
    _require(0 <= info.intervals <= info.steps, f"intervals must be at most steps = {info.steps}", info.intervals)
    _require(info.forward in ("grid", "fine"), "forward must be 'grid' or 'fine'", info.forward)
    for name in ("xi", "lam", "images", "iterations"):
        _require(getattr(info, name) >= 0, f"{name} must be at least 0", getattr(info, name))
    are_tags = all(tag == tag.strip() != "" and "," not in tag and "\n" not in tag for tag in info.tags)
    _require(are_tags, "a tag is one line without comma or outer space", info.tags)
    _require(not info.date or bool(_DATE.fullmatch(info.date)), "date must be ISO 8601, like 2025-01-31", info.date)
    fits = len(info.thumbnail) <= THUMBNAIL_LIMIT
    _require(fits, f"thumbnail must be at most {THUMBNAIL_LIMIT} characters", len(info.thumbnail))
    is_image = not info.thumbnail or bool(_THUMBNAIL.fullmatch(info.thumbnail))
    _require(is_image, "thumbnail must be a base64 data URL of a PNG, JPEG or WebP", info.thumbnail)


def _check_calibration(value: Calibration) -> None:
    n = len(value.strengths)
    strengths = tuple(map(float, value.strengths))  # as they are divided: integers may differ where floats do not
    increasing = n > 0 and all(a < b for a, b in pairwise(strengths))
    _require(increasing, "calibration.strengths must be one or more, and increase", value.strengths)
    _require(len(value.effect) == n, f"calibration.effect must hold {n} values, one for each strength", value.effect)
    for name in ("error", "identity", "kept"):
        item = getattr(value, name)
        _require(len(item) in (0, n), f"calibration.{name} must hold no value or {n}", item)
    _require(all(0 <= share <= 1 for share in value.kept), "calibration.kept must be fractions of 1", value.kept)
    for name in ("judged", "side_effects"):
        item = getattr(value, name)
        _require(all(len(row) == n for row in item.values()), f"calibration.{name} must hold {n} values each", item)
    _require(value.safe[0] <= value.safe[1], "calibration.safe must be (lowest, highest)", value.safe)
    _require(value.unit != 0, "calibration.unit must not be 0", value.unit)
    _require(value.photos >= 0, "calibration.photos must be at least 0", value.photos)
