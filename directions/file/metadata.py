"""What the headers of all kinds of files share: names, the fields of ModelSpec, and their form as metadata texts."""

import dataclasses
import datetime
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING
from typing import Any, NamedTuple, Protocol

from directions.file.container import FORMAT_KEY, corrupt, parse_json, shorten
from directions.file.rules import FieldError, PictureURL, freeze, require
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
_PICTURE = re.compile(r"data:image/(png|jpeg|webp);base64,")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


class Key(NamedTuple):
    """Where a field stands in the metadata, how its text is read (None: as it is), and whether it must be there."""

    name: str
    key: str
    read: Callable[[str], Any] | None
    required: bool


def keys_of(kind: type, without: Collection[str]) -> tuple[Key, ...]:
    """The keys of a dataclass's fields, of which some are not in the metadata; looked up once, as `checks_of`."""
    fields = [field for field in dataclasses.fields(kind) if field.name not in without]
    return tuple(Key(field.name, _key(field.name), _reader(field), field.default is MISSING) for field in fields)


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


def encode_fields(info: Any, kind: str, number: str, keys: Iterable[Key]) -> dict[str, str]:
    """Return the `__metadata__` of these fields in a format: texts as they are, tags with commas, the rest as JSON."""
    metadata = {f"modelspec.{key}": value for key, value in _MODELSPEC.items()}
    metadata["modelspec.architecture"] = f"{info.model}/flow-{kind}"
    metadata[FORMAT_KEY] = number
    return metadata | {key.key: _to_text(key.name, getattr(info, key.name)) for key in keys}


def decode_fields(metadata: Mapping[str, str], keys: Iterable[Key]) -> dict[str, Any]:
    """Return the values of these fields; lists are tuples. Raises FlowgradError for a required one that is missing."""
    values = {}
    for name, key, read, required in keys:
        text = metadata.get(key)
        if text is not None:
            values[name] = read(text) if read else text
        elif required:
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


def _reader(field: dataclasses.Field[Any]) -> Callable[[str], Any] | None:
    """How the text of a field becomes its value; None for a field that is a text itself."""
    if field.name == "tags":
        return _to_tags
    key = _key(field.name)
    return None if field.type in (str, PictureURL) else lambda text: freeze(parse_json(text, key))


def _to_tags(text: str) -> tuple[str, ...]:
    return tuple(tag.strip() for tag in text.split(",") if tag.strip())


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
    is_picture = not info.thumbnail or _is_picture(info.thumbnail)
    require(is_picture, "thumbnail must be a base64 data URL of a PNG, JPEG or WebP", info.thumbnail)


def _is_picture(url: str) -> bool:
    """Whether it is a data URL of a picture; what its many characters are is told by one translation, not by search."""
    head = _PICTURE.match(url)
    if not head or not url.isascii():
        return False
    written = url[head.end() :].encode()
    body = written.rstrip(b"=")
    return bool(body) and len(written) - len(body) <= 2 and not body.translate(None, _BASE64)


def check_lengths(texts: Iterable[tuple[str, int, Collection[str]]]) -> None:
    """Raise FieldError for a text of (name, limit, texts) that is too long."""
    for name, limit, found in texts:
        if found and (longest := max(map(len, found))) > limit:
            raise FieldError(f"{name} must be at most {limit:,} characters", longest)


def lines_of(info: Any, keys: Iterable[Key]) -> Iterator[tuple[str, int, Collection[str]]]:
    """The fields that are texts, and how long they may be."""
    for name, _, read, _ in keys:
        if read is None and name != "thumbnail":
            limit = PROSE_LIMIT if name in ("description", "license") else TEXT_LIMIT
            yield name, limit, (getattr(info, name),)
