"""Guides by name or file: ours, OpenAI's CLIP by its package's names and files, and the models of open_clip."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import clip
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowgrad.checkpoints import read_checkpoint
from flowgrad.errors import FlowgradError, UsageError, reason
from flowgrad.files import FINGERPRINT, file_fingerprint
from flowgrad.guidance.guide import Guide, Reading, to_network
from flowgrad.guidance.names import OPEN_CLIP, is_downloaded, vocabulary, weights_file
from flowgrad.resources import resource

SCALES_KEY = "flowgrad.scales"  # metadata: {tensor: [step between two of its whole numbers, lowest value]}
_FAILURES = (OSError, RuntimeError, EOFError, LookupError, AttributeError, ValueError, TypeError, UnpicklingError)


def load_guide(name_or_path: str = "faces64-guide", device: torch.device | str = "cpu") -> Guide:
    """Load a guide: a shipped one by name, any CLIP state dict from a `.safetensors` path, OpenAI's CLIP by its name
    ("ViT-B/32") or `.pt` file, or "open-clip:MODEL:WEIGHTS" of open_clip, where the weights may be a file.

    Raises FlowgradError if the file is missing, is damaged, or is not of CLIP's architecture.
    """
    if name_or_path.startswith(OPEN_CLIP):
        return _load_open_clip(name_or_path).to(device)
    if is_downloaded(name_or_path) or name_or_path.endswith(".pt"):
        return _load_openai(name_or_path).to(device)
    path = guide_file(name_or_path)
    state, metadata = read_state(path)
    name = path.parent.name if path.name == "model.safetensors" else path.stem
    return Guide(to_network(state, path), name, file_fingerprint(path), vocabulary(metadata, path)).to(device)


def guide_file(name_or_path: str) -> Path:
    """Return the weight file behind a name or a path. Raises UsageError if there is none."""
    if not name_or_path:
        raise UsageError(
            "this model has no guide of its own: name a guide (`flowgrad train-guide` makes them), or add the model "
            "with its guide."
        )
    return weights_file(name_or_path, "guide")


def read_state(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Read all tensors and the metadata of a safetensors file; FlowgradError if it is damaged or unreadable.

    Tensors of which the metadata has scales are kept as whole numbers k, and come back as scale * k + lowest.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        for name, (scale, lowest) in json.loads(metadata.get(SCALES_KEY, "{}")).items():
            state[name] = state[name] * scale + lowest
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise FlowgradError(f"{path} is damaged or not safetensors ({error}): fetch or export it again.") from error
    return state, metadata


def _load_openai(name_or_path: str) -> Guide:
    """OpenAI's CLIP: by one of its names, downloaded once, or from a file, a TorchScript archive or a state dict.

    Names and archives go through `clip.load`. It cannot read state dicts since torch moves the file's position while
    it looks for an archive, so these are read here. Raises FlowgradError if the weights cannot be downloaded, are
    damaged, or are of another kind.
    """
    known = is_downloaded(name_or_path)
    path = Path(name_or_path).expanduser()
    if not known and not path.is_file():
        raise FlowgradError(f"there is no guide at {path}: check the path, or give one of CLIP's names like ViT-B/32.")
    if known or _is_archive(path):
        try:
            network = clip.load(name_or_path if known else str(path), device="cpu")[0]
        except _FAILURES as error:
            remedy = (
                "put its file into ~/.cache/clip, or give the file's path as the guide. The addresses are in "
                "clip/clip.py of github.com/openai/CLIP; licence: MIT."
                if known
                else "fetch it again; it must be CLIP's own .pt file."
            )
            raise FlowgradError(f"CLIP's {name_or_path} could not be loaded ({reason(error)}): {remedy}") from error
    else:
        network = to_network(read_checkpoint(path), path)
    return Guide(network, name_or_path if known else path.stem, _state_fingerprint(network))


def _is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip file with code in it."""
    try:
        with zipfile.ZipFile(path) as file:
            return any("/code/" in name for name in file.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _load_open_clip(name: str) -> Guide:
    """A model of open_clip, "open-clip:MODEL:WEIGHTS", with its own preprocessing and tokenizer.

    Raises FlowgradError if the package is missing or does not know or get the model.
    """
    try:
        import open_clip
    except ImportError as error:
        raise FlowgradError(f"{name} needs the package open_clip: pip install 'flowgrad[open-clip]'.") from error
    model, _, weights = name.removeprefix(OPEN_CLIP).partition(":")
    try:
        network = open_clip.create_model(model, pretrained=weights or None, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(model)
    except (*_FAILURES, ImportError) as error:
        raise FlowgradError(
            f"open_clip could not load {model!r} with weights {weights!r} ({reason(error)}): write "
            "open-clip:MODEL:WEIGHTS, like open-clip:ViT-B-32:laion2b_s34b_b79k."
        ) from error
    size, settings = network.visual.image_size, network.visual.preprocess_cfg
    reading = Reading(
        size[0] if isinstance(size, tuple) else size,
        tokenizer.context_length,
        tuple(settings["mean"]),
        tuple(settings["std"]),
        lambda texts, length: tokenizer(list(texts), context_length=length),
    )
    return Guide(network, name, _state_fingerprint(network), None, reading)


def _state_fingerprint(network: torch.nn.Module) -> str:
    """16 hexadecimal digits of weights in memory, the same in whatever kind of file they were."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:FINGERPRINT]


def place_guide(guide: str, folder: Path) -> str:
    """Copy a .safetensors guide that does not ship; what the configuration in `folder` says of the guide."""
    if not guide or is_downloaded(guide):
        return guide
    if guide.endswith(".pt"):
        return str(Path(guide).expanduser().absolute())
    path = guide_file(guide)
    if path.is_relative_to(resource("weights")):
        return guide
    name = f"{path.parent.name}.safetensors" if path.name == "model.safetensors" else path.name
    shutil.copyfile(path, folder / name)
    return name
