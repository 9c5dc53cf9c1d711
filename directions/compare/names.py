"""The names of the methods that are compared; told without torch."""

from enum import Enum


class Method(str, Enum):
    """How photos are edited by a text."""

    DIRECTION = "direction"
    FINE = "direction-fine"
    OPTIMIZE = "optimize"
    PUBLISHED = "published"
    GUIDANCE = "classifier-guidance"
    MEAN_DIFFERENCE = "mean-difference"
    SHARED = "shared"
    CONSTANT = "constant"
    INITIAL = "initial"
    SDEDIT = "sdedit"
