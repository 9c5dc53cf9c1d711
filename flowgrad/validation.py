"""Configuration that is checked: closed to unknown keys, with errors that give the rule, the value and the remedy."""

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from flowgrad.errors import UsageError


class Section(BaseModel):
    """A part of a configuration: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


T = TypeVar("T", bound=BaseModel)


def validated(kind: type[T], values: object, where: object) -> T:
    """`values` as a configuration of this kind; `where` names them in errors: a file, say.

    Raises UsageError that gives every wrong value with its rule, and for an unknown key the nearest known one.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        schema = kind.model_json_schema()
        keys = {key for part in (schema, *schema.get("$defs", {}).values()) for key in part.get("properties", ())}
        problems = "; ".join(_problem(problem, sorted(keys)) for problem in error.errors())
        raise UsageError(f"{where}: {problems}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown name: the known one that is most like it, or all where none is."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(names)})"


def _problem(problem: Any, keys: Iterable[str]) -> str:
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {place!r}{nearest(str(problem['loc'][-1]), keys)}"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "must")  # our words for a rule
    return f"{place}: {message}; got {problem['input']!r:.60}" if place else message
