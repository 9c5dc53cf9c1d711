"""How a network is trained, as recipes say it: keys that those of flows, autoencoders and guides share."""

from math import cos, pi
from typing import Annotated, Literal

from pydantic import Field

from flowgrad.validation import Section

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Optimization(Section):
    """The keys.

    batch: items a step, over all processes. optimizer: "muon" moves matrices and convolutions by Muon, at the rate
    `muon_rate`, and what is left by AdamW, at `learning_rate`; "adamw" moves all by AdamW. Both rates rise in a line
    over `warmup` steps; over the last `decay` of the run they fall to zero, in a line or half a cosine, or do not
    ("constant"). clip: largest norm of the gradient. ema: decay of the averaged weights, which are what is kept.
    """

    batch: Annotated[int, Field(ge=2)] = 64
    optimizer: Literal["muon", "adamw"] = "muon"
    muon_rate: Positive = 0.02
    learning_rate: Positive = 8e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[int, Field(ge=0)] = 100
    decay: Annotated[float, Field(gt=0, le=1)] = 0.4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Positive = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9995
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: Annotated[int, Field(ge=0)] = 0

    def rate(self, step: int, progress: float) -> float:
        """The share of the learning rates that a step (from 0) has, at this share of the run."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        left = min(1.0, (1 - progress) / self.decay)
        fall = {"linear": left, "cosine": (1 - cos(pi * left)) / 2, "constant": 1.0}[self.schedule]
        return rise * fall
