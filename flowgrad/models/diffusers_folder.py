"""Networks as diffusers saves them to a folder: config.json beside weights that hold no code."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from flowgrad.errors import FlowgradError, reason
from flowgrad.files import file_fingerprint

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
