"""Checkpoints from elsewhere: read without running anything in them, converted once, kept as safetensors."""

import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowgrad.errors import FlowgradError, reason
from flowgrad.files import FINGERPRINT, atomic_path, file_sha256

CACHE_VARIABLE = "FLOWGRAD_CACHE"
CONVERSION = 1  # raised whenever conversions change, so that older cached files are left alone
_INERT = ("pytorch_lightning.", "lightning.")  # names of a trainer's bookkeeping, replaced by a class that does nothing
_FAILURES = (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError)


class _Bookkeeping:
    """Stands in for classes of PyTorch Lightning in a checkpoint: it keeps nothing and does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def cache_folder() -> Path:
    """Where converted weights are kept: FLOWGRAD_CACHE, else flowgrad/ in the user's cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowgrad"


def read_checkpoint(path: Path) -> Any:
    """Read a torch file of tensors and plain containers, without running code that it may hold.

    Raises FlowgradError if it is damaged, is no torch file, or needs more than tensors and containers.
    """
    try:
        archive = zipfile.is_zipfile(path)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if archive else []
        if code := [name for name in names if not name.startswith(_INERT)]:
            raise FlowgradError(
                f"{path} asks for {code[0]}, which is code and not a tensor: it was not loaded, and nothing in it was "
                "run. Use a checkpoint of weights alone"
            )
        with torch.serialization.safe_globals([(_Bookkeeping, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except _FAILURES as error:  # torch's own words go on to explain how to run such code
        problem = str(error).rpartition("WeightsUnpickler error: ")[2].split("\n")[0][:120] or type(error).__name__
        raise FlowgradError(
            f"{path} is damaged, or no torch checkpoint of tensors ({problem}): get it again"
        ) from error


def require_tensors(state: Mapping[Any, Any], path: Path) -> Mapping[str, Tensor]:
    """Return a state dict. Raises FlowgradError naming the first entry that is no tensor with a name."""
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise FlowgradError(
                f"{path} holds {type(value).__name__} as {str(name)[:60]!r} among its weights, where only tensors "
                "belong: it is damaged, or another kind of checkpoint. Get it again"
            )
    return state


def converted(stem: str, fingerprint: str, convert: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The result of `convert`, read from the cache where it was converted before.

    fingerprint: of everything that the result depends on. A cache that cannot be written or read costs time, not the
    job.
    """
    path = cache_folder() / f"{stem}-{fingerprint}-v{CONVERSION}.safetensors"
    try:
        return load_file(path)
    except (SafetensorError, OSError):
        state = {name: value.detach().clone().contiguous() for name, value in convert().items()}
    with suppress(FlowgradError):
        with atomic_path(path) as temporary:
            save_file(state, temporary, {"format": "pt", "source": fingerprint})
        return load_file(path)  # as every later run: bits depend on how tensors lie in memory
    return state


def verified_fingerprint(path: Path, sha256: str) -> str:
    """The fingerprint of a file, whose SHA-256 must be `sha256` if that is known.

    Raises FlowgradError for another file, or a download that broke.
    """
    actual = file_sha256(path)
    if sha256 and sha256 != actual:
        raise FlowgradError(
            f"{path} is not the file that is expected: its SHA-256 is {actual}, not {sha256}. Download it again, or "
            "correct `sha256` in the configuration"
        )
    return actual[:FINGERPRINT]


def fill(network: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> nn.Module:
    """Give `network` (on the meta device) its weights in float32, frozen and in evaluation mode.

    Raises FlowgradError if tensors are missing, left over, or of other shapes than `what` has.
    """
    floats = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    try:
        network.load_state_dict(floats, assign=True)
    except RuntimeError as error:
        raise FlowgradError(
            f"{path} does not fit {what} ({reason(error)}): check the configuration, or the file"
        ) from error
    return network.eval().requires_grad_(False)
