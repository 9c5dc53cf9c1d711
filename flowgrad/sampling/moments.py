"""Moment constraints: the exponential tilt of a pool of samples whose means are a target (PromptGen, section 3.3).

Of all distributions with E phi = mu, the one nearest to the model's is w ~ exp(beta . phi). PromptGen finds beta by
hundreds of epochs of Adam; beta is the minimum of a convex function of a few numbers, and Newton's method finds it in
milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError, UsageError

ITERATIONS = 100
CONVERGED = 1e-16  # the decrease of the dual that another step promises
REACHED = 1e-6  # how far a mean may be from its target in the end
STILL = 1e-12, 1e-9  # variances below the first, or this share of the largest, are rounding errors of float32
LEAST_GAIN = 1e-4  # of the decrease that the gradient promises (Armijo)
OUTSIDE = 1e-6  # how much nearer than the target no sample comes, where it is called out of reach


@dataclass(frozen=True)
class Moments:
    """beta (C,), and what it makes of the pool: weights (n,) that sum to 1, their effective number 1 / sum w^2,
    the largest |sum w phi - mu|, and how many steps of Newton's method it took.
    """

    beta: Tensor
    weights: Tensor
    effective: float
    residual: float
    iterations: int


def solve_moments(phi: Tensor, target: Tensor, names: Sequence[str] = ()) -> Moments:
    """Minimise the dual D(beta) = log mean_i exp(beta . (phi_i - mu)) by damped Newton; phi: (n, C), target mu: (C,).

    The gradient is sum w phi - mu, the Hessian the covariance of phi under w = softmax(beta . phi). Its pseudo-inverse
    leaves beta at 0 along what does not vary, such as a sum of probabilities. Everything is computed in float64.
    names: of the moments, for messages.
    Raises UsageError for a target that no weights of the pool can reach, with the bounds it must lie within.
    """
    if phi.ndim != 2 or target.shape != phi.shape[1:]:
        raise UsageError(f"moments need phi (n, C) and a target (C,); got {tuple(phi.shape)} and {tuple(target.shape)}")
    centred = phi.double() - target.double()
    names = names or [f"moment {i}" for i in range(len(target))]
    _check_bounds(phi, target, names)
    beta = centred.new_zeros(centred.shape[1])
    for iteration in range(ITERATIONS + 1):
        w = (centred @ beta).softmax(0)
        gradient = w @ centred
        _refuse_outside(centred, beta, target, names)
        deviations = centred - gradient
        hessian = deviations.T @ (w[:, None] * deviations)
        step = -torch.linalg.pinv(hessian, atol=STILL[0], rtol=STILL[1], hermitian=True) @ gradient
        if -float(gradient @ step) < CONVERGED and float(gradient.abs().max()) < REACHED:
            return Moments(beta, w, effective_number(w), float(gradient.abs().max()), iteration)
        beta = _damped(centred, beta, step, float(gradient @ step))
    raise FlowgradError(
        f"moments were not reached in {ITERATIONS} steps (they miss by {float(gradient.abs().max()):.2g}): the target "
        "lies at the edge of what the samples reach. Ask for less, or draw more samples"
    )


def dual(centred: Tensor, beta: Tensor) -> float:
    """D(beta) = log mean_i exp(beta . (phi_i - mu)), for phi - mu (n, C)."""
    return float(torch.logsumexp(centred @ beta, 0)) - torch.tensor(len(centred)).log().item()


def effective_number(weights: Tensor) -> float:
    """How many equally weighted samples tell as much: 1 / sum w^2, for weights (n,) that sum to 1."""
    return float(1 / weights.square().sum())


def _damped(centred: Tensor, beta: Tensor, step: Tensor, slope: float) -> Tensor:
    """beta + s step, s halved from 1 until the dual falls by a share of what the slope promises."""
    before, s = dual(centred, beta), 1.0
    while s > 1e-10 and dual(centred, beta + s * step) > before + LEAST_GAIN * s * slope:
        s /= 2
    return beta + s * step


def _check_bounds(phi: Tensor, target: Tensor, names: Sequence[str]) -> None:
    """Refuse a target of which one number is beyond every sample's."""
    low, high = phi.min(0).values, phi.max(0).values
    for i in ((target < low) | (target > high)).nonzero().flatten().tolist():
        raise UsageError(
            f"{names[i]} cannot be {float(target[i]):g}: in {len(phi)} samples it lies in {float(low[i]):.3g} to "
            f"{float(high[i]):.3g}. Ask for a mean within, or draw more samples"
        )


def _refuse_outside(centred: Tensor, beta: Tensor, target: Tensor, names: Sequence[str]) -> None:
    """Raise UsageError if all samples lie on one side of a plane through the target, which beta is normal to."""
    if (length := float(beta.norm())) == 0:
        return
    most = float((centred @ beta).max()) / length
    if most < -OUTSIDE:
        along = float(target.double() @ beta) / length
        written = " ".join(f"{x:+.2f} {name}" for x, name in zip((beta / length).tolist(), names, strict=True))
        raise UsageError(
            f"these moments cannot be reached together: {written} would be {along:.3g}, and no sample of "
            f"{len(centred)} exceeds {along + most:.3g}. Ask for less, or draw more samples"
        )
