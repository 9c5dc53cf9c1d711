"""What fields of a direction's header may hold: what is written and what is read obey the same rules."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from directions.file.container import shorten
from flowgrad.errors import FlowgradError

Rule = tuple[Callable[[Any], bool], str]  # whether it holds for a value, and what it says in words
Check = tuple[str, Callable[[Any], bool], str]  # a field, and its rule
PictureURL = Annotated[str, "base64 data URL"]  # a text whose characters a rule of its own allows

INTEGER_LIMIT = 1 << 64  # a seed may be any 64-bit number

_ESCAPES = "\x00-\x08\x0b-\x1f\x7f-\x9f"  # a terminal obeys these
_CONTROLS = re.compile(f"[{_ESCAPES}\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # these turn text round, or are no text


class FieldError(FlowgradError):
    """A value that a header may not hold; `problem` is the rule and the value, without a remedy."""

    def __init__(self, rule: str, value: object) -> None:
        self.problem = f"{rule}, not {shorten(value)}"
        super().__init__(f"{self.problem}. Correct it, or get the file again.")


def require(holds: bool, rule: str, value: object) -> None:
    """Raise FieldError, a FlowgradError, unless a rule holds for a value."""
    if not holds:
        raise FieldError(rule, value)


def checks_of(kind: type, rules: Mapping[Any, Rule]) -> tuple[Check, ...]:
    """The rule of each field of a dataclass, by its annotation: looked up once, since banks hold many files."""
    return tuple((field.name, *rules[field.type]) for field in dataclasses.fields(kind))


def check_types(value: Any, prefix: str, checks: Iterable[Check]) -> None:
    """Raise FieldError for a field of a dataclass that breaks the rule of its annotation; see `checks_of`."""
    for name, holds, description in checks:
        item = getattr(value, name)
        if not holds(item):
            raise FieldError(f"{prefix}{name} must be {description}", item)


def freeze(value: Any) -> Any:
    """Return a list of JSON, or each list of a mapping, as a tuple."""
    if isinstance(value, dict):
        return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and (value.isprintable() or not _CONTROLS.search(value))  # the first is quicker


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < INTEGER_LIMIT


def _is_number(value: object) -> bool:
    return math.isfinite(value) if isinstance(value, float) else _is_count(value)


def _are_numbers(value: object) -> bool:
    """Whether it is a tuple of finite numbers; of floats alone, as nearly all are, their sum tells at once."""
    if not isinstance(value, tuple):
        return False
    return (set(map(type, value)) == {float} and math.isfinite(sum(value))) or all(map(_is_number, value))


def _all(rule: Any) -> Any:
    return lambda value: isinstance(value, tuple) and all(map(rule, value))


def _are_effects(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value)) and all(map(_are_numbers, value.values()))


RULES: dict[Any, Rule] = {
    PictureURL: (lambda value: isinstance(value, str), "a text"),
    str: (_is_text, "a text without control characters"),
    int: (_is_count, "an integer of 64 bits"),
    float: (_is_number, "a finite number"),
    tuple[str, ...]: (_all(_is_text), "a list of texts without control characters"),
    tuple[int, ...]: (_all(_is_count), "a list of integers"),
    tuple[float, ...]: (_are_numbers, "a list of finite numbers"),
    tuple[float, float]: (lambda value: _are_numbers(value) and len(value) == 2, "two finite numbers"),
    dict[str, tuple[float, ...]]: (_are_effects, "lists of finite numbers by text"),
}
