"""The methods by name and what can be asked of them; needs the standard library alone, as every command imports it."""

from enum import Enum

from flowgrad.errors import UsageError


class Method(str, Enum):
    """How strokes become pictures; see `flowgrad.painting`."""

    gradop_plus = "gradop+"
    official = "official"
    gradop = "gradop"
    control = "control"
    sdedit = "sdedit"
    loopback = "loopback"
    ilvr = "ilvr"


DEFAULT_METHOD = Method.gradop_plus
WITH_GRADIENTS = (Method.gradop_plus, Method.official, Method.gradop, Method.control)  # to which texts can be added
TEXT_STEPS = 4  # gradient steps of GradOP+ that a text is followed by, where no number is given
COUNT_LIMIT = 1000  # candidates, which are all on one sheet
STEPS_LIMIT = 1000  # gradient steps; methods take 4 to 80
SHEET, SUMMARY = "sheet.png", "summary.json"


def check_steps(steps: int | None, method: Method, saved: bool) -> None:
    """Raise UsageError for gradient steps of a method that takes none, and for a direction that takes none of them."""
    if steps is not None and not saved and method not in WITH_GRADIENTS:
        raise UsageError(f"{method.value} takes no gradient steps: leave --steps out")
    if saved and steps == 0:
        raise UsageError("--save trains a control by gradient steps: give --steps 1 or more, or leave it out")


def check_strength(strength: float | None) -> None:
    """Raise UsageError for a strength that leaves the painting, or the model, no say; None is the method's own."""
    if strength is not None and not 0 < strength < 1:
        raise UsageError(
            f"a strength must lie between 0, the painting itself, and 1, none of it; got {strength:g}: try 0.5"
        )


def candidate_name(seed: int, i: int) -> str:
    """The name of a candidate's file."""
    return f"candidate-{seed}-{i}.png"
