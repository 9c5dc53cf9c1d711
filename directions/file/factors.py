"""Compact controls: few patterns for all intervals, u_j = sum_r w[j, r] b[r], each pattern b[r] in 8 bits.

The controls of a direction's intervals are alike, so that few patterns hold nearly all of them. Of all sums of R
patterns the first R singular vectors miss least of the control, sum_j h_j |u_j - sum_r w[j, r] b[r]|^2 with h_j the
length of interval j: the sum of the squares of the other singular values (Eckart and Young, 1936).
"""

from typing import TYPE_CHECKING, NamedTuple

from flowgrad.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_LEVELS = 127  # of 8 bits on each side of 0


class Factors(NamedTuple):
    """weights (M, R) in float32 and patterns `basis` (R, *D) in 8 bits; the patterns' scales are in the weights."""

    weights: "np.ndarray"
    basis: "np.ndarray"

    def expand(self) -> "np.ndarray":
        """The control u (M, *D) in float32; summed in order, so that every machine has the same bits."""
        import numpy as np

        u = np.zeros((len(self.weights), *self.basis.shape[1:]), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # a direction refuses what is not finite
            for r, pattern in enumerate(self.basis):
                values = pattern.astype(np.float32)
                for j, weight in enumerate(self.weights[:, r]):
                    u[j] += weight * values
        return u


def factorize(u: "np.ndarray", lengths: "np.ndarray", rank: int) -> Factors:
    """The `rank` patterns that miss least of a control u (M, *D) whose intervals have these lengths, all above 0.

    Raises UsageError for a rank that is not in 1 to M, or above the size of D.
    """
    import numpy as np

    flat = u.reshape(len(u), -1).astype(np.float64)
    if not 1 <= rank <= min(flat.shape):
        raise UsageError(f"rank must lie in 1 to {min(flat.shape)} for a control of {len(u)} intervals; got {rank}")
    root = np.sqrt(lengths)[:, None]
    left, values, right = np.linalg.svd(root * flat, full_matrices=False)
    patterns = right[:rank]  # orthonormal rows: none is 0
    scales = np.abs(patterns).max(1) / _LEVELS
    basis = np.rint(patterns / scales[:, None]).astype(np.int8).reshape(rank, *u.shape[1:])
    weights = left[:, :rank] * (values[:rank] * scales) / root
    return Factors(np.ascontiguousarray(weights, np.float32), basis)


def missed(u: "np.ndarray", other: "np.ndarray", lengths: "np.ndarray") -> float:
    """How much of a control u (M, *D) another one misses: |u - other| / |u|, over time; 0 if both are 0."""
    import numpy as np

    def norm(values: "np.ndarray") -> float:
        squares = (values.reshape(len(values), -1).astype(np.float64) ** 2).sum(1)
        return float(np.sqrt(squares @ lengths))

    return norm(u.astype(np.float32) - other) / norm(u) if norm(u) else norm(other)
