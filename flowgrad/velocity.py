"""The contract every model is brought to: a velocity field `v(x, t) = dx/dt`.

    x: (B, *D) states, t: () or (B,) times in [0, 1]; t = 0 is noise, t = 1 is data.
    The result has the shape, device and dtype of x.

Solvers and gradients know this and nothing else of a model. A clock, a scaling, a prompt, a patch
layout or a VAE is hidden by an adapter in `flowgrad.models`.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError

Pullback = Callable[[Tensor], Tensor]  # g (B, *D) -> g @ dv/dx (B, *D) at one point; it can be called once


class Velocity(Protocol):
    """A velocity field; see the module's docstring for shapes and units."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor: ...


def checked(v: Tensor, x: Tensor) -> Tensor:
    """Hold what a velocity returned for x to the contract, and return it.

    Raises FlowgradError if its shape, dtype or device is not that of x.
    """
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
    return linearized(velocity, x, t)[1](g)


def linearized(velocity: Velocity, x: Tensor, t: Tensor) -> tuple[Tensor, Pullback]:
    """v(x, t), and its pullback, which holds the activations of the evaluation until it is called or dropped.

    A velocity may have a method `linearized(x, t)` of its own, which is then asked instead.
    """
    if (own := getattr(velocity, "linearized", None)) is not None:
        return own(x, t)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        v = velocity(leaf, t)
    held = [(v, leaf)]
    return v.detach(), lambda g: torch.autograd.grad(*held.pop(), g)[0]


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} on {x.device}"
