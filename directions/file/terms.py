"""What a sampler asks of images, as its file says it: the terms of an energy, and their rules."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from directions.file.container import corrupt
from directions.file.rules import RULES, check_types, checks_of, freeze, require

KINDS = ("text", "class", "moment", "identity", "pose")
WITHOUT_GUIDE = ("identity", "pose")  # kinds whose energies ask no guide
TERMS_LIMIT, NUMBERS_LIMIT = 100, 10_000
MAGNITUDE_LIMIT = 1_000_000


@dataclass(frozen=True)
class Term:
    """One energy and its weight (lambda, above 0). Raises FlowgradError for fields that its kind does not have.

    kind "text": a `text` against its `source`; "class": `answers` to different questions; "moment": `beta` for all
    answers to the questions `attributes`, whose shares were to be `target`; "identity": a face's `descriptor`; "pose":
    the lowest and the highest yaw as `target`, in degrees.
    """

    kind: str
    weight: float = 1.0
    text: str = ""
    source: str = ""
    answers: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    beta: tuple[float, ...] = ()
    target: tuple[float, ...] = ()
    descriptor: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_types(self, "a term's ", _CHECKS)
        require(self.kind in KINDS, f"a term's kind must be one of {', '.join(KINDS)}", self.kind)
        require(0 < self.weight <= MAGNITUDE_LIMIT, "a term's weight must lie above 0", self.weight)
        for name in _needed(self.kind):
            require(bool(getattr(self, name)), f"a term of kind {self.kind} must give {name}", getattr(self, name))
        if self.kind == "pose":
            yaws = len(self.target) == 2 and -90 < self.target[0] <= self.target[1] < 90
            require(yaws, "a term's yaws must be the lowest and the highest, between -90 and 90", self.target)
        for name, values in self._numbers():
            require(len(values) <= NUMBERS_LIMIT, f"a term's {name} has at most {NUMBERS_LIMIT} numbers", len(values))
            small = max(map(abs, values), default=0) <= MAGNITUDE_LIMIT
            require(small, f"a term's {name} must lie within {MAGNITUDE_LIMIT:,} of 0", values)

    def _numbers(self) -> Iterator[tuple[str, tuple[float, ...]]]:
        yield from (("beta", self.beta), ("target", self.target), ("descriptor", self.descriptor))

    @property
    def words(self) -> str:
        """What the term asks for, in a few words."""
        if self.kind == "text":
            return f"{self.text} - {self.source}"
        return {
            "class": ", ".join(self.answers),
            "moment": f"shares of {', '.join(self.attributes)}",
            "identity": "a photo's person",
            "pose": "yaw {}".format(" to ".join(f"{degrees:g}" for degrees in dict.fromkeys(self.target))),
        }[self.kind]


_CHECKS = checks_of(Term, RULES)


def _needed(kind: str) -> tuple[str, ...]:
    return {
        "text": ("text", "source"),
        "class": ("answers",),
        "moment": ("attributes", "beta", "target"),
        "identity": ("descriptor",),
        "pose": ("target",),
    }[kind]


def to_terms(value: Any) -> tuple[Term, ...]:
    """Return the terms of a header's JSON. Raises FlowgradError."""
    if not isinstance(value, tuple) or not 0 < len(value) <= TERMS_LIMIT:
        corrupt(f"flowgrad.terms must be a list of 1 to {TERMS_LIMIT}")
    known = {field.name for field in dataclasses.fields(Term)}
    if not all(isinstance(item, Mapping) and "kind" in item for item in value):
        corrupt("each of flowgrad.terms must give its kind")
    return tuple(Term(**{name: freeze(given) for name, given in item.items() if name in known}) for item in value)
