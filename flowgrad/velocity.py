"""The contract every model is brought to: a velocity field `v(x, t) = dx/dt`.

    x: (B, *D) states, t: () or (B,) times in [0, 1]; t = 0 is noise, t = 1 is data.
    The result has the shape, device and dtype of x.

Solvers and gradients know this and nothing else of a model. A clock, a scaling, a prompt, a patch
layout or a VAE is hidden by an adapter in `flowgrad.models`.
"""

from typing import Protocol

import torch
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


def vjp(velocity: Velocity, x: Tensor, t: Tensor, g: Tensor) -> Tensor:
    """The vector-Jacobian product g @ dv/dx (B, *D), for x and g (B, *D); see `Velocity` for t.

    A velocity may have a method `vjp(x, t, g)` of its own, which is then asked instead.
    """
    if (own := getattr(velocity, "vjp", None)) is not None:
        return own(x, t, g)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        v = velocity(leaf, t)
    return torch.autograd.grad(v, leaf, g)[0]


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} on {x.device}"
