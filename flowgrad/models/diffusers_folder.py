"""Networks as diffusers saves them to a folder: config.json beside weights that hold no code."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flowgrad.errors import FlowgradError, reason
from flowgrad.files import file_fingerprint

_WEIGHTS = "diffusion_pytorch_model*"  # of a network alone; other files beside an index are whole models once more
_FILES = ("*.json", "*.txt", "*.model", "*/*.safetensors", _WEIGHTS + ".safetensors")
_NOT_NEEDED = ("*.fp16.*", "*.bf16.*", "*.non_ema.*", "safety_checker/*")
FAILURES = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises FlowgradError if the file is missing, damaged, or holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlowgradError(f"{path} is missing or damaged ({error}): get the model again") from error
    if not isinstance(values, dict):
        raise FlowgradError(f"{path} must be a JSON object; got {type(values).__name__}: get the model again")
    return values


@contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers from drawing progress bars and from warning of its own arguments' names."""
    from diffusers.utils import logging  # after the light import of its classes

    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.enable_progress_bar()


def load_component(kind: Any, folder: Path) -> Any:
    """A frozen float32 network of the diffusers class `kind`, from weights of any float dtype.

    Raises FlowgradError if it is missing, damaged, of another class, or if its weights are not those of config.json.
    """
    named = read_json(folder / "config.json").get("_class_name")
    if named not in (None, kind.__name__):
        raise FlowgradError(f"{folder} holds {named}, where a {kind.__name__} is needed. Check `weights` and `family`")
    options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False, "output_loading_info": True}
    try:
        with quiet():
            network, info = kind.from_pretrained(folder, **options)
    except FAILURES as error:
        raise FlowgradError(f"the {kind.__name__} in {folder} is damaged ({reason(error)}): get it again") from error
    if wrong := [*info["missing_keys"], *info["unexpected_keys"]]:
        raise FlowgradError(
            f"the weights in {folder} do not fit a {kind.__name__} with its config.json: {wrong[0]} is "
            f"{'missing' if info['missing_keys'] else 'unknown'}. Get them again"
        )
    return network.eval().requires_grad_(False)


def fingerprints(*folders: Path | None) -> list[str]:
    """16 hexadecimal digits of each file of weights that is loaded from some folders."""
    return [file_fingerprint(file) for folder in folders if folder for file in _loaded(folder)]


def _loaded(folder: Path) -> list[Path]:
    """The files of weights that are read where there are several forms of them."""
    plain = [file for file in sorted(folder.glob("*")) if not re.search(r"\.(fp16|bf16|non_ema)\.", file.name)]
    return [f for f in plain if f.suffix == ".safetensors"] or [f for f in plain if f.suffix == ".bin"]


def hub_folder(name: str) -> Path:
    """The hub's files of a model, downloaded once. Raises FlowgradError saying what failed and what to do."""
    try:
        return _download(name)
    except (OSError, ValueError, RuntimeError) as error:  # those of huggingface_hub are among them
        raise FlowgradError(
            f"{name} is no folder here, and could not be fetched from the hub ({reason(error)}).\n"
            "Check the name and the connection (`hf auth login` for gated models), or download it elsewhere "
            "and give the folder's path"
        ) from error


def _download(name: str) -> Path:
    """The hub's files of a model, each weight once: safetensors, and where a part has none, its .bin."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, allow_patterns=list(_FILES), ignore_patterns=list(_NOT_NEEDED)))
    parts = [path.parent for path in folder.rglob("config.json")]
    older = [part.relative_to(folder).as_posix() for part in parts if not any(part.glob("*.safetensors"))]
    if older:
        patterns = [_WEIGHTS + ".bin" if part == "." else f"{part}/*.bin" for part in older]
        snapshot_download(name, allow_patterns=patterns, ignore_patterns=list(_NOT_NEEDED))
    return folder
