"""Directions as they are asked for, "smiling:0.8+old:0.3": names of a bank or files, with strengths."""

from collections.abc import Iterable
from math import isfinite, nan
from pathlib import Path

from directions.bank.bank import Bank
from directions.bank.entry import SUFFIX
from directions.file.direction import Direction, read_direction
from flowgrad.errors import UsageError


def parse_mixture(written: str, strength: float = 1.0) -> list[tuple[str, float]]:
    """Read "smiling", "smiling:0.8" or "smiling:0.8+old:0.3" as names and strengths; `strength` multiplies them all.

    A path to a file is a name too. Raises UsageError for an empty name or a strength that is no finite number.
    """
    parts = []
    for part in [written] if Path(written).is_file() else written.split("+"):
        name, colon, number = part.strip().rpartition(":")
        if not colon or number.endswith(SUFFIX):
            name, number = part.strip(), "1"
        try:
            own = float(number)
        except ValueError:
            own = nan
        if not name or not isfinite(own):
            raise UsageError(f"{part!r} is no NAME[:STRENGTH]. Write, for example, smiling:0.8+old:0.3.")
        parts.append((name, check_strength(own * strength)))
    return parts


def check_strength(strength: float) -> float:
    """Return a strength that is a finite number. Raises UsageError for any other."""
    if not isfinite(strength):
        raise UsageError(f"a strength is a finite number, like 0.8 or -1; got {strength:g}")
    return strength


def load_parts(
    parts: Iterable[tuple[str, float]], bank: Bank, model: str | None = None
) -> list[tuple[Direction, float]]:
    """Read the directions of a mixture from files or the bank (those of `model`); with their strengths.

    Raises UsageError for an unknown name (with the nearest) and for directions of different models.
    """
    loaded = [(_load(name, bank, model), strength) for name, strength in parts]
    models = {direction.info.model for direction, _ in loaded}
    if len(models) > 1:
        raise UsageError(f"directions of different models cannot be added: {', '.join(sorted(models))}. Use one model.")
    return loaded


def _load(name: str, bank: Bank, model: str | None) -> Direction:
    return read_direction(Path(name).expanduser()) if name.endswith(SUFFIX) else bank.get(name, model).load()
