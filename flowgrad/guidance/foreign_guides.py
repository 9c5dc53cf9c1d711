"""Guides that others trained: OpenAI's CLIP by the package's names and files, and the models of open_clip."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import clip
from clip.model import CLIP
from torch import Tensor

from flowgrad.checkpoints import read_checkpoint
from flowgrad.errors import FlowgradError
from flowgrad.guidance.guide import OPEN_CLIP, Guide, Reading, to_network

CLIP_SOURCE = "The addresses are in clip/clip.py of github.com/openai/CLIP; licence: MIT."


def load_foreign_guide(name: str) -> Guide:
    """A guide of OpenAI or, where the name begins with "open-clip:", of open_clip. Raises FlowgradError."""
    return load_open_clip(name) if name.startswith(OPEN_CLIP) else load_openai(name)


def load_openai(name_or_path: str) -> Guide:
    """OpenAI's CLIP: by one of its names, downloaded once, or from a file, a TorchScript archive or a state dict.

    Names and archives go through `clip.load`. It cannot read state dicts since torch moves the file's position while
    it looks for an archive, so these are read here. Raises FlowgradError if the weights cannot be downloaded, are
    damaged, or are of another kind.
    """
    known = name_or_path in clip.available_models()
    path = Path(name_or_path).expanduser()
    if not known and not path.is_file():
        raise FlowgradError(f"there is no guide at {path}: check the path, or give one of CLIP's names like ViT-B/32.")
    if known or is_archive(path):
        network = _clip_load(name_or_path if known else str(path), known)
    else:
        network = to_network(read_checkpoint(path), path)
    fingerprint = state_fingerprint(network.state_dict())
    return Guide(network, name_or_path if known else path.stem, fingerprint)


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip file with code in it."""
    try:
        with zipfile.ZipFile(path) as file:
            return any("/code/" in name for name in file.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _clip_load(name: str, known: bool) -> CLIP:
    try:
        return clip.load(name, device="cpu")[0]
    except (OSError, RuntimeError, EOFError, LookupError, AttributeError, ValueError, UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        elsewhere = f"put its file into ~/.cache/clip, or give the file's path as the guide. {CLIP_SOURCE}"
        remedy = elsewhere if known else "fetch it again; it must be CLIP's own .pt file."
        raise FlowgradError(f"CLIP's {name} could not be loaded ({reason}): {remedy}") from error


def load_open_clip(name: str) -> Guide:
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
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        rule = f"open_clip could not load {model!r} with weights {weights!r} ({reason})"
        raise FlowgradError(
            f"{rule}: write open-clip:MODEL:WEIGHTS, like open-clip:ViT-B-32:laion2b_s34b_b79k."
        ) from error
    size, told = network.visual.image_size, network.visual.preprocess_cfg
    reading = Reading(
        size[0] if isinstance(size, tuple) else size,
        tokenizer.context_length,
        tuple(told["mean"]),
        tuple(told["std"]),
        lambda texts, length: tokenizer(list(texts), context_length=length),
    )
    return Guide(network, name, state_fingerprint(network.state_dict()), None, reading)


def state_fingerprint(state: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of weights in memory, the same in whatever kind of file they were."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
