"""Folders of models as diffusers saves them: fetched, read, and their networks loaded."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.utils import logging
from torch import nn

from flowgrad.errors import FlowgradError
from flowgrad.files import file_fingerprint
from flowgrad.models.autoencoder import FirstStage
from flowgrad.models.config import ModelConfig
from flowgrad.models.parts import joint_fingerprint

_WEIGHTS = "diffusion_pytorch_model*"  # of a network alone; other files beside an index are whole models once more
_FILES = ("*.json", "*.txt", "*.model", "*/*.safetensors", _WEIGHTS + ".safetensors")
_NOT_NEEDED = ("*.fp16.*", "*.bf16.*", "*.non_ema.*", "safety_checker/*")
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of pipelines that no field depends on
FAILURES = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError)


def check_channels(told: Mapping[str, Any], where: Path) -> None:
    """Raise FlowgradError for a network that is no field of its states: it returns others, or asks for a class."""
    inward, outward = told["in_channels"], told.get("out_channels") or told["in_channels"]
    if inward != outward:
        raise FlowgradError(
            f"{where} takes {inward} channels and returns {outward}: models for inpainting, or with learned "
            "variances, cannot be read"
        )
    if told.get("class_embed_type") or told.get("num_class_embeds"):
        raise FlowgradError(f"{where} asks for a class: only unconditional and text-conditioned models can be read")


def local_folder(config: ModelConfig) -> Path:
    """The folder of `weights`: a path, or the hub's files of that name, downloaded once.

    Raises FlowgradError saying what failed and what to do.
    """
    if not config.on_hub:
        return config.weights_file()
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return _download(config.weights)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise FlowgradError(
            f"{config.weights} is no folder here, and could not be fetched from the Hugging Face hub ({reason}).\n"
            "Check the name and the connection (`hf auth login` for gated models), or download it elsewhere "
            "and give the folder's path as `weights`"
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises FlowgradError if the file is missing, damaged, or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlowgradError(f"{path} is missing or damaged ({error}): get the model again") from error
    if not isinstance(found, dict):
        raise FlowgradError(f"{path} must be a JSON object; got {type(found).__name__}: get the model again")
    return found


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


def load_component(kind: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A frozen network that diffusers saved to `folder`. Raises FlowgradError if it is damaged or another kind."""
    named = read_json(folder / "config.json").get("_class_name")
    if named != kind.__name__:
        raise FlowgradError(f"{folder} holds {named}, where a {kind.__name__} is needed. Check `weights` and `family`")
    try:
        with quiet():
            network: nn.Module = kind.from_pretrained(folder, torch_dtype=dtype, low_cpu_mem_usage=False)
    except FAILURES as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise FlowgradError(f"the {kind.__name__} in {folder} is damaged ({reason}): get it again") from error
    return network.eval().requires_grad_(False)


def load_first_stage(
    folder: Path, kind: str, gain: float, device: torch.device, dtype: torch.dtype
) -> tuple[FirstStage, int]:
    """The autoencoder of a pipeline, and by how much its latents are smaller than images."""
    classes = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}
    if kind not in classes:
        raise FlowgradError(f"{folder} holds {kind}: only {' and '.join(classes)} can be read")
    network = load_component(classes[kind], folder).to(device)
    scale, shift = (network.config.get(key) for key in ("scaling_factor", "shift_factor"))
    return FirstStage(network, (scale or 1.0) * gain, shift or 0.0, dtype), first_stage_factor(network.config)


def first_stage_factor(told: Mapping[str, Any]) -> int:
    """By how much an autoencoder's latents are smaller than images, from its config.json."""
    return 2 ** (len(told.get("block_out_channels", (64,))) - 1)


def folder_fingerprint(folders: Sequence[Path], *conditions: str) -> str:
    """16 hexadecimal digits of the weights loaded from some folders, and of what else the field depends on."""
    return joint_fingerprint(*(file_fingerprint(file) for folder in folders for file in _loaded(folder)), *conditions)


def _loaded(folder: Path) -> list[Path]:
    """The files of weights that are read where there are several forms of them."""
    plain = [file for file in sorted(folder.glob("*")) if not re.search(r"\.(fp16|bf16|non_ema)\.", file.name)]
    return [f for f in plain if f.suffix == ".safetensors"] or [f for f in plain if f.suffix == ".bin"]
