"""The contract every model is brought to: a velocity field `v(x, t) = dx/dt`.

    x: (B, *D) states, t: () or (B,) times in [0, 1]; t = 0 is noise, t = 1 is data.
    The result has the shape, device and dtype of x.

Solvers and gradients know this and nothing else of a model. A clock, a scaling, a prompt, a patch
layout or a VAE is hidden by an adapter in `flowgrad.models`.
"""

from typing import Protocol

from torch import Tensor

from flowgrad.errors import FlowgradError


class Velocity(Protocol):
    """A velocity field; see the module's docstring for shapes and units."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor: ...


def checked(velocity: Velocity, x: Tensor, t: Tensor) -> Tensor:
    """Evaluate `velocity` once and hold it to the contract.

    Raises FlowgradError if the result's shape, dtype or device is not that of x.
    """
    v = velocity(x, t)
    if (v.shape, v.dtype, v.device) != (x.shape, x.dtype, x.device):
        raise FlowgradError(
            f"a velocity must have the shape, dtype and device of x: x is {_describe(x)}, v(x, t) is {_describe(v)}. "
            "Mend the model's adapter."
        )
    return v


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} on {x.device}"
