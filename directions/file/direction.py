"""Direction files, formats 1 and 3: one `.safetensors` file, nothing executable; FORMAT.md is the specification.

Everything read is treated as hostile: lengths, offsets, types, ranges and texts are checked before use. A header needs
the standard library alone; numpy and safetensors are imported for tensors only.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from directions.file import container
from directions.file.entries import EXPANDED_LIMIT, control_entry
from directions.file.factors import Factors, factorize
from directions.file.header import DirectionInfo, decode_info, encode_info
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import refuse_existing

if TYPE_CHECKING:
    import numpy as np

_NUMPY_TYPES = {"F16": "<f2", "F32": "<f4", "I32": "<i4"}


@dataclass(frozen=True, eq=False)
class Direction:
    """A control shared by all photos: `u` (M, *D) in units of dx/dt, constant from Euler step `starts[j]` on.

    `factors`: what a compact file keeps in its place, and it was expanded from; see `compact`. Raises FlowgradError for
    values that are not finite, starts that do not increase from 0, or an `info` that describes other tensors (`create`
    fills that part in).
    """

    u: "np.ndarray"
    starts: "np.ndarray"
    info: DirectionInfo
    factors: Factors | None = None

    def __post_init__(self) -> None:
        _check_starts(self.starts, self.info)
        _check_control(self.u, self.info)
        _check_factors(self)

    @classmethod
    def create(
        cls, u: "np.ndarray", starts: "np.ndarray", info: DirectionInfo, dtype: Literal["F16", "F32"] = "F16"
    ) -> "Direction":
        """Store the control `u` (M, *D) as `dtype`; shape, intervals, dtype and version of `info` are filled in.

        Raises FlowgradError where F16 (largest value 65504) cannot hold the control.
        """
        import numpy as np

        with np.errstate(over="ignore"):  # refused below, with a remedy
            stored = np.ascontiguousarray(u, dtype=_NUMPY_TYPES[dtype])
        if np.isinf(stored).any() and np.isfinite(u).all():
            raise FlowgradError(f"the control reaches {np.abs(u).max():.4g}, more than {dtype} holds. Store it as F32.")
        version = info.version or flowgrad_version()
        shape = tuple(int(n) for n in stored.shape[1:])
        described = dataclasses.replace(info, shape=shape, intervals=len(stored), dtype=dtype, version=version)
        return cls(stored, np.ascontiguousarray(starts, dtype=_NUMPY_TYPES["I32"]), described)

    @property
    def lengths(self) -> "np.ndarray":
        """(M,) lengths of the intervals, of time 0 to 1."""
        import numpy as np

        return np.diff(self.starts, append=self.info.steps) / self.info.steps

    def compact(self, rank: int) -> "Direction":
        """The direction whose control is the nearest one of `rank` patterns in 8 bits, which its file then keeps.

        Raises UsageError for a rank that is not in 1 to M, or above the size of D, and for a control that no compact
        file may stand for.
        """
        if 4 * self.u.size > EXPANDED_LIMIT:
            rule = f"a compact control must have at most {EXPANDED_LIMIT // 4} numbers"
            raise UsageError(f"{rule}; this one has {self.u.size}. Keep it whole.")
        factors = factorize(self.u, self.lengths, rank)
        info = dataclasses.replace(self.info, dtype="F32", rank=rank)
        return Direction(factors.expand(), self.starts, info, factors)


def read_info(path: Path) -> DirectionInfo:
    """Read the header of a direction file, without its tensors.

    Raises FlowgradError naming the file, the rule it breaks and the remedy.
    """
    with container.open_named(path) as file:
        return to_info(container.read_header(file))


def to_info(header: container.Header) -> DirectionInfo:
    """Return what a direction's header says. Raises FlowgradError for one that breaks the format."""
    return decode_info(header.metadata, control_entry(header))


