"""What the headers of all kinds of files share: names, the fields of ModelSpec, and their form as metadata texts."""

import dataclasses
import datetime
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING
from typing import Any, Protocol

from directions.file.container import FORMAT_KEY, corrupt, parse_json, shorten
from directions.file.rules import FieldError, freeze, require
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

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # device names on Windows
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ][0-9:.]+(Z|[+-]\d\d:?\d\d)?)?")
_THUMBNAIL = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")

Field = dataclasses.Field[Any]


def today() -> str:
    """The date in UTC, as a file's `date` says it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


class Described(Protocol):
    """What every kind of file says of itself."""

    @property
    def title(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def description(self) -> str: ...
    @property
    def date(self) -> str: ...
    @property
    def license(self) -> str: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def thumbnail(self) -> str: ...


def check_name(name: str, what: str = "direction") -> str:
    """Return `name` if it may name a file, a model or a folder of a bank on any file system; else UsageError."""
    fits = bool(_NAME.fullmatch(name)) and len(name) <= NAME_LIMIT
    if not fits or name.endswith((".", ".safetensors")) or _RESERVED.fullmatch(name):
        rule = f"lower-case letters, digits, '-', '_' and '.', at most {NAME_LIMIT}, a letter or digit first"
        raise UsageError(f"{shorten(name)} cannot name a {what}. Use {rule}, for example 'big-smile'.")
    return name


def encode_fields(info: Any, kind: str, number: str, fields: Iterable[Field]) -> dict[str, str]:
    """Return the `__metadata__` of these fields in a format: texts as they are, tags with commas, the rest as JSON."""
    metadata = {f"modelspec.{key}": value for key, value in _MODELSPEC.items()}
    metadata["modelspec.architecture"] = f"{info.model}/flow-{kind}"
    metadata[FORMAT_KEY] = number
    return metadata | {_key(field.name): _to_text(field.name, getattr(info, field.name)) for field in fields}


def decode_fields(metadata: Mapping[str, str], fields: Iterable[Field]) -> dict[str, Any]:
    """Return the values of these fields; lists are tuples. Raises FlowgradError for a required one that is missing."""
    values = {}
    for field in fields:
        key = _key(field.name)
        if key in metadata:
            values[field.name] = _from_text(field, metadata[key])
        elif field.default is MISSING:
            corrupt(f"the key {key} is missing")
    return values


def _key(name: str) -> str:
    return f"{'modelspec' if name in _MODELSPEC_FIELDS else 'flowgrad'}.{name}"


def _to_text(name: str, value: Any) -> str:
    if name == "tags":
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value)


def _from_text(field: Field, text: str) -> Any:
    if field.name == "tags":
        return tuple(tag.strip() for tag in text.split(",") if tag.strip())
    if field.type is str:
        return text
    return freeze(parse_json(text, _key(field.name)))


def check_described(info: Described) -> None:
    """Raise FlowgradError unless title, model, tags, date and thumbnail obey their rules."""
    check_name(info.model, "model")
    one_line = bool(info.title.strip()) and "\n" not in info.title and len(info.title) <= TITLE_LIMIT
    require(one_line, f"title must be one line of 1 to {TITLE_LIMIT} characters", info.title)
    require(bool(info.fingerprint), "fingerprint must name the model's weights", info.fingerprint)
    require(1 <= info.steps <= STEPS_LIMIT, f"steps must lie in 1 to {STEPS_LIMIT}", info.steps)
    require(len(info.tags) <= TAGS_LIMIT, f"tags must be at most {TAGS_LIMIT}", len(info.tags))
    are_tags = all(tag == tag.strip() != "" and "," not in tag and "\n" not in tag for tag in info.tags)
    require(are_tags, "a tag is one line without comma or outer space", info.tags)
    require(not info.date or bool(_DATE.fullmatch(info.date)), "date must be ISO 8601, like 2025-01-31", info.date)
    fits = len(info.thumbnail) <= THUMBNAIL_LIMIT
    require(fits, f"thumbnail must be at most {THUMBNAIL_LIMIT} characters", len(info.thumbnail))
    is_image = not info.thumbnail or bool(_THUMBNAIL.fullmatch(info.thumbnail))
    require(is_image, "thumbnail must be a base64 data URL of a PNG, JPEG or WebP", info.thumbnail)


def check_lengths(texts: Iterable[tuple[str, int, Collection[str]]]) -> None:
    """Raise FieldError for a text of (name, limit, texts) that is too long."""
    for name, limit, found in texts:
        if found and (longest := max(map(len, found))) > limit:
            raise FieldError(f"{name} must be at most {limit:,} characters", longest)


def lines_of(info: Any, fields: Iterable[Field]) -> Iterator[tuple[str, int, Collection[str]]]:
    """The fields that are texts, but for the thumbnail, and how long they may be."""
    for field in fields:
        if field.type is str and field.name != "thumbnail":
            limit = PROSE_LIMIT if field.name in ("description", "license") else TEXT_LIMIT
            yield field.name, limit, (getattr(info, field.name),)
