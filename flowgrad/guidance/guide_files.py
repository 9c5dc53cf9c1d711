"""Guides by name or file: where their weights lie, and how they are read."""

import json
from collections.abc import Mapping
from pathlib import Path

import clip
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import file_fingerprint
from flowgrad.guidance.guide import OPEN_CLIP, VOCABULARY_KEY, Guide, to_network
from flowgrad.resources import resource


def load_guide(name_or_path: str = "faces64-guide", device: torch.device | str = "cpu") -> Guide:
    """Load a guide: a shipped one by name, any CLIP state dict from a `.safetensors` path, OpenAI's CLIP by its name
    ("ViT-B/32") or `.pt` file, or "open-clip:MODEL:WEIGHTS" of open_clip, where the weights may be a file.

    Raises FlowgradError if the file is missing, is damaged, or is not of CLIP's architecture.
    """
    if is_downloaded(name_or_path) or name_or_path.endswith(".pt"):
        from flowgrad.guidance.foreign_guides import load_foreign_guide

        return load_foreign_guide(name_or_path).to(device)
    path = guide_file(name_or_path)
    state, metadata = read_state(path)
    vocabulary = _vocabulary(metadata, path)
    network = to_network(state, path)
    name = path.parent.name if path.name == "model.safetensors" else path.stem
    return Guide(network, name, file_fingerprint(path), vocabulary).to(device)


def is_downloaded(name: str) -> bool:
    """Whether a guide is one of OpenAI's or open_clip's, by its name: fetched when it is first loaded."""
    return name.startswith(OPEN_CLIP) or name in clip.available_models()


def guide_file(name_or_path: str) -> Path:
    """Return the weight file behind a name or a path; FlowgradError names the shipped guides if there is none."""
    if not name_or_path:
        remedy = "name one with --guide (`flowgrad train-guide` makes them), or add the model with its guide"
        raise UsageError(f"this model has no guide of its own: {remedy}.")
    if name_or_path.endswith(".safetensors"):
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise FlowgradError(f"there is no guide at {path}: check the path or run `flowgrad train-guide`.")
        return path
    return shipped_file(name_or_path, "guide")


def shipped_file(name: str, kind: str) -> Path:
    """Return `weights/<name>/model.safetensors`; UsageError lists the shipped names ending in `kind`."""
    folder = resource("weights")
    path = folder / name / "model.safetensors"
    if Path(name).name != name or not path.is_file():
        names = sorted(found.parent.name for found in folder.glob(f"*{kind}*/model.safetensors"))
        known = ", ".join(names) or "none; install flowgrad again"
        raise UsageError(f"no {kind} is called {name!r} (shipped: {known}): use one of them or a .safetensors path.")
    return path


def read_state(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Read all tensors and the metadata of a safetensors file; FlowgradError if it is damaged or unreadable."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FlowgradError(f"{path} is damaged or not safetensors ({error}): fetch or export it again.") from error


def _vocabulary(metadata: Mapping[str, str], path: Path) -> frozenset[str] | None:
    if VOCABULARY_KEY not in metadata:
        return None
    try:
        return frozenset(json.loads(metadata[VOCABULARY_KEY]))
    except (json.JSONDecodeError, TypeError) as error:
        raise FlowgradError(f"{path} carries a damaged {VOCABULARY_KEY}: export the guide again.") from error
