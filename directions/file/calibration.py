"""What strengths of a direction do, as its file says it: the fields and their rules."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from directions.file.container import corrupt
from directions.file.rules import RULES, FieldError, check_types, checks_of, freeze, require

STRENGTHS_LIMIT = 1000
MAGNITUDE_LIMIT = 1_000_000  # of strengths, log-odds and distances, where they can still be drawn
TOLERANCE = (0.1, 0.05)  # log-odds, and share of the greatest effect: by how much level may miss that at strength 1


@dataclass(frozen=True)
class Calibration:
    """What strengths of a direction do, measured on photos it was not trained on. Raises FlowgradError.

    `level` is the effect at strength 1, in zero-shot log-odds of the text, 0 where that is nothing but chance; `unit`
    (above 0) the factor by which the trained control was multiplied to make it so. The sequences run along `strengths`
    (one or more, increasing): `effect` is the mean change of the text's log-odds and `error` half its 95 % interval,
    `identity` the mean dlib descriptor distance, `kept` the fraction still the same person (all three empty when not
    measured), `judged` the mean probability of a judge's answers, `side_effects` the change of other texts' scores.
    Within `safe` (lowest, highest strength, around 0) photos stay good; (0, 0) where no strength is safe. `photos` and
    `source` ("samples", "test") say what was measured on.
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
        check_types(self, "calibration.", _CHECKS)
        _check(self)


_CHECKS = checks_of(Calibration, RULES)
_NAMES = {name for name, *_ in _CHECKS}


def to_calibration(value: Any) -> Calibration | None:
    """Return the calibration of a header's JSON. Raises FlowgradError."""
    if value is None:
        return None
    _check_keys(value)
    return Calibration(**{name: freeze(item) for name, item in value.items() if name in _NAMES})


def to_safe(value: Any) -> tuple[float, float] | None:
    """Return the safe range of a header's JSON; nothing else of the calibration is checked. Raises FlowgradError."""
    if value is None:
        return None
    _check_keys(value)
    safe: tuple[float, float] = freeze(value["safe"])
    holds, rule = RULES[tuple[float, float]]
    require(holds(safe), f"calibration.safe must be {rule}", safe)
    return safe


def _check_keys(value: Any) -> None:
    required = ("level", "unit", "strengths", "effect", "safe")
    if not isinstance(value, dict) or not set(required) <= set(value):
        corrupt(f"flowgrad.calibration must give {', '.join(required)}")


def at_strength(calibration: Calibration, values: Sequence[float], strength: float) -> float:
    """What a calibration's `values` are at a strength, in straight lines between those measured; the ends beyond."""
    points = list(zip(calibration.strengths, values, strict=True))
    if strength <= points[0][0]:
        return points[0][1]
    for (a, low), (b, high) in pairwise(points):
        if strength <= b:
            return low + (high - low) * (strength - a) / (b - a)
    return points[-1][1]


def _check(value: Calibration) -> None:
    n = len(value.strengths)
    require(0 < n <= STRENGTHS_LIMIT, f"calibration.strengths must be 1 to {STRENGTHS_LIMIT}", n)
    for name, numbers in _numbers(value):
        if numbers and max(map(abs, numbers)) > MAGNITUDE_LIMIT:
            raise FieldError(f"calibration.{name} must lie within {MAGNITUDE_LIMIT:,} of 0", numbers)
    strengths = tuple(map(float, value.strengths))  # as they are divided: integers may differ where floats do not
    increasing = all(a < b for a, b in pairwise(strengths))
    require(increasing, "calibration.strengths must increase", value.strengths)
    require(len(value.effect) == n, f"calibration.effect must hold {n} values, one for each strength", value.effect)
    for name in ("error", "identity", "kept"):
        item = getattr(value, name)
        require(len(item) in (0, n), f"calibration.{name} must hold no value or {n}", item)
        require(min(item, default=0) >= 0, f"calibration.{name} must be at least 0", item)
    require(len(value.identity) <= len(value.kept), "calibration.kept must be there where identity is", value.kept)
    for name in ("judged", "side_effects"):
        item = getattr(value, name)
        require(all(len(row) == n for row in item.values()), f"calibration.{name} must hold {n} values each", item)
    for name, shares in (("kept", value.kept), *(("judged", row) for row in value.judged.values())):
        require(all(0 <= share <= 1 for share in shares), f"calibration.{name} must be fractions of 1", shares)
    low, high = value.safe
    require(low <= 0 <= high, "calibration.safe must be (lowest, highest) around 0", value.safe)
    require(value.unit > 0, "calibration.unit must be above 0", value.unit)
    require(value.level >= 0, "calibration.level must be at least 0", value.level)
    require(value.photos >= 0, "calibration.photos must be at least 0", value.photos)
    if strengths[0] <= 1 <= strengths[-1]:
        effect = max(at_strength(value, value.effect, 1.0), 0.0)  # 0 where chance made it negative
        near = abs(value.level - effect) <= TOLERANCE[0] + TOLERANCE[1] * max(map(abs, value.effect))
        require(near, f"calibration.level must be the effect at strength 1, {effect:g}", value.level)


def _numbers(value: Calibration) -> Iterator[tuple[str, Sequence[float]]]:
    """All numbers, by the names of their fields."""
    yield from (("level", (value.level,)), ("unit", (value.unit,)))
    for name in ("strengths", "effect", "safe", "error", "identity"):
        yield name, getattr(value, name)
    yield from (("side_effects", row) for row in value.side_effects.values())
