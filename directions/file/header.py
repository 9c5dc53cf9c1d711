"""What a direction file says beside its tensors: the fields, their rules, and their form as metadata texts."""

import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from directions.file.calibration import Calibration, to_calibration
from directions.file.container import FORMAT, corrupt, parse_json, shorten
from directions.file.rules import RULES, FieldError, check_types, freeze, require
from flowgrad.errors import UsageError

THUMBNAIL_LIMIT = 1 << 18  # characters of the data URL
STEPS_LIMIT = 10_000
NAME_LIMIT = 64
TITLE_LIMIT = 200
TEXT_LIMIT = 1000  # characters of a text; guides read less
PROSE_LIMIT = 10_000  # characters of a description and of a licence
TAGS_LIMIT = 100

_MODELSPEC = {"sai_model_spec": "1.0.1", "implementation": "flowgrad"}
_MODELSPEC_FIELDS = ("title", "description", "date", "license", "tags", "thumbnail")
_TENSOR_FIELDS = ("shape", "intervals", "dtype")  # told by the tensors, never by the metadata

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # device names on Windows
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
        check_types(self, "", _RULES)
        _check_info(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, without the thumbnail, as plain values that `json.dumps` takes."""
        values = dataclasses.asdict(self)
        del values["thumbnail"]
        return values


_FIELDS = dataclasses.fields(DirectionInfo)


def encode_info(info: DirectionInfo) -> dict[str, str]:
    """Return the `__metadata__` of `info`: texts as they are, tags with commas, the rest as JSON."""
    metadata = {f"modelspec.{key}": value for key, value in _MODELSPEC.items()}
    metadata["modelspec.architecture"] = f"{info.model}/flow-direction"
    metadata["flowgrad.format"] = FORMAT
    for field in _FIELDS:
        if field.name not in _TENSOR_FIELDS:
            metadata[_key(field.name)] = _to_text(field.name, getattr(info, field.name))
    return metadata


def decode_info(metadata: Mapping[str, str], u: Mapping[str, Any]) -> DirectionInfo:
    """Return the info of checked metadata and of the header's entry of `u`. Raises FlowgradError."""
    intervals, *shape = u["shape"]
    values: dict[str, Any] = {"shape": tuple(shape), "intervals": intervals, "dtype": u["dtype"]}
    for field in _FIELDS:
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
    return to_calibration(value) if field.name == "calibration" else freeze(value)


_LINES = [field.name for field in _FIELDS if field.type is str and field.name != "thumbnail"]
_RULES = {**RULES, Calibration | None: (lambda value: value is None or isinstance(value, Calibration), "a Calibration")}


def _check_info(info: DirectionInfo) -> None:
    check_name(info.model, "model")
    one_line = bool(info.title.strip()) and "\n" not in info.title and len(info.title) <= TITLE_LIMIT
    require(one_line, f"title must be one line of 1 to {TITLE_LIMIT} characters", info.title)
    require(bool(info.fingerprint), "fingerprint must name the model's weights", info.fingerprint)
    require(1 <= info.steps <= STEPS_LIMIT, f"steps must lie in 1 to {STEPS_LIMIT}", info.steps)
    require(0 <= info.intervals <= info.steps, f"intervals must be at most steps = {info.steps}", info.intervals)
    require(info.forward in ("grid", "fine"), "forward must be 'grid' or 'fine'", info.forward)
    for name in ("xi", "lam", "images", "iterations"):
        require(getattr(info, name) >= 0, f"{name} must be at least 0", getattr(info, name))
    for name, limit, texts in _texts(info):
        if texts and (longest := max(map(len, texts))) > limit:
            raise FieldError(f"{name} must be at most {limit:,} characters", longest)
    require(len(info.tags) <= TAGS_LIMIT, f"tags must be at most {TAGS_LIMIT}", len(info.tags))
    are_tags = all(tag == tag.strip() != "" and "," not in tag and "\n" not in tag for tag in info.tags)
    require(are_tags, "a tag is one line without comma or outer space", info.tags)
    require(not info.date or bool(_DATE.fullmatch(info.date)), "date must be ISO 8601, like 2025-01-31", info.date)
    fits = len(info.thumbnail) <= THUMBNAIL_LIMIT
    require(fits, f"thumbnail must be at most {THUMBNAIL_LIMIT} characters", len(info.thumbnail))
    is_image = not info.thumbnail or bool(_THUMBNAIL.fullmatch(info.thumbnail))
    require(is_image, "thumbnail must be a base64 data URL of a PNG, JPEG or WebP", info.thumbnail)


def _texts(info: DirectionInfo) -> Iterator[tuple[str, int, Collection[str]]]:
    """All texts but the thumbnail, with the names of their fields and how long they may be."""
    for name in _LINES:
        yield name, PROSE_LIMIT if name in ("description", "license") else TEXT_LIMIT, (getattr(info, name),)
    for name in ("keep", "tags", "image_hashes"):
        yield name, TEXT_LIMIT, getattr(info, name)
    if info.calibration:
        for name in ("judged", "side_effects"):
            yield f"calibration.{name}", TEXT_LIMIT, getattr(info.calibration, name)
        yield "calibration.source", TEXT_LIMIT, (info.calibration.source,)