def read_direction(path: Path) -> Direction:
    """Read and check a whole direction file. Raises FlowgradError as `read_info`, and for broken tensors."""
    with container.open_named(path) as file:
        header = container.read_header(file)
        info = to_info(header)
        tensors, digest = container.read_tensors(file)
        if header.metadata.get(container.HASH_KEY, digest) != digest:
            container.corrupt("its tensors do not have the hash in its header")
        factors = Factors(tensors["weights"], tensors["basis"]) if info.rank else None
        return Direction(factors.expand() if factors else tensors["u"], tensors["starts"], info, factors)


def write_direction(direction: Direction, path: Path, overwrite: bool = False) -> Path:
    """Write `direction` to `path`; the same direction always gives the same bytes. Returns the path.

    Raises UsageError if the file exists and `overwrite` is False, FlowgradError where the disk refuses.
    """
    refuse_existing(path, overwrite)
    control = direction.factors._asdict() if direction.factors else {"u": direction.u}
    tensors = {name: value.copy() for name, value in (control | {"starts": direction.starts}).items()}  # contiguous
    container.write_container(path, encode_info(direction.info), tensors)
    return path


def check_compatible(
    info: DirectionInfo,
    *,
    model: str,
    fingerprint: str,
    steps: int,
    shape: tuple[int, ...],
    time_convention: str,
    force: bool = False,
) -> None:
    """Raise FlowgradError unless a direction fits the model it shall steer; `force` overrides the fingerprint alone."""
    checks: list[tuple[str, object, object, str]] = [
        ("shape", info.shape, tuple(shape), f"Apply it with {info.model}, or train one for {model}."),
        ("number of steps N", info.steps, steps, f"Use N = {info.steps}, or train it again."),
        ("time convention", info.time_convention, time_convention, f"Train one for {model}."),
    ]
    if info.fingerprint != fingerprint and not force:
        mine, given = f"{info.model} ({info.fingerprint})", f"{model} ({fingerprint})"
        checks.append(("model's weights", mine, given, "Load those weights, train it again, or try it with --force."))
    for rule, stored, value, remedy in checks:
        if stored != value:
            raise FlowgradError(
                f"direction {info.title!r} was made for another {rule}: {stored}, not {value}. {remedy}"
            )


def _check_starts(starts: "np.ndarray", info: DirectionInfo) -> None:
    if starts.dtype.str != _NUMPY_TYPES["I32"] or starts.shape != (info.intervals,) or not info.intervals:
        rule = f"starts must be ({info.intervals},) of int32, one for each interval"
        raise FlowgradError(f"{rule}, not {starts.shape} of {starts.dtype}. Use Direction.create.")
    if starts[0] != 0 or (starts[1:] <= starts[:-1]).any() or starts[-1] >= info.steps:
        shown = container.shorten(starts.tolist())
        raise FlowgradError(f"starts must increase from 0, below N = {info.steps}, not {shown}. Train it again.")


def _check_control(u: "np.ndarray", info: DirectionInfo) -> None:
    import numpy as np

    if u.dtype.str != _NUMPY_TYPES.get(info.dtype) or u.shape != (info.intervals, *info.shape):
        described = f"{info.intervals} x {info.shape} of {info.dtype or 'no type'}"
        raise FlowgradError(f"info describes u as {described}, it is {u.shape} of {u.dtype}. Use Direction.create.")
    bad = u.size - int(np.isfinite(u).sum())
    if bad:
        raise FlowgradError(f"u must be finite, {bad} of {u.size} values are not. Train the direction again.")


def _check_factors(direction: Direction) -> None:
    import numpy as np

    factors, rank = direction.factors, direction.info.rank
    fits = factors is None or np.array_equal(factors.expand(), direction.u)
    if rank != (len(factors.basis) if factors else 0) or not fits:
        raise FlowgradError(f"info describes {rank} patterns, and u is not their sum. Use Direction.compact.")


def flowgrad_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("flowgrad")
    except PackageNotFoundError:  # a clone that was not installed
        return ""
