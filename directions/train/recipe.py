"""Recipes: how a direction is trained, as one commented YAML file each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from flowgrad.errors import UsageError
from flowgrad.resources import read_config
from flowgrad.validation import Section, validated
from flowgrad.workers import Share, Workers

if TYPE_CHECKING:  # what needs torch is imported where it is used, so that wrong values are noticed at once
    from directions.apply.inversion import Inversion
    from flowgrad.optimize import Settings


class Recipe(Section):
    """The settings of a training; configs/recipes/default.yaml explains each."""

    inversion: Literal["euler", "fixed-point", "rk45"] = "euler"
    anchored: bool = True
    intervals: int = Field(default=6, ge=0)
    products: int = Field(default=7, ge=0)
    xi: float = Field(default=5e-3, ge=0)
    forward: Literal["grid", "fine"] = "grid"
    eta: float = Field(default=0.7, ge=0, le=1)
    preserve: Literal["l1", "lpips"] = "l1"
    keep_weight: float = Field(default=5.0, ge=0)
    augmentations: int = Field(default=6, ge=1)
    penalty: float = Field(default=0.0, ge=0)
    optimizer: Literal["sgd", "normalized", "adam"] = "normalized"
    step_size: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.8, ge=0, lt=1)
    iterations: int = Field(default=4, ge=1)
    group: int = Field(default=5, ge=1)
    over_time: Literal["free", "constant", "start"] = "free"
    keep_activations: bool = False

    @model_validator(mode="after")
    def _knows_where_products_are_taken(self) -> "Recipe":
        if self.keep_activations and self.forward == "fine" and not self.products:
            raise ValueError("keep_activations needs products above 0 where forward is fine")
        return self

    @property
    def way(self) -> "Inversion":
        """How photos are inverted."""
        from directions.apply.inversion import Inversion

        return Inversion(self.inversion, self.anchored)

    def settings(self, seed: int, mirror: bool) -> "Settings":
        """The part that Algorithm 1 needs."""
        from flowgrad.optimize import Settings

        names = (
            "iterations",
            "forward",
            "products",
            "xi",
            "optimizer",
            "step_size",
            "momentum",
            "penalty",
            "over_time",
            "keep_activations",
        )
        return Settings(**{name: getattr(self, name) for name in names}, seed=seed, mirror=mirror)

    def share(self, count: int, batch: int, workers: Workers) -> Share:
        """This process's share of images for a model that takes `batch` of them together, at most."""
        return Share(count, workers, min(self.group, batch))


def usual_recipe(keep: Sequence[object]) -> str:
    """The recipe that is used unless one is named: another one where texts are to be kept."""
    return "keep" if keep else "default"


def load_recipe(name: str = "default", **changes: object) -> Recipe:
    """The recipe of a shipped name or a YAML file, with some values changed.

    Raises UsageError for an unknown name, a file that is no YAML, a wrong key or a wrong value.
    """
    return validated(Recipe, {**read_config("recipes", name), **changes}, name)


def check_intervals(intervals: object, steps: int) -> None:
    """Raise UsageError for more intervals than a model has Euler steps N; None is not given."""
    if isinstance(intervals, int) and intervals > steps:
        raise UsageError(f"intervals must be at most N = {steps}, the Euler steps of this model; got {intervals}")
